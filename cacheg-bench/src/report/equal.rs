//! Bits at equal damage: between the levels of a codec, straight in the logarithm of the KL.

/// Beyond the levels of a codec a line is prolonged so far, as a factor of KL; further out nothing is said.
pub(crate) const BEYOND: f64 = 2.0;

/// A level of a codec: bits per value and KL, or another damage above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Level {
    pub(crate) bits: f64,
    pub(crate) kl: f64,
}

/// Where a codec reaches a given KL.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At {
    pub(crate) bits: f64,
    /// No level is that good, or that bad.
    pub(crate) extrapolated: bool,
}

/// The fewest bits at which a line through the levels has this KL. `beyond`: see [`BEYOND`].
pub(crate) fn bits_at(levels: &[Level], kl: f64, beyond: f64) -> Option<At> {
    let mut levels: Vec<Level> =
        levels.iter().copied().filter(|level| level.kl > 0.0 && level.bits.is_finite()).collect();
    levels.sort_by(|a, b| a.bits.total_cmp(&b.bits));
    if levels.len() < 2 || kl.is_nan() || kl <= 0.0 {
        return None;
    }
    let mut segments = levels.windows(2).map(|pair| (pair[0], pair[1]));
    let holds = |(a, b): &(Level, Level)| a.kl.min(b.kl) <= kl && kl <= a.kl.max(b.kl) && a.kl != b.kl;
    if let Some(segment) = segments.clone().find(holds) {
        return Some(At { bits: on(segment, kl), extrapolated: false });
    }
    let (first, last) = (levels[0].kl, levels[levels.len() - 1].kl);
    let (segment, end) =
        if kl < last.min(first) { (segments.next_back()?, last) } else { (segments.clone().next()?, first) };
    let far = (kl / end).ln().abs();
    // A line that does not fall says nothing about what is beyond its end.
    let falls = segment.1.kl < segment.0.kl && segment.0.bits < segment.1.bits;
    let bits = on(segment, kl);
    (far <= beyond.ln() && falls && bits > 0.0).then_some(At { bits, extrapolated: true })
}

fn on((a, b): (Level, Level), kl: f64) -> f64 {
    let share = (kl / a.kl).ln() / (b.kl / a.kl).ln();
    a.bits + share * (b.bits - a.bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(points: &[(f64, f64)]) -> Vec<Level> {
        points.iter().map(|(bits, kl)| Level { bits: *bits, kl: *kl }).collect()
    }

    #[track_caller]
    fn check(levels: &[Level], kl: f64, bits: Option<f64>, extrapolated: bool) {
        match (bits_at(levels, kl, BEYOND), bits) {
            (None, None) => {}
            (Some(at), Some(bits)) => {
                assert!((at.bits - bits).abs() < 1e-9 && at.extrapolated == extrapolated, "{at:?}");
            }
            (got, want) => panic!("{got:?} {want:?}"),
        }
    }

    #[test]
    fn straight_in_the_logarithm() {
        // A tenth of the KL for a bit more, in any order.
        let line = levels(&[(3.0, 0.01), (2.0, 0.1), (4.0, 0.001)]);
        check(&line, 0.1, Some(2.0), false);
        check(&line, 0.01, Some(3.0), false);
        check(&line, 0.01 / 10f64.sqrt(), Some(3.5), false);
        check(&line, 0.05, Some(2.0 + 2f64.log10()), false);
        check(&line, 0.001, Some(4.0), false);
    }

    #[test]
    fn beyond_the_ends_a_little_and_no_further() {
        let line = levels(&[(3.0, 0.01), (2.0, 0.1)]);
        check(&line, 0.2, Some(2.0 - 2f64.log10()), true);
        check(&line, 0.005, Some(3.0 + 2f64.log10()), true);
        check(&line, 0.201, None, true);
        check(&line, 0.0049, None, true);
        // Prolonged below no bits at all.
        check(&levels(&[(0.1, 0.1), (1.1, 0.01)]), 0.19, None, true);
    }

    #[test]
    fn lines_that_are_none() {
        check(&[], 0.1, None, false);
        check(&levels(&[(3.0, 0.01)]), 0.01, None, false);
        check(&levels(&[(3.0, 0.0), (2.0, 0.1)]), 0.05, None, false);
        check(&levels(&[(3.0, 0.01), (2.0, 0.1)]), 0.0, None, false);
        check(&levels(&[(3.0, 0.01), (2.0, 0.1)]), f64::NAN, None, false);
        // More bits and more damage: within it there is an answer, beyond there is none.
        check(&levels(&[(2.0, 0.01), (3.0, 0.1)]), 0.05, Some(2.0 + 5f64.log10()), false);
        check(&levels(&[(2.0, 0.01), (3.0, 0.1)]), 0.009, None, true);
        check(&levels(&[(2.0, 0.01), (2.0, 0.01)]), 0.009, None, true);
        // A dent: the fewest bits count.
        check(
            &levels(&[(1.0, 0.1), (2.0, 0.01), (3.0, 0.1), (4.0, 0.001)]),
            0.05,
            Some(1.0 + 2f64.log10()),
            false,
        );
    }
}
