//! Text fallback: the model computes chunks of a context on top of those that came before.

use std::ops::Range;
use std::sync::Arc;

use cacheg::{Error, KvCache, KvView, Result};
use cacheg_net::fetch::Recompute;

use super::{KvState, Model};

/// A model that [`fetch`](cacheg_net::fetch::fetch) may leave chunks to. It keeps a KV cache of its own as far as it has
/// come: what it has computed it need not take over again.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use cacheg_bench::llm::{Model, Prefill};
/// # fn options(model: Arc<Model>) {
/// let recompute = Some(Box::new(Prefill::new(model, 0)) as Box<dyn cacheg_net::fetch::Recompute>);
/// # }
/// ```
pub struct Prefill {
    model: Arc<Model>,
    position: u64,
    kv: Option<KvState>,
}

impl Prefill {
    /// For a context whose first token is at this position.
    pub fn new(model: Arc<Model>, position: u64) -> Self {
        Self { model, position, kv: None }
    }
}

impl std::fmt::Debug for Prefill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefill").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Recompute for Prefill {
    fn prefix(&mut self, view: &KvView<'_>, rows: Range<usize>) -> Result<()> {
        if view.first_position() != self.position {
            return Err(Error::data(format!(
                "a context at position {}; the model expects {}",
                view.first_position(),
                self.position
            )));
        }
        let kv = match &mut self.kv {
            Some(kv) => kv,
            None => {
                // Element types may be the context's own: whatever shape and RoPE allow.
                self.model.check_view(view)?;
                self.kv.insert(KvState::new(view.geometry()).with_next_position(self.position))
            }
        };
        if kv.tokens() != rows.start {
            return Err(Error::data(format!("rows from {}; the model has {}", rows.start, kv.tokens())));
        }
        kv.extend(view, rows)
    }

    fn compute(&mut self, tokens: &[u32]) -> Result<KvCache> {
        let (model, position) = (&self.model, self.position);
        let kv = self.kv.get_or_insert_with(|| KvState::new(model.geometry()).with_next_position(position));
        let first = kv.tokens();
        if let Err(error) = model.prefill(tokens, kv, None, &|_, _| ()) {
            // Planes may be of different lengths now.
            self.kv = None;
            return Err(error);
        }
        kv.rows_to_cache(first..first + tokens.len())
    }
}
