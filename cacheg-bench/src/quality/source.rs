//! Where the KV cache that a codec is given comes from.

use std::collections::BTreeSet;

use cacheg::core::Importance;
use cacheg::{Error, Result};
use cacheg_bench::llm::{AttentionSums, KvState, Model, Observer};
use candle_core::Tensor;

/// Queries at the end that count as recent.
const RECENT: usize = 64;

/// Rows of predictions in memory at a time.
const ROWS: usize = 256;

/// What a codec is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// The KV cache of the context.
    Context,
    /// That of this share of its tokens, prefilled without the others: those that say most (LLMLingua,
    /// arXiv 2310.05736, prunes prompts by what a small model finds likely anyway; here the model judges by itself).
    Pruned(f64),
    /// Nothing: the text is sent and prefilled again.
    Text,
}

impl Source {
    /// From `keep=SHARE`.
    pub(super) fn pruned(settings: &str) -> Result<Self> {
        let share = settings.trim().strip_prefix("keep=").and_then(|share| share.trim().parse::<f64>().ok());
        match share {
            Some(share) if share > 0.0 && share <= 1.0 => Ok(Self::Pruned(share)),
            _ => Err(Error::setting(format!(
                "`prune({settings})`: a share to keep is wanted, above 0 and at most 1, as in `prune(keep=0.8)`"
            ))),
        }
    }
}

/// A context that the model has read.
pub(crate) struct Read {
    pub(crate) kv: KvState,
    /// The row of the last token.
    pub(crate) last: Tensor,
    /// If asked for.
    pub(crate) importance: Option<Importance>,
}

/// Prefills.
pub(crate) fn read(model: &Model, tokens: &[u32], importance: bool) -> Result<Read> {
    let mut kv = KvState::new(model.geometry());
    let statistics = importance.then(|| AttentionSums::new(model.hyper(), tokens.len(), RECENT));
    let observer = statistics.as_ref().map(|statistics| statistics as &dyn Observer);
    let last = model.prefill(tokens, &mut kv, observer, &|_, _| ())?;
    let importance = statistics.map(|statistics| {
        let mut importance = Importance::new(tokens.len(), Some(statistics.recent() as u64));
        for layer in statistics.into_layers() {
            importance.push_layer(model.hyper().kv_heads, &layer.accumulated, &layer.recent)?;
        }
        Ok::<_, Error>(importance)
    });
    Ok(Read { kv, last, importance: importance.transpose()? })
}

/// How much each token says: −ln of the probability that the model gives it behind those before it. The first one has
/// nothing before it and says more than any other.
pub(crate) fn information(model: &Model, tokens: &[u32]) -> Result<Vec<f64>> {
    let hidden = model.forward(tokens, &mut KvState::new(model.geometry()))?;
    let mut information = vec![f64::INFINITY];
    for first in (0..tokens.len().saturating_sub(1)).step_by(ROWS) {
        let rows = ROWS.min(tokens.len() - 1 - first);
        let rows = hidden.narrow(0, first, rows).map_err(|e| Error::data(e.to_string()))?;
        let likelihoods = model.log_likelihoods(&rows, &tokens[first + 1..])?;
        information.extend(likelihoods.iter().map(|likelihood| -likelihood));
    }
    Ok(information)
}

/// This share of the tokens, at least one, in their order: those with most information, of equals the first.
pub(crate) fn prune(tokens: &[u32], information: &[f64], share: f64) -> Vec<u32> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by(|a, b| information[*b].total_cmp(&information[*a]).then(a.cmp(b)));
    let keep = ((tokens.len() as f64 * share).ceil() as usize).clamp(1, tokens.len().max(1));
    let kept: BTreeSet<usize> = order.into_iter().take(keep).collect();
    kept.into_iter().map(|at| tokens[at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_most_stays_in_order() {
        let information = [f64::INFINITY, 0.1, 3.0, 0.1, 2.0];
        let pruned = |share| prune(&[10, 11, 12, 13, 14], &information, share);
        assert_eq!(pruned(0.6), [10, 12, 14]);
        assert_eq!(pruned(0.61), [10, 11, 12, 14]);
        assert_eq!(pruned(1.0), [10, 11, 12, 13, 14]);
        assert_eq!(pruned(0.001), [10]);
        assert!(prune(&[], &[], 0.5).is_empty());
    }

    #[test]
    fn shares_are_checked() {
        assert_eq!(Source::pruned("keep=0.8").unwrap(), Source::Pruned(0.8));
        for bad in ["", "keep=0", "keep=1.1", "keep=NaN", "share=0.5"] {
            assert!(Source::pruned(bad).unwrap_err().to_string().contains("prune("), "{bad}");
        }
    }
}
