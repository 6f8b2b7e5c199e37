//! A quantizer: one step for a part, in the side information; what is beyond 127 steps escapes.

use std::sync::Arc;

use cacheg_core::testkit::{Suite, quantizer};
use cacheg_core::{
    Alphabet, BindCx, BoundQuantizer, Build, Error, EscapeReader, EscapeWriter, Part, PartCx, Plane, Plugin,
    Quantizer, Result, Stage, TileCx,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const PLUGIN: Plugin = Plugin {
    name: "toy.step",
    version: 1,
    origin: "tests",
    summary: "one step for all",
    usage: "toy.step(fault=none)",
    build: Build::Quantizer(|config| Ok(Arc::new(cacheg_core::settings::<Step>("toy.step", config)?))),
};

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    #[default]
    None,
    UnwrittenSymbol,
    UnwrittenOutput,
    /// Promises a byte more than it writes.
    SideLen,
    Strides,
    Allocates,
    Unsteady,
    SmallAlphabet,
    HugeAlphabet,
    /// Writes the escape symbol without a value.
    LosesEscapes,
    /// Writes a value without the symbol.
    SpuriousEscapes,
    /// Takes any escape for 0.
    IgnoresMissing,
    NeverEscapes,
    PanicsOnSide,
    LiesExact,
    Inexact,
    Infinite,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default)]
    fault: Fault,
}

impl Stage for Step {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Quantizer for Step {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        Ok(Box::new(*self))
    }
}

const ESCAPE: u8 = 255;

impl BoundQuantizer for Step {
    fn alphabets(&self, _: &Plane, _: &Part, _: usize) -> Vec<Alphabet> {
        let size = match self.fault {
            Fault::SmallAlphabet => 100,
            Fault::HugeAlphabet => 257,
            _ => 256,
        };
        vec![Alphabet { size, escape: true }]
    }

    fn side_len(&self, _: &Plane, _: &PartCx) -> usize {
        if self.fault == Fault::SideLen { 5 } else { 4 }
    }

    fn exact(&self) -> bool {
        self.fault == Fault::LiesExact
    }

    fn escapes(&self) -> bool {
        true
    }

    fn quantize(
        &self,
        _: &TileCx<'_>,
        _: &PartCx,
        x: ArrayView2<'_, f32>,
        symbols: &mut [u8],
        side: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        if self.fault == Fault::Allocates {
            std::hint::black_box(vec![1u8; 10]);
        }
        let mean = x.iter().map(|x| x.abs()).sum::<f32>() / x.len().max(1) as f32;
        let mut step = (mean / 32.0).max(f32::MIN_POSITIVE);
        if self.fault == Fault::Unsteady {
            step *= 1.0 + (crate::unsteady() % 2) as f32;
        }
        side[..4].copy_from_slice(&step.to_le_bytes());
        let packed = x.as_slice_memory_order().filter(|_| self.fault == Fault::Strides);
        let skip = usize::from(self.fault == Fault::UnwrittenSymbol);
        for (index, (x, symbol)) in x.iter().zip(&mut *symbols).enumerate().skip(skip) {
            let steps = (packed.map_or(*x, |packed| packed[index]) / step).round();
            if steps.abs() <= 127.0 || self.fault == Fault::NeverEscapes {
                *symbol = (steps.clamp(-127.0, 127.0) as i32 + 127) as u8;
            } else if steps.abs() < 1e9 {
                *symbol = ESCAPE;
                if self.fault != Fault::LosesEscapes {
                    escapes.push(index, steps as i32);
                }
            } else {
                return Err(Error::data("too far out"));
            }
        }
        if self.fault == Fault::SpuriousEscapes && symbols.last().is_some_and(|last| *last != ESCAPE) {
            escapes.push(symbols.len() - 1, 1);
        }
        Ok(())
    }

    fn dequantize(
        &self,
        _: &TileCx<'_>,
        _: &PartCx,
        symbols: &[u8],
        side: &[u8],
        escapes: &mut EscapeReader<'_>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let step = side.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
        if !step.is_finite() {
            assert!(self.fault != Fault::PanicsOnSide, "no step");
            return Err(Error::corrupt("no step"));
        }
        let skip = usize::from(self.fault == Fault::UnwrittenOutput);
        for (index, (symbol, out)) in symbols.iter().zip(&mut out).enumerate().skip(skip) {
            let steps = match *symbol {
                ESCAPE if self.fault == Fault::IgnoresMissing => escapes.next(index).unwrap_or_default(),
                ESCAPE => escapes.next(index)?,
                symbol => i32::from(symbol) - 127,
            };
            *out = steps as f32 * step;
            if self.fault == Fault::Inexact {
                *out += 40.0 * step;
            }
            if self.fault == Fault::Infinite && index == 5 {
                *out = f32::INFINITY;
            }
        }
        Ok(())
    }
}

mod good {
    cacheg_core::conformance! {
        quantizer: super::PLUGIN,
        specs: ["toy.step"],
        error_bound: 0.02,
        allocations: true,
        golden: "tests/testkit/golden",
    }
}

#[test]
fn faults_are_found() {
    for (fault, check, says) in [
        ("unwritten-symbol", quantizer::overwrites as fn(&Suite) -> _, "whole: symbols"),
        ("unwritten-output", quantizer::overwrites, "not overwritten whole"),
        ("side-len", quantizer::overwrites, "whole: side information"),
        ("strides", quantizer::strides, "views"),
        ("allocates", quantizer::allocations, "quantize allocates: 1 times"),
        ("unsteady", quantizer::deterministic, "a second call"),
        ("small-alphabet", quantizer::escapes, "of an alphabet of 100"),
        ("huge-alphabet", quantizer::shapes, "2 to 256"),
        ("loses-escapes", quantizer::escapes, "escape symbols at"),
        ("spurious-escapes", quantizer::escapes, "escape symbols at"),
        ("ignores-missing", quantizer::escapes, "a missing escape is accepted"),
        ("never-escapes", quantizer::escapes, "nothing makes it"),
        ("panics-on-side", quantizer::survives, "dequantize panics: no step"),
        ("lies-exact", quantizer::reconstructs, "an exact quantizer"),
        ("infinite", quantizer::reconstructs, "becomes inf"),
    ] {
        crate::caught(check, &crate::faulty(PLUGIN, fault), says);
    }
    let bounded = crate::faulty(PLUGIN, "inexact").error_bound(0.02);
    crate::caught(quantizer::reconstructs, &bounded, "allowed is");
}
