//! Alias tables. The construction is part of the format: see the [module above](super).

/// Coded symbols, and buckets.
pub(super) const BUCKETS: usize = 32;

/// Slots of a bucket.
pub(super) const WIDTH: u16 = 2048;

/// Where each slot belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) threshold: [u16; BUCKETS],
    pub(super) alias: [u16; BUCKETS],
    pub(super) delta: [u16; BUCKETS],
}

impl Alias {
    /// Builds the table for frequencies that sum to 65,536, zeros behind the last symbol.
    pub(super) fn new(freqs: &[u16; BUCKETS]) -> Self {
        let mut table = Self {
            threshold: [WIDTH; BUCKETS],
            alias: std::array::from_fn(|bucket| bucket as u16),
            delta: [0; BUCKETS],
        };
        let mut rest = *freqs;
        let mask = |rest: &[u16; BUCKETS], test: fn(&u16) -> bool| {
            rest.iter().enumerate().fold(0u32, |mask, (b, f)| mask | u32::from(test(f)) << b)
        };
        let (mut small, mut large) = (mask(&rest, |f| *f < WIDTH), mask(&rest, |f| *f > WIDTH));
        let aliased = loop {
            let (b, l) = (small.trailing_zeros() as usize, large.trailing_zeros() as usize);
            if b >= BUCKETS || l >= BUCKETS {
                break table.threshold.iter().enumerate().filter(|(_, t)| **t < WIDTH);
            }
            small &= small - 1;
            table.threshold[b] = rest[b];
            table.alias[b] = l as u16;
            rest[l] -= WIDTH - rest[b];
            if rest[l] <= WIDTH {
                large &= large - 1;
                small |= u32::from(rest[l] < WIDTH) << l;
            }
        };
        let mut next = table.threshold;
        for (b, threshold) in aliased {
            let next = &mut next[usize::from(table.alias[b])];
            table.delta[b] = next.wrapping_sub(*threshold);
            *next = next.wrapping_add(WIDTH - threshold);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::normalize;

    /// Every symbol has as many slots as its frequency, with offsets `0 .. f`, each once.
    #[test]
    fn slots_cover_every_symbol_exactly() {
        let mut seed = 1u64;
        for n in 2..=BUCKETS {
            for kind in 0..12 {
                let weights: Vec<u64> = (0..n as u64)
                    .map(|i| {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        match kind {
                            0 => 1,
                            1 => u64::from(i == 0),
                            2 => u64::from(i + 1 == n as u64),
                            3 => 1 << i,
                            k => (seed >> 33) >> ((seed >> 20) % k * 2),
                        }
                    })
                    .collect();
                let mut freqs = [0; BUCKETS];
                freqs[..n].copy_from_slice(&normalize(&weights));
                let table = Alias::new(&freqs);
                let mut seen: Vec<Vec<bool>> = freqs.iter().map(|f| vec![false; usize::from(*f)]).collect();
                for slot in 0..=u16::MAX {
                    let (b, r) = (usize::from(slot / WIDTH), slot % WIDTH);
                    let (symbol, offset) = if r < table.threshold[b] {
                        (b, r)
                    } else {
                        (usize::from(table.alias[b]), r.wrapping_add(table.delta[b]))
                    };
                    let seen = &mut seen[symbol][usize::from(offset)];
                    assert!(!*seen);
                    *seen = true;
                }
            }
        }
    }
}
