//! Codecs by name, and KV caches through them and back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Instant;

use cacheg::core::{Cpu, Plan, ResultExt, Statistics, calibrate_with};
use cacheg::flow;
use cacheg::{Encoder, Error, ErrorKind, Geometry, KvView, Limits, Pipeline, Profile, Registry, Result};
use cacheg_bench::llm::Hyper;

use super::parts::Parts;
use super::source::Source;
use super::visible;

/// Baselines that are no presets: name and spec.
const BASELINES: &[(&str, &str)] = &[("f16", "bytes|raw")];

/// What `default` stands for.
const DEFAULT: &str = "f16,lossless,q8,q4,kivi4,kivi2,hadamard4,turboquant4,turboquant3,cachegen-release,\
    cachegen-paper@0,cachegen-paper@1,cachegen-paper@2,cachegen-paper@3,fast@0,fast@1,fast@2,fast@3,text,\
    h2o(keep=0.5)+q8,h2o(keep=0.5)+cachegen-paper@1,prune(keep=0.8)+q8,prune(keep=0.8)+cachegen-paper@1";

/// Presets that stand for codes which have no profile: their chunks carry all tables.
const WITHOUT_PROFILE: &[&str] = &["cachegen-release"];

/// Tokens of a chunk of what is no preset.
const CHUNK_TOKENS: usize = 1_500;

/// A pipeline with a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Codec {
    /// What it is given.
    pub(crate) source: Source,
    /// Preset, baseline, or the spec itself.
    pub(crate) codec: String,
    /// Of a preset that has several.
    pub(crate) level: Option<usize>,
    pub(crate) spec: String,
    /// What its profile is calibrated for before: predictors that levels share are made by the first that has them.
    pub(crate) before: Vec<String>,
    pub(crate) chunk_tokens: usize,
    /// Data of stages comes from a profile, if they want any.
    pub(crate) profile: bool,
    /// Its profile is made with statistics. (Of specs nobody says so.)
    pub(crate) statistics: bool,
}

impl Codec {
    /// For a table.
    pub(crate) fn name(&self) -> String {
        self.level.map_or_else(|| self.codec.clone(), |level| format!("{}@{level}", self.codec))
    }
}

/// Codecs from lists with commas, which may also be inside the parentheses of a spec.
pub(crate) fn parse(lists: &[String]) -> Result<Vec<Codec>> {
    let mut codecs = Vec::new();
    for list in lists {
        for name in split(list) {
            match name {
                "default" => codecs.extend(parse(&[DEFAULT.to_owned()])?),
                "all" => {
                    codecs.extend(parse(&[DEFAULT.to_owned()])?);
                    for name in with_statistics() {
                        codecs.push(one(&name)?);
                    }
                }
                name => codecs.push(one(name)?),
            }
        }
    }
    Ok(codecs)
}

/// A pipeline by its spec: one of several `level`s of what is called `codec`.
pub(crate) fn of_spec(codec: String, level: Option<usize>, spec: String) -> Codec {
    Codec {
        source: Source::Context,
        codec,
        level,
        spec,
        before: Vec::new(),
        chunk_tokens: CHUNK_TOKENS,
        profile: true,
        statistics: false,
    }
}

/// Every level of the presets whose profiles are made with statistics.
fn with_statistics() -> impl Iterator<Item = String> {
    let presets = cacheg::PRESETS.iter().filter(|preset| preset.statistics);
    presets.flat_map(|preset| (0..preset.levels.len()).map(|level| format!("{}@{level}", preset.name)))
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    let at_comma = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    list.split(at_comma).map(str::trim).filter(|name| !name.is_empty())
}

fn one(name: &str) -> Result<Codec> {
    let plain = |spec: &str| of_spec(name.to_owned(), None, spec.to_owned());
    if name == "text" {
        return Ok(Codec { source: Source::Text, ..plain("") });
    }
    if let Some((before, behind)) = name.split_once(")+") {
        let codec = one(behind)?;
        let named = format!("{before})+{}", codec.codec);
        return match before.strip_prefix("prune(") {
            Some(settings) => Ok(Codec { source: Source::pruned(settings)?, codec: named, ..codec }),
            None => {
                let spec = format!("{before})|{}", codec.spec);
                Ok(Codec { spec, before: Vec::new(), codec: named, ..codec })
            }
        };
    }
    if name.contains(['|', '(']) {
        return Ok(plain(name));
    }
    if let Some((_, spec)) = BASELINES.iter().find(|(known, _)| *known == name) {
        return Ok(plain(spec));
    }
    let (preset, level) = match name.split_once('@') {
        None => (cacheg::preset(name)?, None),
        Some((preset, level)) => {
            let level =
                level.parse().map_err(|_| Error::setting(format!("`{name}`: the level is no number")))?;
            (cacheg::preset(preset)?, Some(level))
        }
    };
    let all = preset.calibrated_for(level.unwrap_or(preset.default_level))?;
    let (_, before) = all.split_last().unwrap_or((&"", &[]));
    Ok(Codec {
        codec: preset.name.to_owned(),
        level: (preset.levels.len() > 1).then(|| level.unwrap_or(preset.default_level)),
        spec: preset.spec(level)?.to_owned(),
        before: before.iter().map(|spec| (*spec).to_owned()).collect(),
        chunk_tokens: preset.chunk_tokens,
        profile: !WITHOUT_PROFILE.contains(&preset.name),
        statistics: preset.statistics,
        source: Source::Context,
    })
}

/// The pipelines of all levels of a codec that were asked for, with those that are calibrated before them.
fn together(codec: &Codec, codecs: &[Codec], registry: &Registry) -> Result<Vec<Pipeline>> {
    let levels = codecs.iter().filter(|other| {
        (&other.codec, other.chunk_tokens, other.source) == (&codec.codec, codec.chunk_tokens, codec.source)
    });
    let mut specs: Vec<&String> = Vec::new();
    for spec in levels.flat_map(|level| level.before.iter().chain([&level.spec])) {
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    }
    specs.into_iter().map(|spec| Pipeline::parse(registry, spec)).collect()
}

/// A codec that is ready to run.
pub(crate) struct Ready<'r> {
    pub(crate) codec: Codec,
    registry: &'r Registry,
    /// None if nothing is encoded.
    encoder: Option<Encoder>,
    profile: Option<Profile>,
}

/// A KV cache that went through a codec.
pub(crate) struct Coded {
    /// Of the whole container.
    pub(crate) bytes: u64,
    /// How they divide.
    pub(crate) parts: Parts,
    pub(crate) encode_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) decoded: flow::Decoded,
    /// All of it.
    pub(crate) container: Vec<u8>,
}

/// Whether a codec goes by the attention that tokens got.
pub(crate) fn wants_importance(codec: &Codec, registry: &Registry) -> bool {
    Pipeline::parse(registry, &codec.spec).is_ok_and(|pipeline| pipeline.wants_importance())
}

/// Whether a codec wants a profile.
pub(crate) fn wants_profile(codec: &Codec, registry: &Registry, geometry: &Geometry) -> Result<bool> {
    if codec.source == Source::Text {
        return Ok(false);
    }
    let bound = Plan::bind(&Pipeline::parse(registry, &codec.spec)?, geometry, None);
    match bound {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Profile => Ok(codec.profile),
        Err(error) => Err(error),
    }
}

impl<'r> Ready<'r> {
    /// Calibrates those that want it: levels of one codec together, as they share stages. Calls `done` after each.
    pub(crate) fn all(
        codecs: Vec<Codec>,
        registry: &'r Registry,
        geometry: &Geometry,
        calibration: &[KvView<'_>],
        statistics: Option<&Statistics>,
        done: &dyn Fn(),
    ) -> Result<Vec<Self>> {
        let mut shared: BTreeMap<(String, usize), Profile> = BTreeMap::new();
        let mut all = Vec::with_capacity(codecs.len());
        for codec in &codecs {
            let mut ready = || {
                if codec.source == Source::Text {
                    return Ok(Self { codec: codec.clone(), registry, encoder: None, profile: None });
                }
                let pipeline = Pipeline::parse(registry, &codec.spec)?;
                let mut profile = None;
                if wants_profile(codec, registry, geometry)? {
                    let key = (codec.codec.clone(), codec.chunk_tokens);
                    let of_all = match shared.entry(key) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => {
                            let pipelines = together(codec, &codecs, registry)?;
                            let chunk_tokens = codec.chunk_tokens;
                            new.insert(calibrate_with(
                                &pipelines,
                                calibration,
                                chunk_tokens,
                                statistics,
                                &|_| (),
                            )?)
                        }
                    };
                    profile = Some(of_all.only(&pipeline)?);
                }
                let encoder = Some(Encoder::new(pipeline, geometry, profile.as_ref())?);
                Ok(Self { codec: codec.clone(), registry, encoder, profile })
            };
            all.push(ready().map_err(|e: Error| e.at(codec.name()))?);
            done();
        }
        Ok(all)
    }

    /// Whether it has to know how much attention each token got.
    pub(crate) fn wants_importance(&self) -> bool {
        wants_importance(&self.codec, self.registry)
    }

    /// Bytes of the profile, which all contexts share.
    pub(crate) fn profile_bytes(&self) -> usize {
        self.profile.as_ref().map_or(0, |profile| profile.bytes().len())
    }

    /// To a container and back.
    pub(crate) fn run(&self, view: &KvView<'_>) -> Result<Coded> {
        let run = || {
            let encoder = self.encoder.as_ref().ok_or_else(|| Error::setting("nothing to encode"))?;
            let mut container = Vec::new();
            let start = Instant::now();
            let chunk_tokens = self.codec.chunk_tokens;
            let bytes = flow::encode(view, &BTreeMap::new(), encoder, chunk_tokens, &mut container, &|_| ())?;
            let encode_s = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let decode =
                flow::Decode { registry: self.registry, profile: self.profile.as_ref(), backend: &Cpu };
            let decoded = decode.run(&container, &Limits::default(), &|_| ())?;
            let decode_s = start.elapsed().as_secs_f64();
            let parts = Parts::of(&container, self.registry, self.profile.as_ref())?;
            Ok(Coded { bytes, parts, encode_s, decode_s, decoded, container })
        };
        run().at(|| self.codec.name())
    }

    /// Bytes for what the model sees behind the context.
    pub(crate) fn visible_bytes(&self, coded: &Coded, hyper: &Hyper) -> Result<f64> {
        visible::bytes(&coded.container, self.registry, self.profile.as_ref(), hyper).at(|| self.codec.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cacheg::KvCache;

    #[test]
    fn lists_of_codecs() {
        let registry = cacheg::builtins().unwrap();
        let all = parse(&["default".into()]).unwrap();
        assert_eq!(all.len(), 23);
        let more = parse(&["all".into()]).unwrap();
        assert_eq!(more[..23], all[..]);
        let made: Vec<String> = more[23..].iter().filter(|codec| codec.statistics).map(Codec::name).collect();
        assert!(made.len() == more.len() - 23 && made.contains(&"predictive-key@3".to_owned()), "{made:?}");
        for codec in all.iter().filter(|codec| codec.source != Source::Text) {
            Pipeline::parse(&registry, &codec.spec).unwrap();
        }
        assert_eq!(all.iter().filter(|codec| !codec.profile).count(), 1);
        let names: Vec<String> = all[20..].iter().map(Codec::name).collect();
        let behind =
            ["h2o(keep=0.5)+cachegen-paper@1", "prune(keep=0.8)+q8", "prune(keep=0.8)+cachegen-paper@1"];
        assert_eq!(names, behind);
        assert!(all[20].spec.starts_with("h2o(keep=0.5)|anchor-delta") && all[20].source == Source::Context);
        assert_eq!(
            (all[21].source, all[21].spec.as_str()),
            (Source::Pruned(0.8), cacheg::preset("q8").unwrap().spec(None).unwrap())
        );
        let given = "uniform(bits=4;axis=channel,token)|raw, fast@3,q8,cachegen-paper";
        let names: Vec<String> = parse(&[given.into()]).unwrap().iter().map(Codec::name).collect();
        assert_eq!(names, ["uniform(bits=4;axis=channel,token)|raw", "fast@3", "q8", "cachegen-paper@1"]);
        for (bad, why) in [
            ("q9", "unknown preset"),
            ("fast@9", "levels 0 to 3"),
            ("fast@x", "no number"),
            ("prune(keep=2)+q8", "keep"),
        ] {
            let error = parse(&[bad.into()]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// Without a profile.
    fn ready<'r>(codec: Codec, registry: &'r Registry, geometry: &Geometry) -> Ready<'r> {
        let all = Ready::all(vec![codec], registry, geometry, &[], None, &|| ());
        all.unwrap().pop().unwrap()
    }

    #[test]
    fn f16_is_the_same_bits() {
        let registry = cacheg::builtins().unwrap();
        let sample = cacheg::sample().unwrap();
        let cache = KvCache::copy_of(&sample.view(), 0, 20);
        let codec = one("f16").unwrap();
        let coded = ready(codec, &registry, cache.geometry()).run(&cache.view()).unwrap();
        assert_eq!(coded.decoded.cache, cache);
        let values = cache.geometry().values_per_token() * 20;
        let bits = coded.bytes as f64 * 8.0 / values as f64;
        assert!((16.0..16.2).contains(&bits), "{bits}");
        let parts = coded.parts.per_value(values as f64).named();
        assert!((parts.iter().map(|(_, bits)| bits).sum::<f64>() - bits).abs() < 1e-9);
        // No tables, no scales.
        assert_eq!((parts[1].1, parts[2].1, parts[3].1), (0.0, 0.0, 16.0));
    }

    #[test]
    fn scales_and_tables_are_told_apart() {
        let registry = cacheg::builtins().unwrap();
        let sample = cacheg::sample().unwrap();
        let cache = KvCache::copy_of(&sample.view(), 0, 64);
        let values = (cache.geometry().values_per_token() * 64) as f64;
        let parts = |name: &str| {
            let ready = ready(one(name).unwrap(), &registry, cache.geometry());
            ready.run(&cache.view()).unwrap().parts.per_value(values).named().map(|(_, bits)| bits)
        };
        // An f16 for 32 values.
        let [_, carried, side, stream] = parts("q4");
        assert_eq!((carried, side, stream), (0.0, 0.5, 4.0));
        // 34 bytes of a CDF per channel of 64 values: more than the values.
        let [_, carried, _, stream] = parts("cachegen-release");
        assert!(carried > 4.0 && stream > 1.0, "{carried} {stream}");
    }
}
