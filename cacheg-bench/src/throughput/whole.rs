//! End to end: whole KV caches in memory to containers in memory and back, by preset and number of threads.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use cacheg::core::{Backend, Chunk, Container, Cpu, Decoder, KvOut, Plan, ResultExt};
use cacheg::report::progress;
use cacheg::{
    Encoder, Error, ErrorKind, KvCache, KvView, Limits, Pipeline, Preset, Profile, Registry, Result,
    calibrate, flow,
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Work;
use super::race::seconds;

/// A preset's result with one number of threads.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) preset: &'static str,
    pub(crate) tables: &'static str,
    pub(crate) threads: usize,
    /// Bytes of all containers.
    pub(crate) coded: usize,
    /// Seconds for all KV caches, a round each.
    pub(crate) encode: Vec<f64>,
    pub(crate) decode: Vec<f64>,
    /// The same for copying the KV caches with as many threads.
    pub(crate) memcpy: Vec<f64>,
}

/// All results, and what they are about.
#[derive(Debug)]
pub(crate) struct Wholes {
    pub(crate) rows: Vec<Whole>,
    /// Values and bytes of all KV caches.
    pub(crate) values: f64,
    pub(crate) bytes: f64,
}

/// Where a pipeline's tables and other data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    /// It needs none.
    None,
    /// Gathered while encoding, carried by the chunk, bound while decoding.
    Chunk,
    /// From a profile, bound before the clock starts: once per model.
    Profile,
}

impl Tables {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Chunk => "chunk",
            Self::Profile => "profile",
        }
    }
}

/// One KV cache under one pipeline.
struct Job<'r> {
    registry: &'r Registry,
    encoder: Encoder,
    chunk_tokens: usize,
    /// With a profile, decoders are ready.
    ready: Option<Box<dyn Decoder>>,
    coded: Vec<u8>,
    /// What decoding gave the first time.
    hash: u64,
}

impl<'r> Job<'r> {
    fn new(
        registry: &'r Registry,
        preset: &Preset,
        pipeline: Pipeline,
        view: &KvView<'_>,
        profile: Option<&Profile>,
        out: &mut KvCache,
    ) -> Result<Self> {
        let encoder = Encoder::new(pipeline, view.geometry(), profile)?;
        let mut job = Self {
            registry,
            encoder,
            chunk_tokens: preset.chunk_tokens,
            ready: None,
            coded: Vec::new(),
            hash: 0,
        };
        job.encode(view)?;
        if profile.is_some() {
            let container = Container::parse(&job.coded, &Limits::default())?;
            let chunk = container.chunks.first().ok_or_else(|| Error::data("no tokens"))?;
            job.ready = Some(Cpu.decoder(chunk.bind(registry, profile)?)?);
        }
        job.decode(out)?;
        job.hash = hash(out);
        Ok(job)
    }

    fn encode(&mut self, view: &KvView<'_>) -> Result<()> {
        self.coded.clear();
        flow::encode(view, &BTreeMap::new(), &self.encoder, self.chunk_tokens, &mut self.coded, &|_| ())?;
        Ok(())
    }

    /// As `flow::Decode` does, but into memory that is there already, as that of `memcpy` is.
    fn decode(&mut self, out: &mut KvCache) -> Result<()> {
        let Container { chunks, .. } = Container::parse(&self.coded, &Limits::default())?;
        let mut view = out.view_mut();
        let mut bound: Option<(&Chunk<'_>, Box<dyn Decoder>)> = None;
        for chunk in &chunks {
            let decoder = match (&mut self.ready, &mut bound) {
                (Some(ready), _) => ready,
                (None, Some((first, decoder))) if chunk.coded_like(first) => decoder,
                (None, slot) => {
                    let plan = chunk.bind(self.registry, None)?;
                    &mut slot.insert((chunk, Cpu.decoder(plan)?)).1
                }
            };
            decoder.decode(chunk, KvOut::Host(&mut view, chunk.tokens().start), &|_| ())?;
        }
        Ok(())
    }
}

fn hash(cache: &KvCache) -> u64 {
    let mut hasher = DefaultHasher::new();
    (0..cache.geometry().planes().len()).for_each(|plane| hasher.write(cache.plane_bytes(plane)));
    hasher.finish()
}

/// A preset with one source of tables: a job for each KV cache.
struct Entry<'r> {
    preset: &'static Preset,
    tables: Tables,
    jobs: Vec<Job<'r>>,
}

/// Measures the presets of these names, or all.
pub(crate) fn run(work: &Work<'_>, names: &[String], threads: &[usize], rounds: usize) -> Result<Wholes> {
    let Work { registry, views, distinct } = work;
    let presets = match names {
        // Those that need statistics of a model are measured by `quality`.
        [] => cacheg::PRESETS.iter().filter(|preset| !preset.statistics).collect(),
        names => names.iter().map(|name| cacheg::preset(name)).collect::<Result<Vec<_>>>()?,
    };
    let caches: Vec<KvCache> = views.iter().map(|view| KvCache::copy_of(view, 0, view.tokens())).collect();
    let mut outs: Vec<KvCache> =
        views.iter().map(|view| KvCache::zeros(view.geometry(), view.tokens(), 0)).collect();
    let views: Vec<KvView<'_>> = caches.iter().map(KvCache::view).collect();
    let pools = threads.iter().map(|threads| pool(*threads)).collect::<Result<Vec<_>>>()?;
    let mut entries = Vec::new();
    for preset in presets {
        entries.extend(prepare(registry, preset, &views, *distinct, &mut outs).at(|| preset.name)?);
    }
    let source: Vec<u8> = caches
        .iter()
        .flat_map(|cache| (0..cache.geometry().planes().len()).map(|plane| cache.plane_bytes(plane)))
        .flatten()
        .copied()
        .collect();
    let mut copy = vec![0; source.len()];
    let mut rows: Vec<Whole> = Vec::new();
    for entry in &entries {
        let coded = entry.jobs.iter().map(|job| job.coded.len()).sum();
        rows.extend(threads.iter().map(|threads| Whole {
            preset: entry.preset.name,
            tables: entry.tables.name(),
            threads: *threads,
            coded,
            encode: Vec::new(),
            decode: Vec::new(),
            memcpy: Vec::new(),
        }));
    }
    let bar = progress((rows.len() * rounds) as u64, "whole files");
    for _ in 0..rounds {
        for (entry, rows) in entries.iter_mut().zip(rows.chunks_mut(threads.len().max(1))) {
            for (row, pool) in rows.iter_mut().zip(&pools) {
                row.memcpy.push(seconds(|| {
                    memcpy(pool, &source, &mut copy);
                    Ok(())
                })?);
                measure(entry, row, pool, &views, &mut outs).at(|| row.preset)?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let values = views.iter().map(|view| view.geometry().values_per_token() as f64 * view.tokens() as f64);
    Ok(Wholes { rows, values: values.sum(), bytes: source.len() as f64 })
}

fn pool(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::data(format!("{threads} threads: {e}")))
}

fn prepare<'r>(
    registry: &'r Registry,
    preset: &'static Preset,
    views: &[KvView<'_>],
    distinct: usize,
    outs: &mut [KvCache],
) -> Result<Vec<Entry<'r>>> {
    let pipeline = || Pipeline::parse(registry, preset.spec(None)?);
    let needs_data = match Plan::bind(&pipeline()?, views[0].geometry(), None) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::Profile => true,
        Err(error) => return Err(error),
    };
    let sources: &[Tables] = if needs_data { &[Tables::Chunk, Tables::Profile] } else { &[Tables::None] };
    let mut entries = Vec::new();
    for tables in sources {
        let mut jobs = Vec::new();
        for (index, (view, out)) in views.iter().zip(&mut *outs).enumerate() {
            let profile = match tables {
                Tables::Profile => {
                    let profile = calibrate(
                        &[pipeline()?],
                        &teachers(&views[..distinct], index % distinct),
                        preset.chunk_tokens,
                        &|_| (),
                    );
                    Some(profile?)
                }
                Tables::None | Tables::Chunk => None,
            };
            jobs.push(Job::new(registry, preset, pipeline()?, view, profile.as_ref(), out)?);
        }
        entries.push(Entry { preset, tables: *tables, jobs });
    }
    Ok(entries)
}

/// What a profile for a KV cache is calibrated on: others of the same model, or itself where there are none.
fn teachers<'v>(views: &[KvView<'v>], index: usize) -> Vec<KvView<'v>> {
    let others = views
        .iter()
        .enumerate()
        .filter(|(other, view)| *other != index && view.geometry() == views[index].geometry());
    let others: Vec<KvView<'v>> = others.map(|(_, view)| view.clone()).collect();
    if others.is_empty() { vec![views[index].clone()] } else { others }
}

/// Copies with all threads of the pool, a contiguous part each.
fn memcpy(pool: &ThreadPool, source: &[u8], to: &mut [u8]) {
    let part = source.len().div_ceil(pool.current_num_threads()).max(1);
    pool.scope(|scope| {
        for (source, to) in source.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move |_| to.copy_from_slice(source));
        }
    });
}

fn measure(
    entry: &mut Entry<'_>,
    row: &mut Whole,
    pool: &ThreadPool,
    views: &[KvView<'_>],
    outs: &mut [KvCache],
) -> Result<()> {
    let jobs = &mut entry.jobs;
    row.encode.push(
        pool.install(|| seconds(|| jobs.iter_mut().zip(views).try_for_each(|(job, view)| job.encode(view))))?,
    );
    row.decode.push(pool.install(|| {
        seconds(|| jobs.iter_mut().zip(&mut *outs).try_for_each(|(job, out)| job.decode(out)))
    })?);
    let coded: usize = jobs.iter().map(|job| job.coded.len()).sum();
    if coded != row.coded || jobs.iter().zip(outs).any(|(job, out)| hash(out) != job.hash) {
        return Err(Error::data(format!("{} threads give another result", row.threads)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_sources_of_tables_are_measured_apart() {
        let registry = cacheg::builtins().unwrap();
        let sample = cacheg::sample().unwrap();
        let cuts = [0, 40].map(|first| KvCache::copy_of(&sample.view(), first, 40));
        let names = ["q8", "lossless"].map(str::to_owned);
        let work = Work { registry: &registry, views: cuts.iter().map(KvCache::view).collect(), distinct: 2 };
        let wholes = run(&work, &names, &[1, 2], 1).unwrap();
        let got: Vec<_> = wholes.rows.iter().map(|row| (row.preset, row.tables, row.threads)).collect();
        let want = [("q8", "-"), ("lossless", "chunk"), ("lossless", "profile")];
        let want: Vec<_> = want.iter().flat_map(|(name, t)| [1, 2].map(|n| (*name, *t, n))).collect();
        assert_eq!(got, want);
        assert_eq!(wholes.bytes, wholes.values * 2.0);
        assert!(wholes.rows.iter().all(|row| row.decode[0] > 0.0 && (row.coded as f64) < wholes.bytes));
        assert!(run(&work, &["none".into()], &[1], 1).is_err());
    }
}
