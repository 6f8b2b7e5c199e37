//! A coder of bytes: each symbol, counted from the one that calibration saw most often.

use std::any::Any;
use std::sync::Arc;

use cacheg_core::testkit::{Suite, coder};
use cacheg_core::{
    Accumulator, BindCx, BoundCoder, Build, Calibrator, Coder, CoderScratch, Error, PartCx, Plane, Plugin,
    Result, Seen, Segment, Stage, StageData, TileCx,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const PLUGIN: Plugin = Plugin {
    name: "toy.raw",
    version: 1,
    origin: "tests",
    summary: "bytes",
    usage: "toy.raw(fault=none)",
    build: Build::Coder(|config| Ok(Arc::new(cacheg_core::settings::<Raw>("toy.raw", config)?))),
};

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    #[default]
    None,
    Unwritten,
    Unsteady,
    /// Remembers earlier calls in its scratch.
    Stateful,
    Allocates,
    /// Allocates by the length of corrupt bytes.
    Greedy,
    AcceptsShort,
    AcceptsLong,
    PanicsOnFlip,
    /// Does not look whether decoded symbols are in the alphabet.
    OutsideAlphabet,
    AcceptsBadSymbols,
    MaxLen,
    Wrong,
    /// Cannot do the largest alphabet.
    No256,
    /// An impossible ideal.
    Ideal,
    /// Every other calibration differs.
    UnsteadyTables,
    /// Forgets to check tables against the model.
    UncheckedTables,
    LossyPack,
    PanicsOnPacked,
    AcceptsShortPacked,
    /// Reserves what the packed length says before it looks at it.
    GreedyUnpack,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    #[serde(default)]
    pub(crate) fault: Fault,
}

impl Stage for Raw {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Coder for Raw {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        let (_, modes) = cx.require_data()?.get_u8("mode")?;
        let (mut bases, mut wanted, mut sizes) = (Vec::new(), 0, Vec::new());
        for parts in cx.parts {
            bases.push(
                parts
                    .iter()
                    .map(|part| {
                        let base = wanted;
                        wanted += part.alphabets.len();
                        sizes.extend(part.alphabets.iter().map(|alphabet| alphabet.size));
                        base
                    })
                    .collect(),
            );
        }
        let fits =
            modes.len() == wanted && modes.iter().zip(&sizes).all(|(mode, size)| u16::from(*mode) < *size);
        if !fits && self.fault != Fault::UncheckedTables {
            return Err(Error::profile("modes of another model"));
        }
        if self.fault == Fault::No256 && sizes.contains(&256) && sizes.len() == 2 {
            return Err(Error::unsupported("256 symbols"));
        }
        Ok(Box::new(Bound { fault: self.fault, modes, bases }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        let planes = cx.parts.iter().map(|parts| parts.iter().map(|part| part.alphabets.len()).collect());
        Some(Box::new(Modes { fault: self.fault, planes: planes.collect() }))
    }

    fn pack(&self, _: &BindCx<'_>, data: &StageData) -> Result<Vec<u8>> {
        let (_, modes) = data.get_u8("mode")?;
        let mut bytes = (modes.len() as u32).to_le_bytes().to_vec();
        bytes.extend(modes);
        Ok(bytes)
    }

    fn unpack(&self, _: &BindCx<'_>, bytes: &[u8]) -> Result<StageData> {
        let (len, modes) = bytes.split_first_chunk().ok_or_else(|| Error::corrupt("no length"))?;
        let len = u32::from_le_bytes(*len) as usize;
        let exact = len == modes.len();
        if self.fault == Fault::GreedyUnpack {
            std::hint::black_box(Vec::<u8>::with_capacity(len.min(1 << 24)));
        }
        assert!(exact || self.fault != Fault::PanicsOnPacked, "length");
        if !exact && self.fault != Fault::AcceptsShortPacked {
            return Err(Error::corrupt("length"));
        }
        let mut modes = modes.to_vec();
        if self.fault == Fault::LossyPack {
            modes.iter_mut().for_each(|mode| *mode = mode.saturating_sub(1));
        }
        let mut data = StageData::new();
        data.put_u8("mode", &[modes.len()], &modes);
        Ok(data)
    }
}

struct Modes {
    fault: Fault,
    /// For each plane the symbol planes of its parts.
    planes: Vec<Vec<usize>>,
}

impl Calibrator for Modes {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let counts = self.planes[plane.index].iter().map(|planes| vec![[0; 256]; *planes]).collect();
        Box::new(Counts { fault: self.fault, counts })
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        let modes: Result<Vec<Vec<u8>>> = planes.iter().map(|data| Ok(data.get_u8("mode")?.1)).collect();
        let modes = modes?.concat();
        let mut data = StageData::new();
        data.put_u8("mode", &[modes.len()], &modes);
        Ok(data)
    }
}

struct Counts {
    fault: Fault,
    counts: Vec<Vec<[u64; 256]>>,
}

impl Accumulator for Counts {
    fn observe(&mut self, _: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()> {
        let Seen::Symbols(plane, symbols) = seen else { return Err(Error::data("not symbols")) };
        symbols.iter().for_each(|symbol| self.counts[part.index][plane][usize::from(*symbol)] += 1);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        let mode =
            |counts: &[u64; 256]| (0..=255u8).max_by_key(|symbol| counts[usize::from(*symbol)]).unwrap_or(0);
        let mut modes: Vec<u8> = self.counts.iter().flatten().map(mode).collect();
        if self.fault == Fault::UnsteadyTables && crate::unsteady().is_multiple_of(2) {
            modes[0] = 0;
        }
        let mut data = StageData::new();
        data.put_u8("mode", &[modes.len()], &modes);
        Ok(data)
    }
}

struct Bound {
    fault: Fault,
    modes: Vec<u8>,
    /// For each plane and part the index of its first symbol plane's mode.
    bases: Vec<Vec<usize>>,
}

impl Bound {
    /// For every symbol its alphabet and mode.
    fn context(&self, segments: &[Segment]) -> impl Iterator<Item = (u16, u16)> {
        segments.iter().flat_map(|segment| {
            let mode = self.modes[self.bases[segment.plane][segment.part] + segment.symbol_plane];
            std::iter::repeat_n((segment.alphabet.size, u16::from(mode)), segment.len())
        })
    }
}

impl BoundCoder for Bound {
    fn max_len(&self, segments: &[Segment]) -> usize {
        segments.iter().map(Segment::len).sum()
    }

    fn scratch(&self) -> CoderScratch {
        Box::new(0u8)
    }

    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        scratch: &mut CoderScratch,
    ) -> Result<usize> {
        if self.fault == Fault::Allocates {
            std::hint::black_box(vec![1u8; 10]);
        }
        let calls =
            (&mut **scratch as &mut dyn Any).downcast_mut::<u8>().ok_or_else(|| Error::data("scratch"))?;
        *calls = calls.wrapping_add(1);
        let skip = usize::from(self.fault == Fault::Unwritten);
        for ((symbol, out), (size, mode)) in
            symbols.iter().zip(&mut *out).zip(self.context(segments)).skip(skip)
        {
            if u16::from(*symbol) >= size && self.fault != Fault::AcceptsBadSymbols {
                return Err(Error::data("symbol"));
            }
            *out = ((u16::from(*symbol) + size - mode.min(size)) % size) as u8;
        }
        if let [first, ..] = out {
            match self.fault {
                Fault::Unsteady => *first = crate::unsteady() as u8 % 2,
                Fault::Stateful if *calls > 1 => *first ^= 1,
                Fault::Wrong => *first = 0,
                _ => {}
            }
        }
        Ok(symbols.len() + usize::from(self.fault == Fault::MaxLen))
    }

    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<()> {
        if self.fault == Fault::Greedy && bytes.first() == Some(&0xa5) {
            std::hint::black_box(vec![1u8; 1 << 16]);
        }
        let (short, long) = (bytes.len() < symbols.len(), bytes.len() > symbols.len());
        if short && self.fault != Fault::AcceptsShort || long && self.fault != Fault::AcceptsLong {
            return Err(Error::corrupt("length"));
        }
        let bytes = bytes.iter().copied().chain(std::iter::repeat(0));
        for ((symbol, byte), (size, mode)) in symbols.iter_mut().zip(bytes).zip(self.context(segments)) {
            if u16::from(byte) >= size {
                assert!(self.fault != Fault::PanicsOnFlip, "flip");
                if self.fault != Fault::OutsideAlphabet {
                    return Err(Error::corrupt("symbol"));
                }
                *symbol = byte;
            } else {
                *symbol = ((u16::from(byte) + mode) % size) as u8;
            }
        }
        Ok(())
    }

    fn ideal_bits(&self, _: &[Segment], symbols: &[u8]) -> Option<f64> {
        Some(if self.fault == Fault::Ideal { 9.0 } else { 1.0 } * symbols.len() as f64)
    }
}

mod good {
    cacheg_core::conformance! {
        coder: super::PLUGIN,
        specs: ["toy.raw", r#"[{"name": "toy.raw", "config": {"fault": "none"}}]"#],
        allocations: true,
        golden: "tests/testkit/golden",
    }
}

#[test]
fn faults_are_found() {
    for (fault, check, says) in [
        ("unwritten", coder::overwrites as fn(&Suite) -> _, "not overwritten whole"),
        ("unsteady", coder::deterministic, "a second call"),
        ("stateful", coder::deterministic, "used scratch"),
        ("allocates", coder::allocations, "encode allocates: 1 times"),
        ("greedy", coder::allocations, "corrupt bytes make it allocate 65536 bytes"),
        ("greedy-unpack", coder::allocations, "corrupt tables make it allocate"),
        ("accepts-short", coder::lengths, "bytes alone are accepted"),
        ("accepts-long", coder::lengths, "trailing bytes are accepted"),
        ("panics-on-flip", coder::flips, "decode panics: flip"),
        ("outside-alphabet", coder::flips, "outside its alphabet"),
        ("accepts-bad-symbols", coder::bad_symbols, "is accepted"),
        ("max-len", coder::round_trips, "but max_len is"),
        ("wrong", coder::round_trips, "symbols: byte 0"),
        ("no256", coder::alphabets, "256 symbols"),
        ("ideal", coder::round_trips, "an ideal coder"),
        ("unsteady-tables", coder::calibration, "other data on the second run"),
        ("unchecked-tables", coder::calibration, "panics: index out of bounds"),
        ("lossy-pack", coder::calibration, "change when they are packed"),
        ("panics-on-packed", coder::calibration, "unpack panics: length"),
        ("accepts-short-packed", coder::calibration, "packed bytes are accepted"),
    ] {
        crate::caught(check, &crate::faulty(PLUGIN, fault), says);
    }
}
