//! The same context in a store several times, with the levels of each method.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cacheg::core::KvView;
use cacheg::net::store::{ContextId, Manifest};
use cacheg::{Error, KvCache, Pipeline, Profile, Result, calibrate, levels};
use cacheg_bench::llm::{Model, Tokenizer};

use super::protocol::Text;
use crate::publish::{How, put};
use crate::quality::contexts as texts;

/// Between levels 1 and 2 of `fast`: as much damage as `cachegen-paper` level 1, in fewer bits.
const BETWEEN: &str =
    "fast@1.4=sinks(first=4)|mean|bins(step=0.4;level=1.4;reach=15)|rans(tables=channel;carried=class)";

/// What there is to fetch.
pub(crate) struct Prepared {
    /// By ladder, and of each text.
    pub(crate) manifests: Vec<(&'static str, Manifest)>,
    /// The profile, as a file for clients.
    pub(crate) profile: PathBuf,
}

/// Those that quality is measured on come in pairs; a pair is long enough for a context.
const KINDS: [&str; 5] = ["novel", "prose", "code", "licence", "chat"];

/// The beginning of the given texts, or of so many kinds of those that quality is measured on.
pub(crate) fn read(
    given: &[PathBuf],
    tokenizer: &Tokenizer,
    kinds: usize,
    (tokens, continuation): (usize, usize),
) -> Result<Vec<Text>> {
    let mut all = Vec::new();
    if given.is_empty() {
        for kind in KINDS.iter().take(kinds) {
            let mut ids = Vec::new();
            for (_, content) in texts::TEST.iter().filter(|(name, _)| name.starts_with(kind)) {
                ids.extend(tokenizer.encode(content)?);
            }
            all.push((*kind, ids));
        }
    } else {
        let mut ids = Vec::new();
        for path in given {
            let content = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
            ids.extend(tokenizer.encode(&content)?);
        }
        all.push(("given", ids));
    }
    let cut = |(name, mut ids): (&str, Vec<u32>)| {
        let wanted = tokens + continuation;
        if ids.len() < wanted {
            return Err(Error::data(format!(
                "{} tokens, and {wanted} of context and continuation were asked for",
                ids.len()
            ))
            .at(format!("text `{name}`")));
        }
        ids.truncate(wanted);
        let continuation = ids.split_off(tokens);
        Ok(Text { tokens: ids, continuation })
    };
    all.into_iter().map(cut).collect()
}

/// The name of a text's context in the store.
pub(crate) fn id(ladder: &str, text: usize) -> String {
    format!("{ladder}-{text}")
}

/// Name, presets, further specs, tokens of a chunk if not the usual ones.
type Ladder = (&'static str, &'static [&'static str], &'static [&'static str], Option<usize>);

const LADDERS: &[Ladder] = &[
    (
        "simple",
        &[],
        &[
            "f16=bytes|raw",
            "q8=uniform(bits=8;axis=token;group=32)|raw",
            "q4=uniform(bits=4;axis=token;group=32)|raw",
        ],
        None,
    ),
    // Its tables are made for chunks of 256 tokens.
    ("release", &["cachegen-release@1"], &[], Some(256)),
    ("paper", &["cachegen-paper"], &[], None),
    ("fast", &["fast@0", "fast@1"], &[BETWEEN], None),
];

/// Prefills the texts, calibrates a profile and publishes everything to a folder.
pub(crate) fn prepare(
    model: &Model,
    model_name: &str,
    tokenizer: &Tokenizer,
    texts: &[Text],
    chunk_tokens: usize,
    folder: &Path,
) -> Result<Prepared> {
    let registry = Arc::new(cacheg::builtins()?);
    let mut ladders = Vec::new();
    for (name, presets, specs, chunk) in LADDERS {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut ladder = levels::parse(&registry, &strings(presets), &strings(specs))?;
        if *name == "fast" {
            ladder.extend(levels::parse(&registry, &strings(&["fast@2", "fast@3"]), &[])?);
        }
        ladders.push((*name, ladder, chunk.unwrap_or(chunk_tokens).min(chunk_tokens.max(1))));
    }
    let calibrated = ladders.iter().filter(|(name, ..)| ["paper", "fast"].contains(name));
    let pipelines: Vec<Pipeline> =
        calibrated.flat_map(|(_, ladder, _)| ladder.iter().map(|level| level.pipeline.clone())).collect();
    let profile = Arc::new(profile(model, tokenizer, &pipelines, texts, chunk_tokens)?);
    let path = folder.join("model.cgprof");
    std::fs::write(&path, profile.bytes()).map_err(|e| Error::io("cannot write", &path, e))?;

    let url = folder.join("store");
    let url = url.to_str().ok_or_else(|| Error::setting("the folder's name is not UTF-8"))?;
    let (store, runtime) = (crate::publish::open(url)?, crate::runtime()?);
    let mut manifests = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let cache = Arc::new(crate::publish::prefill(model, &text.tokens)?);
        for (name, levels, chunk_tokens) in &ladders {
            let how = How {
                // The public code has no profile: every chunk carries its tables.
                profile: (*name != "release").then(|| profile.clone()),
                levels: levels.clone(),
                chunk_tokens: *chunk_tokens,
                id: Some(ContextId::new(id(name, index))?),
                replace: false,
            };
            let published = put(&store, &registry, model_name, (&text.tokens, &cache), how);
            manifests.push((*name, runtime.block_on(published)?.manifest));
        }
    }
    Ok(Prepared { manifests, profile: path })
}

/// Calibrated on other texts than the one that is fetched.
fn profile(
    model: &Model,
    tokenizer: &Tokenizer,
    pipelines: &[Pipeline],
    tested: &[Text],
    chunk_tokens: usize,
) -> Result<Profile> {
    let mut others = texts::read(&["default".to_owned()], texts::CALIBRATION, tokenizer)?;
    let most = tested.iter().map(|text| text.tokens.len()).max().unwrap_or(0).min(1_024);
    let mut caches: Vec<KvCache> = Vec::new();
    let bar = cacheg::report::progress(others.len() as u64, "calibrating");
    for other in &mut others {
        other.ids.truncate(most);
        caches.push(crate::publish::prefill(model, &other.ids)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let views: Vec<KvView<'_>> = caches.iter().map(KvCache::view).collect();
    calibrate(pipelines, &views, chunk_tokens, &|_| ())
}
