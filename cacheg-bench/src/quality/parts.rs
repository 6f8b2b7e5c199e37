//! What the bytes of a container are for.

use cacheg::core::Container;
use cacheg::{Limits, Profile, Registry, Result};

/// Bytes, or bits per value, of a container; they add up to all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parts<T = usize> {
    /// Headers, directories, checksums, padding.
    header: T,
    /// Data of stages that chunks carry because no profile has it: tables and the like.
    carried: T,
    /// Of quantizers: scales and the like.
    side: T,
    /// The coder's streams, and values beyond the alphabets.
    stream: T,
}

impl Parts {
    /// Decodes all symbols to find out.
    pub(crate) fn of(container: &[u8], registry: &Registry, profile: Option<&Profile>) -> Result<Self> {
        let mut parts = Self { header: 0, carried: 0, side: 0, stream: 0 };
        for chunk in &Container::parse(container, &Limits::default())?.chunks {
            let (sizes, _) = chunk.account(&*chunk.bind(registry, profile)?)?;
            parts.carried += sizes.carried.iter().sum::<usize>();
            parts.side += sizes.tiles.side;
            parts.stream += sizes.tiles.stream + sizes.tiles.escapes;
        }
        parts.header = container.len() - parts.carried - parts.side - parts.stream;
        Ok(parts)
    }

    /// Of what is no container.
    pub(crate) fn only_stream(stream: usize) -> Self {
        Self { header: 0, carried: 0, side: 0, stream }
    }

    pub(crate) fn per_value(self, values: f64) -> Parts<f64> {
        let bits = |bytes: usize| bytes as f64 * 8.0 / values;
        Parts {
            header: bits(self.header),
            carried: bits(self.carried),
            side: bits(self.side),
            stream: bits(self.stream),
        }
    }
}

impl Parts<f64> {
    /// Keys of a row.
    pub(crate) fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("header_bits_per_value", self.header),
            ("carried_bits_per_value", self.carried),
            ("side_bits_per_value", self.side),
            ("stream_bits_per_value", self.stream),
        ]
    }
}
