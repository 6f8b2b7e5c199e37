//! How grades are coded: a range coder, with a table for each sum of the two grades that are known already: of the same
//! head's token before, and of the same token's head before.

use cacheg_core::{Error, GRADES, Result};
use constriction::stream::model::ContiguousCategoricalEntropyModel;
use constriction::stream::queue::{RangeDecoder, RangeEncoder};
use constriction::stream::{Decode, Encode};

/// Sums of two grades, one grade alone (of either kind), none.
pub(super) const CONTEXTS: usize = 2 * GRADES - 1 + 2 * GRADES + 1;

const PRECISION: usize = 16;

type Model = ContiguousCategoricalEntropyModel<u16, Vec<u16>, PRECISION>;

/// Tables, one for each context.
pub(super) struct Codebook {
    models: Vec<Model>,
}

/// Which table a grade is coded by.
fn context(before: Option<u8>, beside: Option<u8>) -> usize {
    let alone = 2 * GRADES - 1;
    match (before, beside) {
        (Some(a), Some(b)) => usize::from(a) + usize::from(b),
        (Some(a), None) => alone + usize::from(a),
        (None, Some(b)) => alone + GRADES + usize::from(b),
        (None, None) => alone + 2 * GRADES,
    }
}

/// Calls `each` with the context of every grade of `[tokens, heads]` in turn; it returns the grade.
fn walk(heads: usize, tokens: usize, mut each: impl FnMut(usize) -> Result<u8>) -> Result<()> {
    let mut before = vec![None; heads];
    for _ in 0..tokens {
        let mut beside = None;
        for before in &mut before {
            let grade = each(context(*before, beside))?;
            (*before, beside) = (Some(grade), Some(grade));
        }
    }
    Ok(())
}

/// How often each grade was seen in each context.
#[derive(Debug)]
pub(super) struct Counts(Vec<u32>);

impl Counts {
    pub(super) fn new() -> Self {
        Self(vec![0; CONTEXTS * GRADES])
    }

    pub(super) fn add(&mut self, heads: usize, grades: &[u8]) {
        let mut rest = grades.iter();
        let tokens = grades.len() / heads.max(1);
        // Never fails: there are as many grades as are asked for.
        let _ = walk(heads, tokens, |context| {
            let grade = rest.next().copied().unwrap_or(0) % GRADES as u8;
            let count = &mut self.0[context * GRADES + usize::from(grade)];
            *count = count.saturating_add(1);
            Ok(grade)
        });
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

/// Frequencies that add up to 65,536 in each context, none of them 0.
pub(super) fn frequencies(counts: &[u64]) -> Vec<u16> {
    let all: Vec<u64> = (0..GRADES).map(|grade| counts.iter().skip(grade).step_by(GRADES).sum()).collect();
    let share =
        |counts: &[u64], grade: usize| counts[grade] as f64 / counts.iter().sum::<u64>().max(1) as f64;
    let table = |own: &[u64]| {
        // Where little was seen, as everywhere; a little of everything.
        let total = own.iter().sum::<u64>() as f64;
        let weight = |grade: usize| {
            0.01 / GRADES as f64
                + 0.99 * (share(own, grade) * total + share(&all, grade) * 4.0) / (total + 4.0)
        };
        let sum: f64 = (0..GRADES).map(weight).sum();
        let room = f64::from(u16::MAX) - GRADES as f64;
        let mut table: Vec<u16> = (0..GRADES).map(|grade| 1 + (weight(grade) / sum * room) as u16).collect();
        let rest = (1u32 << PRECISION) - table.iter().map(|frequency| u32::from(*frequency)).sum::<u32>();
        if let Some(most) = table.iter_mut().max() {
            *most += rest as u16;
        }
        table
    };
    counts.chunks_exact(GRADES).flat_map(table).collect()
}

impl Codebook {
    /// From frequencies.
    ///
    /// # Errors
    /// If they are no frequencies.
    pub(super) fn new(frequencies: &[u16]) -> Result<Self> {
        let model = |own: &[u16]| {
            let sum: u32 = own.iter().map(|frequency| u32::from(*frequency)).sum();
            if sum != 1 << PRECISION || own.contains(&0) {
                return Err(Error::profile("frequencies of grades that do not add up to 65,536, or a 0"));
            }
            Model::from_nonzero_fixed_point_probabilities(own.iter().copied(), false)
                .map_err(|()| Error::profile("impossible frequencies of grades"))
        };
        let models = frequencies.chunks_exact(GRADES).map(model).collect::<Result<Vec<_>>>()?;
        if models.len() != CONTEXTS || frequencies.len() != CONTEXTS * GRADES {
            return Err(Error::profile("frequencies of grades for other contexts"));
        }
        Ok(Self { models })
    }

    /// For calibration, which codes nothing.
    pub(super) fn flat() -> Result<Self> {
        Self::new(&frequencies(&vec![0; CONTEXTS * GRADES]))
    }

    pub(super) fn pack(&self, heads: usize, grades: &[u8]) -> Vec<u8> {
        let mut encoder = RangeEncoder::<u16, u64>::new();
        let mut rest = grades.iter();
        // Never fails: tables have all grades, and there are as many as are asked for.
        let _ = walk(heads, grades.len() / heads.max(1), |context| {
            let grade = rest.next().copied().unwrap_or(0);
            encoder
                .encode_symbol(usize::from(grade), &self.models[context])
                .map_err(|_| Error::data("a grade without a table"))?;
            Ok(grade)
        });
        let words = encoder.into_compressed().unwrap_or_default();
        words.iter().flat_map(|word: &u16| word.to_be_bytes()).collect()
    }

    pub(super) fn unpack(&self, heads: usize, bytes: &[u8], grades: &mut [u8]) -> Result<()> {
        let (words, []) = bytes.as_chunks::<2>() else {
            return Err(Error::corrupt("grades are no whole words"));
        };
        let words: Vec<u16> = words.iter().map(|word| u16::from_be_bytes(*word)).collect();
        let wrong = || Error::corrupt("grades of tokens");
        let decoder = RangeDecoder::<u16, u64, _>::from_compressed(words);
        let mut decoder = decoder.map_err(|_| wrong())?;
        let tokens = grades.len() / heads.max(1);
        let mut out = grades.iter_mut();
        walk(heads, tokens, |context| {
            let grade = decoder.decode_symbol(&self.models[context]).map_err(|_| wrong())? as u8;
            if let Some(out) = out.next() {
                *out = grade;
            }
            Ok(grade)
        })?;
        // Bytes that are missing read as zeros, which some grades are coded to: only the encoder knows where they end.
        if self.pack(heads, grades) == bytes { Ok(()) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(heads: usize, tokens: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8
        };
        (0..heads * tokens).map(|_| next().min(next())).collect()
    }

    #[test]
    fn grades_come_back_and_cost_what_they_should() {
        for (heads, tokens) in [(1, 1), (1, 500), (3, 400), (8, 100), (2, 0)] {
            let grades = grades(heads, tokens);
            let mut counts = Counts::new();
            counts.add(heads, &grades);
            let counts: Vec<u64> = counts.as_slice().iter().map(|n| u64::from(*n)).collect();
            assert_eq!(counts.iter().sum::<u64>(), grades.len() as u64);
            let codebook = Codebook::new(&frequencies(&counts)).unwrap();
            let bytes = codebook.pack(heads, &grades);
            let mut back = vec![0; grades.len()];
            codebook.unpack(heads, &bytes, &mut back).unwrap();
            assert_eq!(back, grades);
            assert!(bytes.len() <= grades.len() / 2 + 8, "{heads} {tokens}: {} bytes", bytes.len());
            for len in 0..bytes.len() {
                assert!(codebook.unpack(heads, &bytes[..len], &mut back).is_err(), "cut at {len}");
            }
        }
    }

    #[test]
    fn frequencies_are_checked() {
        let good = frequencies(&vec![0; CONTEXTS * GRADES]);
        assert!(Codebook::new(&good).is_ok());
        assert!(Codebook::new(&good[GRADES..]).is_err());
        let mut zero = good.clone();
        (zero[0], zero[1]) = (0, zero[0] + zero[1]);
        assert!(Codebook::new(&zero).is_err());
        let mut more = good;
        more[5] += 1;
        assert!(Codebook::new(&more).is_err());
    }
}
