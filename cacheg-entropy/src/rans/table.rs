//! Tables as the inner loops want them: flat arrays of 32 u16, one vector register each.

use std::hint::select_unpredictable;

use super::alias::{Alias, BUCKETS, WIDTH};
use crate::tables::Table;

/// For decoding one channel.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct DecodeTable {
    /// Slots of a bucket below this belong to the symbol of that number.
    pub(super) threshold: [u16; BUCKETS],
    /// The others belong to this one.
    pub(super) alias: [u16; BUCKETS],
    /// What to add to an alias's slot to get the offset.
    pub(super) delta: [u16; BUCKETS],
    /// Frequencies of coded symbols.
    pub(super) freq: [u16; BUCKETS],
    /// `threshold + 2048·alias`. A bucket that is whole has 0 for the threshold, which leaves all to its alias:
    /// to itself, with the same offsets.
    pub(super) packed: [u16; BUCKETS],
    /// Frequency of each alias.
    pub(super) alias_freq: [u16; BUCKETS],
    /// The first symbol of each coded one.
    pub(super) base: [u16; BUCKETS],
    /// log2 of the number `2^k` of its symbols.
    pub(super) bits: [u16; BUCKETS],
    /// That number.
    pub(super) symbols: [u16; BUCKETS],
    /// 2^16 by that number, modulo 2^16.
    pub(super) keep: [u16; BUCKETS],
}

impl DecodeTable {
    /// Builds the table for a checked stored one.
    pub(super) fn new(alphabet: usize, table: &Table) -> Self {
        let mut freq = [0; BUCKETS];
        for (to, from) in freq.iter_mut().zip(table.frequencies(alphabet)) {
            *to = from;
        }
        let (mut base, mut bits) = (std::array::from_fn(|symbol| symbol as u16), [0; BUCKETS]);
        let mut next = 0;
        for ((base, bits), k) in base.iter_mut().zip(&mut bits).zip(&table.bits) {
            (*base, *bits) = (next, u16::from(*k));
            next += 1 << k;
        }
        let Alias { threshold, alias, delta } = Alias::new(&freq);
        let alias_freq = alias.map(|symbol| freq[usize::from(symbol)]);
        let symbols = bits.map(|k| 1 << k);
        let keep = bits.map(|k| (1u32 << (16 - k)) as u16);
        let packed = std::array::from_fn(|b| threshold[b] % WIDTH + alias[b] * WIDTH);
        Self { threshold, alias, delta, freq, packed, alias_freq, base, bits, symbols, keep }
    }

    /// Decodes a coded symbol; the state behind it is not refilled.
    #[inline(always)]
    pub(super) fn step(&self, x: u32) -> (usize, u32) {
        let (bucket, r) = ((x >> 11) as usize % BUCKETS, x as u16 % WIDTH);
        let own = r < self.threshold[bucket];
        // Below 32 as it is; the mask spares bounds checks.
        let symbol = select_unpredictable(own, bucket, usize::from(self.alias[bucket]) % BUCKETS);
        let freq = select_unpredictable(own, self.freq[bucket], self.alias_freq[bucket]);
        let offset = r.wrapping_add(select_unpredictable(own, 0, self.delta[bucket]));
        (symbol, u32::from(freq) * (x >> 16) + u32::from(offset))
    }
}

/// Pieces that begin in one cell: nearly always fewer.
pub(super) const MAX_BOUNDS: usize = 4;

/// For encoding one channel.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct EncodeTable {
    pub(super) freq: [u16; BUCKETS],
    /// Low and high halves of the bits of f32 reciprocals of the frequencies, a little too small:
    /// for any `x < f·2^16`, `x` as f32 times the reciprocal, rounded down, is `x div f` or one less.
    pub(super) reciprocal_low: [u16; BUCKETS],
    pub(super) reciprocal_high: [u16; BUCKETS],
    /// Offsets below this lie in the symbol's own bucket.
    pub(super) threshold: [u16; BUCKETS],
    /// What to add to other offsets to get their place in the row of all pieces.
    pub(super) place: [u16; BUCKETS],
    /// Where each piece begins in that row, ascending from 0; 65,535 behind the last one.
    pub(super) pieces: [u16; BUCKETS],
    /// The row is divided into cells of 2,048. The piece in which each cell begins.
    pub(super) cell: [u16; BUCKETS],
    /// Where pieces begin inside each cell, 65,535 if there are no more.
    pub(super) bounds: [[u16; BUCKETS]; MAX_BOUNDS],
    /// The most of them in one cell; more than `MAX_BOUNDS` are not in `bounds`.
    pub(super) most: u8,
    /// What to add to an offset in a piece to get its slot.
    pub(super) shift: [u16; BUCKETS],
    /// log2 of the number of symbols of each coded one.
    pub(super) bits: [u16; BUCKETS],
    /// As in [`DecodeTable`].
    pub(super) symbols: [u16; BUCKETS],
    pub(super) keep: [u16; BUCKETS],
    /// The coded symbol of each symbol.
    pub(super) coded: [u8; 256],
    /// ⌈2^48 / f⌉: `x div f` is the product's bits from 48, exactly, for any `x < f·2^16`.
    reciprocal: [u64; BUCKETS],
    /// One frequency is more than half of all.
    pub(super) wide: bool,
}

impl EncodeTable {
    /// The reverse of a decoder's table.
    pub(super) fn new(table: &DecodeTable) -> Self {
        let mut new = Self {
            freq: table.freq,
            reciprocal_low: [0; BUCKETS],
            reciprocal_high: [0; BUCKETS],
            threshold: std::array::from_fn(|s| table.threshold[s].min(table.freq[s])),
            place: [0; BUCKETS],
            pieces: [u16::MAX; BUCKETS],
            cell: [0; BUCKETS],
            bounds: [[u16::MAX; BUCKETS]; MAX_BOUNDS],
            most: 0,
            shift: [0; BUCKETS],
            bits: table.bits,
            symbols: table.symbols,
            keep: table.keep,
            coded: [0; 256],
            reciprocal: [0; BUCKETS],
            wide: table.freq.iter().any(|f| *f > 1 << 15),
        };
        // Symbols begin at new cells if there are enough of them: that makes for fewer pieces in one.
        let width = usize::from(WIDTH);
        let mass = |symbol: usize| usize::from(new.freq[symbol] - new.threshold[symbol]);
        let aligned = (0..BUCKETS).map(|symbol| mass(symbol).div_ceil(width)).sum::<usize>() <= BUCKETS;
        let mut inside = [0; BUCKETS];
        let (mut count, mut next) = (0, 0usize);
        for symbol in 0..BUCKETS {
            let freq = table.freq[symbol];
            if freq == 0 {
                continue;
            }
            let base = usize::from(table.base[symbol]);
            new.coded[base..base + (1 << table.bits[symbol])].fill(symbol as u8);
            new.reciprocal[symbol] = (1u64 << 48).div_ceil(u64::from(freq));
            let bits = reciprocal(freq).to_bits();
            new.reciprocal_low[symbol] = bits as u16;
            new.reciprocal_high[symbol] = (bits >> 16) as u16;
            if aligned {
                next = next.next_multiple_of(width);
            }
            new.place[symbol] = (next as u16).wrapping_sub(new.threshold[symbol]);
            for b in 0..BUCKETS {
                if table.threshold[b] < WIDTH && usize::from(table.alias[b]) == symbol {
                    // At most 31 pieces, all below 65,535: at least one bucket is whole.
                    new.pieces[count] = next as u16;
                    new.shift[count] = (b as u16 * WIDTH).wrapping_sub(table.delta[b]);
                    let end = next + usize::from(WIDTH - table.threshold[b]);
                    if next % width != 0 {
                        let cell = next / width;
                        if let Some(bounds) = new.bounds.get_mut(inside[cell]) {
                            bounds[cell] = next as u16;
                        }
                        inside[cell] += 1;
                        new.most = new.most.max(inside[cell] as u8);
                    }
                    for cell in next.div_ceil(width)..end.div_ceil(width) {
                        new.cell[cell] = count as u16;
                    }
                    next = end;
                    count += 1;
                }
            }
        }
        new
    }

    /// Coded symbol and number of low bits of a symbol.
    #[inline(always)]
    pub(super) fn coded(&self, symbol: u8) -> (usize, u32) {
        let coded = usize::from(self.coded[usize::from(symbol)]) % BUCKETS;
        (coded, u32::from(self.bits[coded]))
    }

    /// Frequency of a coded symbol.
    #[inline(always)]
    pub(super) fn freq(&self, coded: usize) -> u32 {
        u32::from(self.freq[coded])
    }

    /// Quotient and remainder of a state by the frequency of a coded symbol, where the quotient is below 2^16.
    #[inline(always)]
    pub(super) fn divide(&self, x: u32, coded: usize) -> (u32, u16) {
        let quotient = (u64::from(x) * self.reciprocal[coded]) >> 48;
        // Remainders are below the frequency.
        (quotient as u32, (x as u16).wrapping_sub((quotient as u16).wrapping_mul(self.freq[coded])))
    }

    /// The slot of an offset of a coded symbol.
    #[inline(always)]
    pub(super) fn slot(&self, coded: usize, offset: u16) -> u16 {
        let place = offset.wrapping_add(self.place[coded]);
        let piece = if usize::from(self.most) <= MAX_BOUNDS {
            let cell = usize::from(place / WIDTH);
            let bounds = self.bounds.iter().map(|bounds| usize::from(bounds[cell] <= place));
            usize::from(self.cell[cell]) + bounds.sum::<usize>()
        } else {
            self.pieces.partition_point(|begin| *begin <= place).saturating_sub(1)
        };
        // The mask spares a bounds check.
        let (own, other) = (coded as u16 * WIDTH, self.shift[piece % BUCKETS]);
        offset.wrapping_add(select_unpredictable(offset < self.threshold[coded], own, other))
    }

    /// Bits of a symbol.
    pub(super) fn bits(&self, symbol: u8) -> f64 {
        let (coded, bits) = self.coded(symbol);
        16.0 - f64::from(self.freq(coded)).log2() + f64::from(bits)
    }
}

/// The reciprocal of a frequency, less a part in 2^21. With three roundings (of `x`, of the reciprocal and of the
/// product) of at most 2^-24 each, `x` times it is below `x / freq` by at most `65,536 · 2^-20 < 1`.
fn reciprocal(freq: u16) -> f32 {
    ((1.0 - 1.0 / f64::from(1 << 21)) / f64::from(freq)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quotients at both ends of every multiple that could round badly.
    #[test]
    fn division_is_exact() {
        let mut quotients: Vec<u64> = (0..16).flat_map(|k| [1 << k, (1 << k) - 1, (1 << k) + 1]).collect();
        quotients.extend([65_535, 65_534, 43_690, 50_001]);
        for freq in 1..=u16::MAX {
            let f = u64::from(freq);
            let exact = (1u64 << 48).div_ceil(f);
            let reciprocal = reciprocal(freq);
            for q in &quotients {
                for x in [q * f, q * f + 1, q * f + f / 2, q * f + f - 1] {
                    let x = x.min(q * f + f - 1);
                    assert_eq!((x * exact) >> 48, *q, "{x} / {freq}");
                    let estimate = (x as u32 as f32 * reciprocal) as u64;
                    assert!(estimate == *q || estimate + 1 == *q, "{x} / {freq}: {estimate}");
                }
            }
        }
    }
}
