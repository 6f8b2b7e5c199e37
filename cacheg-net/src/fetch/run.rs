//! The loop around the controller.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cacheg_core::{Error, ErrorKind, Profile, Registry, Result};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::receive::{Receiver, lock};
use super::{FetchOptions, Fetched, Got, Recompute, SharedLink, Span, Work, decode, recompute, transfer};
use crate::control::{
    Action, Chunk, Controller, Failure, Fetch, Job, Level, Source, TransferId, Waiting, estimators, policies,
};
use crate::store::{ContextId, Manifest, Store};

/// Chunks that were received and are not decoded yet; with more, no transfer is begun.
const UNDECODED: usize = 4;

/// Without a deadline: longer than anybody waits, and far from what adds up to an overflow.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// What transfers, the decoder and the model report.
pub(super) enum Event {
    Progress { id: TransferId, bytes: u64, at: Instant },
    Received { id: TransferId, bytes: Vec<u8>, at: Instant },
    Failed { id: TransferId, error: Error },
    Decoded { job: usize, level: usize, start: Instant, end: Instant, result: Result<()> },
    Recomputed { job: usize, start: Instant, end: Instant, result: Result<()> },
}

/// Fetches a context into `receiver`. Chunks that the policy leaves to text are computed by `model`; without one, but with
/// [`FetchOptions::recompute`], they are left to the caller ([`Got::Left`]).
///
/// Returns when all chunks are there, when the deadline and the grace are over, or when nothing more can be had; what is
/// missing then is in the result.
///
/// # Errors
/// If the context, its profile or its text cannot be read in time, if the store refuses access, or if the receiver
/// does; wrong settings.
pub async fn fetch(
    store: &Store,
    registry: &Arc<Registry>,
    id: &ContextId,
    options: &FetchOptions,
    receiver: Arc<Mutex<dyn Receiver>>,
    model: Option<Box<dyn Recompute>>,
) -> Result<Fetched> {
    let begun = Instant::now();
    let policy = policies().build(options.policy())?;
    let estimator = estimators().build(&options.estimator)?;
    let slo = options.slo.unwrap_or(FOR_EVER).min(FOR_EVER);
    let give_up = slo.saturating_add(options.grace).min(FOR_EVER);
    let in_time = tokio::time::timeout(give_up, beginning(store, id, options));
    let (manifest, profile, tokens) = in_time.await.map_err(|_| {
        Error::unavailable(format!("context `{id}` in {}: no answer in time", store.transport().url()))
    })??;
    let manifest = Arc::new(manifest);
    let held = lock(&receiver).begin(&manifest, tokens.as_deref())?;
    let wanted: Vec<usize> = (0..manifest.chunks.len()).filter(|chunk| !held.contains(chunk)).collect();
    let names: Vec<Vec<&str>> = wanted.iter().map(|chunk| levels(&manifest, *chunk)).collect();
    let recompute = options.recompute.filter(|_| tokens.is_some());
    let controller =
        Controller::new(job(&manifest, &wanted, &names, options, recompute, slo)?, policy, estimator)
            .with_connections(options.connections);

    let (sender, events) = mpsc::channel(256);
    let stop = Arc::new(AtomicBool::new(false));
    let decoding = decode::Decoding {
        manifest: manifest.clone(),
        profile,
        registry: registry.clone(),
        backend: options.backend.clone(),
        limits: store.limits().clone(),
        receiver: receiver.clone(),
        stop: stop.clone(),
    };
    let decoder = decode::start(decoding, sender.clone())?;
    let computer = match (model, tokens) {
        (Some(model), Some(tokens)) => {
            Some(recompute::start(model, Arc::new(tokens), receiver.clone(), sender.clone())?)
        }
        _ => None,
    };
    let mut running = Running {
        begun,
        store,
        manifest: &manifest,
        wanted: &wanted,
        names: &names,
        per_token: recompute,
        starts: manifest.starts(),
        controller,
        sender,
        decoder,
        computer,
        transfers: BTreeMap::new(),
        undecoded: 0,
        left: Vec::new(),
        waiting_text: None,
        bytes: 0,
        faults: Vec::new(),
        timeline: Vec::new(),
        link: options.link.clone(),
        upgrade: options.slo.is_some() && !options.asap,
    };
    let finished = running.until(give_up, events).await;
    running.transfers.values().for_each(|transfer| transfer.handle.abort());
    stop.store(true, Ordering::Relaxed);
    let complete = finished?;
    let chunks = running.outcome(&held);
    let Running { bytes, faults, timeline, .. } = running;
    Ok(Fetched { chunks, complete, bytes, faults, timeline, manifest: Arc::unwrap_or_clone(manifest) })
}

type Beginning = (Manifest, Option<Arc<Profile>>, Option<Vec<u32>>);

async fn beginning(store: &Store, id: &ContextId, options: &FetchOptions) -> Result<Beginning> {
    let manifest = store.manifest(id).await?;
    let (profile, tokens) =
        tokio::join!(profile(store, &manifest, options.profile.as_ref()), store.tokens(&manifest));
    Ok((manifest, profile?, tokens?))
}

/// The context's profile, fetched unless it is the one that is here.
async fn profile(
    store: &Store,
    manifest: &Manifest,
    here: Option<&Arc<Profile>>,
) -> Result<Option<Arc<Profile>>> {
    let Some(wanted) = &manifest.profile else { return Ok(None) };
    if let Some(here) = here.filter(|here| here.hash() == wanted.sha256.as_str()) {
        return Ok(Some(here.clone()));
    }
    Ok(store.profile(manifest).await?.map(Arc::new))
}

/// The levels of a chunk, best first.
fn levels(manifest: &Manifest, chunk: usize) -> Vec<&str> {
    let chunk = &manifest.chunks[chunk];
    manifest.levels.iter().map(|level| &*level.name).filter(|name| chunk.levels.contains_key(*name)).collect()
}

fn job(
    manifest: &Manifest,
    wanted: &[usize],
    names: &[Vec<&str>],
    options: &FetchOptions,
    recompute: Option<Duration>,
    slo: Duration,
) -> Result<Job> {
    let per_token = manifest.geometry.bytes_per_token() as f64;
    let mut chunks = Vec::new();
    for (chunk, names) in wanted.iter().zip(names) {
        let chunk = &manifest.chunks[*chunk];
        let seconds = chunk.tokens as f64 * per_token / options.decode_rate.max(1.0);
        let decode = Duration::try_from_secs_f64(seconds).unwrap_or(FOR_EVER);
        let level = |name: &&str| {
            let object = &chunk.levels[*name];
            Level::new(object.bytes, object.distortion, decode)
        };
        let text =
            recompute.map(|token| token.saturating_mul(u32::try_from(chunk.tokens).unwrap_or(u32::MAX)));
        chunks.push(Chunk { levels: names.iter().map(level).collect(), text });
    }
    Job::new(chunks, slo)
}

struct Transferring {
    fetch: Fetch,
    handle: AbortHandle,
    start: Duration,
    bytes: u64,
}

struct Running<'a> {
    begun: Instant,
    store: &'a Store,
    manifest: &'a Manifest,
    /// Chunks of the controller's job.
    wanted: &'a [usize],
    /// Level names of each of them.
    names: &'a [Vec<&'a str>],
    per_token: Option<Duration>,
    starts: Vec<u64>,
    controller: Controller,
    sender: mpsc::Sender<Event>,
    decoder: std::sync::mpsc::Sender<decode::Order>,
    computer: Option<std::sync::mpsc::Sender<recompute::Order>>,
    transfers: BTreeMap<TransferId, Transferring>,
    undecoded: usize,
    /// Chunks of the job that the caller recomputes.
    left: Vec<usize>,
    /// A chunk that the caller would have recomputed by then.
    waiting_text: Option<(usize, Duration, Duration)>,
    bytes: u64,
    faults: Vec<String>,
    timeline: Vec<Span>,
    link: Option<Arc<SharedLink>>,
    upgrade: bool,
}

impl Running<'_> {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn since(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.begun)
    }

    /// Runs until everything is done or it is time to give up; when it was complete.
    async fn until(
        &mut self,
        give_up: Duration,
        mut events: mpsc::Receiver<Event>,
    ) -> Result<Option<Duration>> {
        let mut complete = None;
        loop {
            let wake = self.act()?;
            let now = self.now();
            if complete.is_none() && self.controller.complete() {
                complete = Some(now);
            }
            let over = match wake {
                None => true,
                Some(_) => now >= give_up || (complete.is_some() && !self.upgrade),
            };
            if over {
                return Ok(complete);
            }
            let text = self.waiting_text.map(|(_, _, end)| end);
            let wake = wake.flatten().into_iter().chain(text).chain([give_up]).min().unwrap_or(give_up);
            let wait = wake.saturating_sub(now);
            match tokio::time::timeout(wait, events.recv()).await {
                Ok(Some(event)) => self.handle(event)?,
                Ok(None) => return Ok(complete),
                Err(_) => {}
            }
            if let Some((job, start, end)) = self.waiting_text
                && self.now() >= end
            {
                self.waiting_text = None;
                self.left.push(job);
                self.controller.recomputed(self.now(), job);
                self.span(Work::Recompute, job, None, start, end, 0, true);
            }
            // What has come meanwhile: the next decision should know of it.
            while let Ok(event) = events.try_recv() {
                self.handle(event)?;
            }
        }
    }

    /// Carries out what the controller wants; when it wants to be asked again, or `None` if it is done.
    fn act(&mut self) -> Result<Option<Option<Duration>>> {
        loop {
            // A decoder that cannot follow: what is received waits in memory, and that must not grow.
            if self.undecoded >= UNDECODED {
                return Ok(Some(None));
            }
            match self.controller.poll(self.now()) {
                Action::Fetch(fetch) => self.start(fetch)?,
                Action::Abandon { transfer } => {
                    if let Some(stopped) = self.transfers.remove(&transfer) {
                        stopped.handle.abort();
                        let (now, job) = (self.now(), stopped.fetch.chunk);
                        let level = Some(stopped.fetch.level);
                        self.span(Work::Transfer, job, level, stopped.start, now, stopped.bytes, false);
                        self.bytes += stopped.bytes;
                    }
                }
                Action::Recompute { chunk } => self.recompute(chunk)?,
                Action::Wait { until } => return Ok(Some(until)),
                Action::Done => return Ok(None),
            }
        }
    }

    fn start(&mut self, fetch: Fetch) -> Result<()> {
        let (chunk, level) = (self.wanted[fetch.chunk], self.names[fetch.chunk][fetch.level]);
        let Some((key, object)) = self.manifest.object(chunk, level)? else {
            self.controller.failed(self.now(), fetch.transfer, Failure::Unusable);
            return Ok(());
        };
        let wanted = transfer::Wanted {
            transport: self.store.transport().clone(),
            key,
            bytes: object.bytes,
            sha256: object.sha256.clone(),
        };
        let events = self.sender.clone();
        let turn = self.link.as_ref().map(|link| {
            let deadline = link.now().saturating_sub(self.now()).saturating_add(self.controller.job().slo());
            (link.clone(), Waiting { deadline, chunk, bytes: self.bytes })
        });
        let task = tokio::spawn(async move {
            // Held until the transfer is over, one way or another.
            let _turn = match turn {
                Some((link, waiting)) => link.turn(waiting).await,
                None => None,
            };
            transfer::run(wanted, fetch.transfer, events).await;
        });
        let start = self.now();
        let transfer = Transferring { fetch, handle: task.abort_handle(), start, bytes: 0 };
        self.transfers.insert(fetch.transfer, transfer);
        Ok(())
    }

    fn recompute(&mut self, job: usize) -> Result<()> {
        let chunk = self.wanted[job];
        let (first, end) = (self.starts[chunk] as usize, self.starts[chunk + 1] as usize);
        match &self.computer {
            Some(computer) => {
                let order = recompute::Order { job, rows: first..end, chunk };
                computer.send(order).map_err(|_| Error::unavailable("the model's thread has ended"))
            }
            None => {
                // Whoever does it begins now, and takes as long as the options say.
                let tokens = u32::try_from(end - first).unwrap_or(u32::MAX);
                let takes = self.per_token.unwrap_or_default().saturating_mul(tokens);
                let now = self.now();
                self.waiting_text = Some((job, now, now.saturating_add(takes)));
                Ok(())
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let now = self.now();
        match event {
            // By when they arrived: on a busy machine events wait, and the link must not seem to stall and to leap.
            Event::Progress { id, bytes, at } => {
                let at = self.since(at);
                if let Some(transfer) = self.transfers.get_mut(&id) {
                    transfer.bytes = bytes;
                    self.controller.progress(at, id, bytes);
                }
            }
            Event::Received { id, bytes, at } => {
                let now = self.since(at);
                // One that was abandoned at the last moment.
                let Some(Transferring { fetch, start, .. }) = self.transfers.remove(&id) else {
                    return Ok(());
                };
                self.controller.received(now, id);
                self.bytes += bytes.len() as u64;
                self.span(
                    Work::Transfer,
                    fetch.chunk,
                    Some(fetch.level),
                    start,
                    now,
                    bytes.len() as u64,
                    true,
                );
                let order = decode::Order {
                    job: fetch.chunk,
                    level: fetch.level,
                    name: self.names[fetch.chunk][fetch.level].to_owned(),
                    chunk: self.wanted[fetch.chunk],
                    bytes,
                    upgrade: self.controller.chunks()[fetch.chunk].present().is_some(),
                };
                self.undecoded += 1;
                self.decoder.send(order).map_err(|_| Error::unavailable("the decoder's thread has ended"))?;
            }
            Event::Failed { id, error } => {
                let Some(Transferring { fetch, start, bytes, .. }) = self.transfers.remove(&id) else {
                    return Ok(());
                };
                self.span(Work::Transfer, fetch.chunk, Some(fetch.level), start, now, bytes, false);
                self.bytes += bytes;
                let failure = match error.kind() {
                    // Every other request would be refused, too.
                    ErrorKind::Denied => return Err(error),
                    ErrorKind::Unavailable | ErrorKind::Io => Failure::Interrupted,
                    _ => Failure::Unusable,
                };
                self.controller.failed(now, id, failure);
                self.fault(fetch.chunk, &error);
            }
            Event::Decoded { job, level, start, end, result } => {
                self.undecoded -= 1;
                let useful = result.is_ok();
                match result {
                    Ok(()) => self.controller.decoded(now, job, level, 0),
                    Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                    Err(error) => {
                        self.controller.decode_failed(now, job, level, 0);
                        self.fault(job, &error);
                    }
                }
                self.span(Work::Decode, job, Some(level), self.since(start), self.since(end), 0, useful);
            }
            Event::Recomputed { job, start, end, result } => {
                let useful = result.is_ok();
                match result {
                    Ok(()) => self.controller.recomputed(now, job),
                    Err(error) => {
                        self.controller.recompute_failed(now, job);
                        self.fault(job, &error);
                    }
                }
                self.span(Work::Recompute, job, None, self.since(start), self.since(end), 0, useful);
            }
        }
        Ok(())
    }

    fn fault(&mut self, job: usize, error: &Error) {
        let chunk = self.wanted[job];
        tracing::warn!(chunk, %error, "another way has to be found");
        self.faults.push(format!("chunk {chunk}: {error}"));
    }

    #[expect(clippy::too_many_arguments, reason = "a span has that many fields")]
    fn span(
        &mut self,
        work: Work,
        job: usize,
        level: Option<usize>,
        start: Duration,
        end: Duration,
        bytes: u64,
        useful: bool,
    ) {
        let level = level.map(|level| self.names[job][level].to_owned());
        self.timeline.push(Span { work, chunk: self.wanted[job], level, start, end, bytes, useful });
    }

    fn outcome(&self, held: &[usize]) -> Vec<Got> {
        let mut chunks = vec![Got::Missing; self.manifest.chunks.len()];
        held.iter().for_each(|chunk| chunks[*chunk] = Got::Held);
        for (job, state) in self.controller.chunks().iter().enumerate() {
            chunks[self.wanted[job]] = match (state.source(), state.present()) {
                (Some(Source::Level { level, .. }), Some(distortion)) => {
                    Got::Level { level: self.names[job][level].to_owned(), distortion }
                }
                (Some(Source::Text), _) if self.left.contains(&job) => Got::Left,
                (Some(Source::Text), _) => Got::Text,
                _ => Got::Missing,
            };
        }
        chunks
    }
}
