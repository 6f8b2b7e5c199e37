//! A context's KV cache as somebody receives it: through a codec, or made again from a text.

use std::time::Instant;

use cacheg::core::Importance;
use cacheg::{Error, KvCache, Result};
use cacheg_bench::llm::{KvState, Model, Tokenizer};

use super::codecs::{Coded, Ready};
use super::parts::Parts;
use super::source::{self, Source};

/// What reconstructions are made from.
pub(super) struct Original<'a> {
    pub(super) model: &'a Model,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) context: &'a [u32],
    pub(super) cache: KvCache,
    pub(super) importance: Option<Importance>,
    /// KV caches of pruned contexts, by the share that was kept.
    pub(super) pruned: Vec<(f64, KvCache)>,
}

/// A KV cache that somebody sent.
pub(super) struct Received {
    pub(super) bytes: u64,
    /// Those for what the model sees behind the context, if it has local layers.
    pub(super) visible_bytes: Option<f64>,
    pub(super) parts: Parts,
    pub(super) encode_s: f64,
    pub(super) decode_s: f64,
    pub(super) state: KvState,
}

impl Original<'_> {
    pub(super) fn send(&mut self, ready: &Ready<'_>) -> Result<Received> {
        let coded = match ready.codec.source {
            Source::Text => return self.text(),
            Source::Context => ready.run(&self.cache.view().with_importance(self.importance.as_ref())?)?,
            Source::Pruned(share) => ready.run(&self.pruned(share)?.view())?,
        };
        let state = self.model.state_of(&coded.decoded.view()?)?;
        let hyper = self.model.hyper();
        let visible_bytes = hyper.local.map(|_| ready.visible_bytes(&coded, hyper)).transpose()?;
        let Coded { bytes, parts, encode_s, decode_s, .. } = coded;
        Ok(Received { bytes, visible_bytes, parts, encode_s, decode_s, state })
    }

    fn pruned(&mut self, share: f64) -> Result<&KvCache> {
        let at = match self.pruned.iter().position(|(known, _)| *known == share) {
            Some(at) => at,
            None => {
                let information = source::information(self.model, self.context)?;
                let tokens = source::prune(self.context, &information, share);
                self.pruned.push((share, source::read(self.model, &tokens, false)?.kv.to_cache()?));
                self.pruned.len() - 1
            }
        };
        Ok(&self.pruned[at].1)
    }

    /// The text itself, compressed; whoever receives it prefills.
    fn text(&self) -> Result<Received> {
        let start = Instant::now();
        let text = self.tokenizer.decode(self.context)?;
        let bytes = zstd::bulk::compress(text.as_bytes(), 19).map_err(|e| Error::data(e.to_string()))?;
        let encode_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let state = source::read(self.model, self.context, false)?.kv;
        let decode_s = start.elapsed().as_secs_f64();
        let parts = Parts::only_stream(bytes.len());
        let visible_bytes = self.model.hyper().local.map(|_| bytes.len() as f64);
        Ok(Received { bytes: bytes.len() as u64, visible_bytes, parts, encode_s, decode_s, state })
    }
}
