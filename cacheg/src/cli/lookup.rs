//! `cacheg lookup`

use std::collections::BTreeSet;
use std::path::PathBuf;

use cacheg::core::ResultExt;
use cacheg::net::store::{Found, Hash};
use cacheg::{Error, Result};
use serde_json::json;

use super::stores::{self, StoreArgs};
use cacheg::report::Report;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg lookup ./store --tokens prompt.json\n  cacheg lookup http://host:8080/ --tokens prompt.json --fingerprint 1f0a… --chunk-tokens 256"
)]
pub(crate) struct Args {
    /// The store: a folder or a URL
    url: String,
    /// Token ids of the prompt: a JSON list, or numbers separated by white space
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// Fingerprint of the model, as manifests name it [default: of all models that the store has]
    #[arg(long, value_name = "SHA256")]
    fingerprint: Option<String>,
    /// Tokens per chunk that contexts were published with
    #[arg(long, value_name = "N", default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let text =
        std::fs::read_to_string(&args.tokens).map_err(|e| Error::io("cannot read", &args.tokens, e))?;
    let tokens = token_ids(&text).at(|| args.tokens.display())?;
    let wanted = args.fingerprint.clone().map(Hash::try_from).transpose()?;
    let store = args.store.store(&args.url)?;
    let best = stores::runtime()?.block_on(async {
        // What contexts depend on beside tokens; few differ in it.
        let mut roots = BTreeSet::new();
        for id in store.contexts().await? {
            let manifest = store.manifest(&id).await?;
            let profile = manifest.profile.map(|blob| blob.sha256);
            if wanted.as_ref().is_none_or(|wanted| *wanted == manifest.model.fingerprint) {
                roots.insert((manifest.model.fingerprint, profile, manifest.position));
            }
        }
        let mut best: Option<Found> = None;
        for (fingerprint, profile, position) in &roots {
            let chunk = args.chunk_tokens as usize;
            let found = store.lookup(fingerprint, profile.as_ref(), *position, &tokens, chunk).await?;
            if found.as_ref().map_or(0, |found| found.tokens) > best.as_ref().map_or(0, |found| found.tokens)
            {
                best = found;
            }
        }
        Ok::<_, Error>(best)
    })?;
    let mut report = Report::new("cacheg");
    report.field("prompt_tokens", tokens.len());
    if let Some(found) = &best {
        report.row(json!({
            "name": found.manifest.id.as_str(),
            "context": found.manifest.id.as_str(),
            "model": found.manifest.model.name,
            "tokens": found.tokens,
            "chunks": found.chunks,
        }));
    }
    report.print(args.json, |_| match &best {
        None => format!("nothing stored begins this prompt of {} tokens", tokens.len()),
        Some(found) => format!(
            "context {} has the first {} of {} tokens in {} chunks",
            found.manifest.id,
            found.tokens,
            tokens.len(),
            found.chunks
        ),
    })
}

fn token_ids(text: &str) -> Result<Vec<u32>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|e| Error::data(format!("a JSON list of token ids expected: {e}")));
    }
    let number = |word: &str| word.parse().map_err(|_| Error::data(format!("{word:?} is no token id")));
    text.split_whitespace().map(number).collect()
}
