//! What a codec did to a model's predictions, and how sure that is.

use cacheg_bench::llm::{argmax, log_sum_exp};
use rayon::prelude::*;

/// Predictions of the tokens that follow, one row each.
pub(crate) struct Predictions {
    logits: Vec<Vec<f32>>,
    /// By row, what turns logits into logarithms of probabilities.
    log_sums: Vec<f64>,
}

/// Predictions against those of the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Damage {
    /// Mean over rows of KL(reference ‖ codec), in nats.
    pub(crate) kl: f64,
    /// Rows with the same likeliest token.
    pub(crate) top1_percent: f64,
    pub(crate) perplexity: f64,
    pub(crate) delta_ppl_percent: f64,
}

impl Predictions {
    pub(crate) fn new(logits: Vec<Vec<f32>>) -> Self {
        let log_sums = logits.par_iter().map(|row| log_sum_exp(row)).collect();
        Self { logits, log_sums }
    }

    /// Mean negative log-likelihood of the tokens that did follow; the last row's may be unknown.
    fn loss(&self, next: &[u32]) -> f64 {
        let rows = self.logits.iter().zip(&self.log_sums).zip(next);
        let (mut sum, mut count) = (0.0, 0);
        for ((row, log_sum), token) in rows {
            sum += log_sum - row.get(*token as usize).map_or(f64::NAN, |logit| f64::from(*logit));
            count += 1;
        }
        sum / f64::from(count)
    }

    /// Of a codec's predictions against these.
    pub(crate) fn damage(&self, codec: &Self, next: &[u32]) -> Damage {
        let rows = self.logits.par_iter().zip(&self.log_sums).zip(&codec.logits).zip(&codec.log_sums);
        let each: Vec<(f64, bool)> = rows
            .map(|(((p, p_sum), q), q_sum)| (divergence(p, *p_sum, q, *q_sum), argmax(p) == argmax(q)))
            .collect();
        let rows = each.len() as f64;
        let (reference, loss) = (self.loss(next), codec.loss(next));
        Damage {
            kl: each.iter().map(|(kl, _)| kl).sum::<f64>() / rows,
            top1_percent: each.iter().filter(|(_, same)| *same).count() as f64 * 100.0 / rows,
            perplexity: loss.exp(),
            delta_ppl_percent: (loss - reference).exp_m1() * 100.0,
        }
    }
}

/// KL(p ‖ q) of two rows of logits with the logarithms of their sums.
fn divergence(p: &[f32], p_sum: f64, q: &[f32], q_sum: f64) -> f64 {
    let term = |(p, q): (&f32, &f32)| {
        let log_p = f64::from(*p) - p_sum;
        log_p.exp() * (log_p - (f64::from(*q) - q_sum))
    };
    p.iter().zip(q).map(term).sum()
}

/// Tokens before the first that differs, and the share of places that agree.
pub(crate) fn agreement(reference: &[u32], got: &[u32]) -> (usize, f64) {
    let same = || reference.iter().zip(got).map(|(a, b)| a == b);
    let places = reference.len().max(1) as f64;
    (same().take_while(|same| *same).count(), same().filter(|same| *same).count() as f64 * 100.0 / places)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that are logarithms of these probabilities, shifted.
    fn predictions(rows: &[[f32; 3]], shift: f32) -> Predictions {
        Predictions::new(rows.iter().map(|row| row.iter().map(|p| p.ln() + shift).collect()).collect())
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} {b}");
    }

    #[test]
    fn damage_by_hand() {
        let p = predictions(&[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], 3.0);
        let q = predictions(&[[0.25, 0.25, 0.5], [0.25, 0.125, 0.625]], -1.0);
        let got = p.damage(&q, &[0]);
        // Row 0: 0.5 ln 2 + 0 + 0.25 ln 0.5 = 0.25 ln 2; row 1: 0.125 ln 0.5 + 0.75 ln 1.2.
        let rows = [0.25 * 2f64.ln(), 0.75 * 1.2f64.ln() - 0.125 * 2f64.ln()];
        near(got.kl, (rows[0] + rows[1]) / 2.0);
        near(got.top1_percent, 50.0);
        // The only known token had 1/2 and gets 1/4.
        near(got.perplexity, 4.0);
        near(got.delta_ppl_percent, 100.0);
        // Two tokens: 1/2 and 3/4 become 1/4 and 5/8.
        let got = p.damage(&q, &[0, 2]);
        near(got.perplexity, (4.0f64 * 1.6).sqrt());
        near(got.delta_ppl_percent, ((2.0f64 * 1.2).sqrt() - 1.0) * 100.0);
    }

    #[test]
    fn the_same_predictions_are_no_damage_at_all() {
        let p = predictions(&[[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]], 0.7);
        let got = p.damage(&predictions(&[[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]], 0.7), &[1, 2]);
        assert_eq!((got.kl, got.top1_percent, got.delta_ppl_percent), (0.0, 100.0, 0.0));
    }

    #[test]
    fn agreement_by_hand() {
        assert_eq!(agreement(&[1, 2, 3, 4], &[1, 2, 9, 4]), (2, 75.0));
        assert_eq!(agreement(&[1, 2], &[1, 2]), (2, 100.0));
        assert_eq!(agreement(&[1, 2], &[2, 1]), (0, 0.0));
    }
}
