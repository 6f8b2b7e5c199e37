//! `acme.gamma`: exponential Golomb codes, of which order 0 is Elias' γ code (Elias 1975).
//!
//! Symbols in the middle of their alphabet cost least: quantizers put zero there. No tables, so neither profile
//! nor chunk carries anything.
//!
//! ```text
//! n    = 0, 1, 2, 3, 4 …   for middle, middle − 1, middle + 1, middle − 2, middle + 2 …
//! m    = (n >> k) + 1
//! code = ⌊log₂ m⌋ zeros, the ⌊log₂ m⌋ + 1 bits of m, the low k bits of n
//! ```
//!
//! A stream is all codes, bits from the highest of each byte, and zeros up to a whole byte. Decoding fails on
//! any other length.
//!
//! ```
//! # use cacheg_core::{Build, spec};
//! let stages = spec::parse("acme.gamma(k=2)").unwrap();
//! let Build::Coder(build) = acme_codec::GAMMA.build else { unreachable!() };
//! assert!(build(&stages[0].config).is_ok());
//! ```

use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Build, Coder, CoderScratch, Error, Plugin, Result, Segment, Stage,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bits::{BitReader, BitWriter};

/// The plug-in.
pub const GAMMA: Plugin = Plugin {
    name: "acme.gamma",
    version: 1,
    origin: env!("CARGO_PKG_NAME"),
    summary: "exponential Golomb codes around the middle of the alphabet",
    usage: "acme.gamma(k=0)",
    build: Build::Coder(build),
};

cacheg_core::register_stage!(GAMMA);

fn build(config: &Value) -> Result<Arc<dyn Coder>> {
    let gamma: Gamma = cacheg_core::settings(GAMMA.name, config)?;
    if gamma.k > 7 {
        let error = Error::setting(format!("`k` is {}, but symbols have 8 bits", gamma.k));
        return Err(error.at(format!("stage `{}`", GAMMA.name)));
    }
    Ok(Arc::new(gamma))
}

/// The settings are the stage, and, as nothing depends on the model, the bound stage too.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gamma {
    /// Bits that are written as they are.
    #[serde(default)]
    k: u32,
}

impl Stage for Gamma {
    fn name(&self) -> &'static str {
        GAMMA.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Coder for Gamma {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        Ok(Box::new(*self))
    }
}

/// Distance from the middle, sides alternating: a permutation of `0 .. size`.
fn fold(symbol: u8, alphabet: Alphabet) -> u32 {
    let (symbol, middle) = (u32::from(symbol), u32::from(alphabet.size / 2));
    if symbol < middle { 2 * (middle - symbol) - 1 } else { 2 * (symbol - middle) }
}

/// Undoes [`fold`]; `n` is below the alphabet's size.
fn unfold(n: u32, alphabet: Alphabet) -> u8 {
    let middle = u32::from(alphabet.size / 2);
    (if n % 2 == 1 { middle - n.div_ceil(2) } else { middle + n / 2 }) as u8
}

impl Gamma {
    /// Bits of the code of `n`.
    fn len(self, n: u32) -> u32 {
        2 * ((n >> self.k) + 1).ilog2() + 1 + self.k
    }

    fn write(self, n: u32, to: &mut BitWriter<'_>) {
        let m = (n >> self.k) + 1;
        to.write(m, 2 * m.ilog2() + 1);
        to.write(n, self.k);
    }

    fn read(self, alphabet: Alphabet, from: &mut BitReader<'_>) -> Result<u32> {
        let mut zeros = 0;
        while from.bit()? == 0 {
            zeros += 1;
            // No code of a byte has as many; it also keeps the shift below in range.
            if zeros > 8 {
                return Err(Error::corrupt("a code that is too long"));
            }
        }
        let m = 1 << zeros | from.bits(zeros)?;
        let n = (m - 1) << self.k | from.bits(self.k)?;
        if n < u32::from(alphabet.size) {
            Ok(n)
        } else {
            Err(Error::corrupt("a symbol outside its alphabet"))
        }
    }
}

impl BoundCoder for Gamma {
    fn max_len(&self, segments: &[Segment]) -> usize {
        // Codes grow with `n`, which is below the alphabet's size.
        let bits =
            |segment: &Segment| segment.len() * self.len(u32::from(segment.alphabet.size) - 1) as usize;
        segments.iter().map(bits).sum::<usize>().div_ceil(8)
    }

    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<usize> {
        let mut to = BitWriter::new(out);
        let mut rest = symbols;
        for segment in segments {
            let (these, later) = rest.split_at(segment.len());
            rest = later;
            for &symbol in these {
                if u16::from(symbol) >= segment.alphabet.size {
                    return Err(Error::data(format!("symbol {symbol} of {}", segment.alphabet.size)));
                }
                self.write(fold(symbol, segment.alphabet), &mut to);
            }
        }
        Ok(to.finish())
    }

    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<()> {
        let mut from = BitReader::new(bytes);
        let mut rest = symbols;
        for segment in segments {
            let (these, later) = rest.split_at_mut(segment.len());
            rest = later;
            for symbol in these {
                *symbol = unfold(self.read(segment.alphabet, &mut from)?, segment.alphabet);
            }
        }
        from.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_zero_is_the_gamma_code() {
        let mut bytes = [0; 8];
        let mut writer = BitWriter::new(&mut bytes);
        // γ codes of 1 to 5 as printed everywhere: 1, 010, 011, 00100, 00101.
        (0..5).for_each(|n| Gamma { k: 0 }.write(n, &mut writer));
        assert_eq!(writer.finish(), 3);
        assert_eq!(bytes[..3], [0b1010_0110, 0b0100_0010, 0b1000_0000]);
    }

    #[test]
    fn folding_is_a_permutation_with_the_middle_first() {
        for size in 2..=256 {
            let alphabet = Alphabet { size, escape: false };
            let mut seen: Vec<u32> = (0..size).map(|symbol| fold(symbol as u8, alphabet)).collect();
            assert_eq!(seen[usize::from(size / 2)], 0);
            assert!((0..size).all(|s| unfold(fold(s as u8, alphabet), alphabet) == s as u8), "{size}");
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..u32::from(size)), "{size}");
        }
    }
}
