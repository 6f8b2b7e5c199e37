//! Tables as the inner loops want them: flat arrays of 32 u16, one vector register each.

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
    /// The first symbol of each coded one.
    pub(super) base: [u16; BUCKETS],
    /// log2 of the number of its symbols.
    pub(super) bits: [u16; BUCKETS],
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
        Self { threshold, alias, delta, freq, base, bits }
    }

    /// Coded symbol and offset of a slot.
    #[inline(always)]
    pub(super) fn find(&self, slot: u16) -> (usize, u16) {
        let (bucket, r) = (usize::from(slot / WIDTH), slot % WIDTH);
        let own = r < self.threshold[bucket];
        let symbol = if own { bucket } else { usize::from(self.alias[bucket]) };
        // Below 32 as it is; the mask spares bounds checks.
        (symbol % BUCKETS, if own { r } else { r.wrapping_add(self.delta[bucket]) })
    }
}

/// For encoding one channel.
#[derive(Debug, Clone)]
pub(super) struct EncodeTable {
    /// The coded symbol of each symbol.
    coded: [u8; 256],
    freq: [u16; BUCKETS],
    bits: [u16; BUCKETS],
    /// Pieces of slots by coded symbol: those of `s` are `first[s] .. first[s + 1]`.
    first: [u8; BUCKETS + 1],
    /// First offset of each piece, ascending for each symbol.
    start: [u16; 2 * BUCKETS],
    /// What to add to an offset to get its slot.
    shift: [u16; 2 * BUCKETS],
}

impl EncodeTable {
    /// The reverse of a decoder's table.
    pub(super) fn new(table: &DecodeTable) -> Self {
        let mut coded = [0; 256];
        for (symbol, (base, bits)) in table.base.iter().zip(&table.bits).enumerate() {
            if table.freq[symbol] > 0 {
                let base = usize::from(*base);
                coded[base..base + (1 << bits)].fill(symbol as u8);
            }
        }
        let mut first = [0; BUCKETS + 1];
        let (mut start, mut shift) = ([0; 2 * BUCKETS], [0; 2 * BUCKETS]);
        let mut count = 0;
        for symbol in 0..BUCKETS {
            let own = (table.threshold[symbol] > 0).then_some((0, symbol as u16 * WIDTH));
            let others = (0..BUCKETS)
                .filter(|b| table.threshold[*b] < WIDTH && usize::from(table.alias[*b]) == symbol)
                .map(|b| {
                    let offset = table.threshold[b].wrapping_add(table.delta[b]);
                    (offset, (b as u16 * WIDTH).wrapping_sub(table.delta[b]))
                });
            for (offset, by) in own.into_iter().chain(others) {
                // Each bucket has at most two pieces.
                (start[count], shift[count]) = (offset, by);
                count += 1;
            }
            first[symbol + 1] = count as u8;
        }
        Self { coded, freq: table.freq, bits: table.bits, first, start, shift }
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

    /// The slot of an offset of a coded symbol.
    #[inline(always)]
    pub(super) fn slot(&self, coded: usize, offset: u16) -> u16 {
        let pieces = usize::from(self.first[coded])..usize::from(self.first[coded + 1]);
        // Pieces start at offset 0, so that at least one is not above.
        let at = pieces.start + self.start[pieces].partition_point(|start| *start <= offset) - 1;
        offset.wrapping_add(self.shift[at])
    }

    /// Bits of a symbol.
    pub(super) fn bits(&self, symbol: u8) -> f64 {
        let (coded, bits) = self.coded(symbol);
        16.0 - f64::from(self.freq(coded)).log2() + f64::from(bits)
    }
}
