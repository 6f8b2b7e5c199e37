//! A frequency table as constriction wants it.

use std::borrow::Borrow;
use std::num::NonZeroU16;

use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};

/// Precision of the frequencies.
pub(crate) const PRECISION: usize = 16;

/// Appends the cumulative distribution of a table: one entry more than there are symbols, the last being
/// 65,536 and so 0 in 16 bits.
pub(crate) fn push_cdf(freqs: &[u16], cdf: &mut Vec<u16>) {
    let mut sum = 0u16;
    cdf.push(sum);
    cdf.extend(freqs.iter().map(|freq| {
        sum = sum.wrapping_add(*freq);
        sum
    }));
}

/// A borrowed cumulative distribution. It rises strictly, from 0 to 65,536.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model<'a> {
    cdf: &'a [u16],
}

impl<'a> Model<'a> {
    pub(crate) fn new(cdf: &'a [u16]) -> Self {
        Self { cdf }
    }

    /// Bits of a symbol.
    pub(crate) fn bits(&self, symbol: u8) -> Option<f64> {
        let (_, freq) = self.left_cumulative_and_probability(symbol)?;
        Some(16.0 - f64::from(freq.get()).log2())
    }
}

impl EntropyModel<PRECISION> for Model<'_> {
    type Symbol = u8;
    type Probability = u16;
}

impl EncoderModel<PRECISION> for Model<'_> {
    #[inline]
    fn left_cumulative_and_probability(&self, symbol: impl Borrow<u8>) -> Option<(u16, NonZeroU16)> {
        let symbol = usize::from(*symbol.borrow());
        let (low, high) = (*self.cdf.get(symbol)?, *self.cdf.get(symbol + 1)?);
        Some((low, NonZeroU16::new(high.wrapping_sub(low))?))
    }
}

impl DecoderModel<PRECISION> for Model<'_> {
    #[inline]
    fn quantile_function(&self, quantile: u16) -> (u8, u16, NonZeroU16) {
        let inner = &self.cdf[..self.cdf.len() - 1];
        // The first entry is 0, so that at least one is not above the quantile.
        let symbol = inner.partition_point(|low| *low <= quantile) - 1;
        let (low, high) = (self.cdf[symbol], self.cdf[symbol + 1]);
        // The distribution rises strictly; the fallback is never taken.
        (symbol as u8, low, NonZeroU16::new(high.wrapping_sub(low)).unwrap_or(NonZeroU16::MIN))
    }
}
