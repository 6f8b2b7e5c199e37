//! Which invocations of a workgroup are active.

/// Lanes of a subgroup.
pub(crate) const SUBGROUP: usize = 32;
/// Most subgroups of a workgroup: WebGPU's default limit is 256 invocations.
pub(crate) const SUBGROUPS: usize = 8;

/// A bit for each invocation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mask(pub(crate) [u32; SUBGROUPS]);

impl Mask {
    pub(crate) fn first(lanes: usize) -> Self {
        let mut mask = Self::default();
        for lane in 0..lanes {
            mask.0[lane / SUBGROUP] |= 1 << (lane % SUBGROUP);
        }
        mask
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub(crate) fn lanes(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(crate) fn subgroups(self) -> u64 {
        self.0.iter().filter(|word| **word != 0).count() as u64
    }

    pub(crate) fn each(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                (bits != 0).then(|| {
                    let lane = bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    word * SUBGROUP + lane
                })
            })
        })
    }

    /// Of the lanes of `among` whose word says so.
    pub(crate) fn of(words: &[u32], among: Self, is: impl Fn(u32) -> bool) -> Self {
        let mut mask = Self::default();
        for (to, words) in mask.0.iter_mut().zip(words.chunks(SUBGROUP)) {
            for (lane, word) in words.iter().enumerate() {
                *to |= u32::from(is(*word)) << lane;
            }
        }
        mask.and(among)
    }
}
