use super::*;
use crate::testing::*;
use cacheg_core::{Dtype, ErrorKind, Role};
use ndarray::{Array2, array};

#[test]
fn hand_computed_symmetric() {
    let planes = planes(1, 1, 4);
    let bound = bind_quantizer("uniform(bits=4;group=4)", &planes, Role::Whole, None);
    // absmax 7, C = 7, scale 1; ties to even.
    let x = array![[7.0, -3.5, 2.5, -0.4], [0.0, 0.0, -0.0, 0.0]];
    let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
    assert_eq!(coded.symbols, [14, 3, 9, 7, 7, 7, 7, 7]);
    assert_eq!(coded.side, [0x00, 0x3c, 0, 0]);
    let y = dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap();
    assert_eq!(y, array![[7.0, -4.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]);
    assert_eq!(bound.alphabets(&planes[0], &Part::new(Role::Whole, 4), 0)[0].size, 15);
}

#[test]
fn hand_computed_asymmetric_by_channel() {
    let planes = planes(1, 1, 2);
    let text = "uniform(bits=2;axis=channel;group=2;zero=true;scale=bf16)";
    let bound = bind_quantizer(text, &planes, Role::Whole, None);
    assert_eq!(bound.row_multiple(), 2);
    // Channel 0 of the first two tokens: min −1, max 2, scale 1. The last group is short.
    let x = array![[-1.0, 5.0], [2.0, 5.0], [0.25, -3.0]];
    let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
    assert_eq!(coded.symbols, [0, 0, 3, 0, 0, 0]);
    let numbers: Vec<u16> = coded.side.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    assert_eq!(numbers, [0xbf80, 0x3f80, 0x40a0, 0, 0x3e80, 0, 0xc040, 0]);
    assert_eq!(dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap(), x);
}

/// q8_0 and q4_0 cost 8.5 and 4.5 bits per value when symbols are packed.
#[test]
fn side_information_costs_what_ggml_costs() {
    let planes = planes(1, 2, 64);
    let bound = bind_quantizer("uniform", &planes, Role::Whole, None);
    assert_eq!(bound.side_len(&planes[0], &PartCx::new(0, Role::Whole, 10, 128)) * 8 * 2, 10 * 128);
    let kivi = bind_quantizer("uniform(bits=4;axis=channel,token;zero=true)", &planes, Role::Whole, None);
    assert_eq!(kivi.row_multiple(), 32);
    assert_eq!(kivi.side_len(&planes[0], &PartCx::new(0, Role::Whole, 33, 128)), 2 * 128 * 4);
    assert_eq!(kivi.side_len(&planes[1], &PartCx::new(0, Role::Whole, 33, 128)), 33 * 4 * 4);
}

/// The error is at most half a step, whatever the sizes, and the grid covers the ends.
#[test]
fn error_is_at_most_half_a_step() {
    let sizes = [(0, 4), (1, 1), (1, 70), (31, 5), (33, 64), (64, 130), (7, 33)];
    for bits in 1..=8u8 {
        for axis in ["token", "channel"] {
            for group in [0, 1, 3, 32] {
                for zero in [false, true] {
                    if bits == 1 && !zero {
                        continue;
                    }
                    for (scale, loose) in [("f16", 1.002), ("bf16", 1.02)] {
                        let text = format!(
                            "uniform(bits={bits};axis={axis};group={group};zero={zero};scale={scale})"
                        );
                        for (rows, cols) in sizes {
                            let planes = planes(1, 1, cols as u32);
                            let bound = bind_quantizer(&text, &planes, Role::Delta, None);
                            let x = random(rows, cols, 4.0);
                            let y = round_trip(&*bound, &planes[0], Role::Delta, &x);
                            // With a zero point the grid may begin a little below the smallest value.
                            let steps = if zero { (1 << bits) - 1 } else { (1 << (bits - 1)) - 1 } as f32;
                            let extent = if zero { 8.0 + 4.0 * 2.0 * (loose - 1.0) } else { 4.0 };
                            let half = extent / steps * loose / 2.0;
                            for (x, y) in x.iter().zip(&y) {
                                assert!((x - y).abs() <= half, "{text} {rows}×{cols}: {x} {y} {half}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Symbols against an exact computation: q is the nearest integer to x / scale, the even one in a tie.
#[test]
fn rounding_is_exact() {
    let planes = planes(1, 1, 32);
    for bits in [2, 4, 8] {
        let bound = bind_quantizer(&format!("uniform(bits={bits})"), &planes, Role::Whole, None);
        let centre = (1i64 << (bits - 1)) - 1;
        let mut rng = Rng(bits as u64);
        for _ in 0..300 {
            // Multiples of a quarter of the scale make ties common.
            let x = Array2::from_shape_fn((1, 32), |(_, c)| {
                if c == 0 { centre as f32 } else { f16((rng.unit() * centre as f32 * 4.0).round() / 4.0) }
            });
            let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
            assert_eq!(coded.side, [0x00, 0x3c]);
            for (x, symbol) in x.iter().zip(&coded.symbols) {
                assert_eq!(i64::from(*symbol) - centre, f64::from(*x).round_ties_even() as i64, "{x}");
            }
        }
    }
}

#[test]
fn degenerate_groups() {
    for text in
        ["uniform(bits=2)", "uniform(bits=8)", "uniform(bits=1;zero=true)", "uniform(bits=8;zero=true)"]
    {
        for scale in ["f16", "bf16"] {
            let planes = planes_of(1, 1, 4, Dtype::F32);
            let text = text.replace(')', &format!(";scale={scale})"));
            let bound = bind_quantizer(&text, &planes, Role::Whole, None);
            for x in [
                array![[0.0, 0.0, 0.0, -0.0]],
                array![[1.0, 1.0, 1.0, 1.0]],
                array![[-1.0, -1.0, -1.0, -1.0]],
                array![[1e-45, -1e-45, 3e-45, 0.0]],
                array![[1e-7, -1e-7, 0.0, 1e-9]],
                array![[100.001, 100.002, 100.003, 100.004]],
                array![[3.0, 3.0, 3.0, -60000.0]],
            ] {
                let y = round_trip(&*bound, &planes[0], Role::Whole, &x);
                let extent = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (x, y) in x.iter().zip(&y) {
                    assert!((x - y).abs() <= extent * 0.51 + 1e-7, "{text}: {x} became {y}");
                }
            }
        }
    }
    // Constant groups of representable values are exact with a zero point; an offset costs no precision.
    let planes = planes(1, 1, 2);
    let bound = bind_quantizer("uniform(bits=4;zero=true)", &planes, Role::Whole, None);
    assert_eq!(round_trip(&*bound, &planes[0], Role::Whole, &array![[1.5, 1.5]]), array![[1.5, 1.5]]);
    let y = round_trip(&*bound, &planes[0], Role::Whole, &array![[100.001, 100.002]]);
    assert!((y[[0, 0]] - 100.001).abs() < 0.003 && (y[[0, 1]] - 100.002).abs() < 0.003, "{y}");
}

#[test]
fn too_large_values_are_errors() {
    let planes = planes_of(1, 1, 2, Dtype::F32);
    for zero in [false, true] {
        for axis in ["token", "channel"] {
            let f16 =
                bind_quantizer(&format!("uniform(zero={zero};axis={axis})"), &planes, Role::Whole, None);
            let error = quantize(&*f16, &planes[0], Role::Whole, &array![[-1e9, 1e8]]).unwrap_err();
            assert!(
                error.kind() == ErrorKind::InvalidData && error.to_string().contains("scale=bf16"),
                "{error}"
            );
            let text = format!("uniform(zero={zero};axis={axis};scale=bf16)");
            let bf16 = bind_quantizer(&text, &planes, Role::Whole, None);
            for bad in [array![[f32::MAX, -f32::MAX]], array![[f32::NAN, 0.0]], array![[f32::INFINITY, 0.0]]]
            {
                assert!(quantize(&*bf16, &planes[0], Role::Whole, &bad).is_err(), "{text} {bad}");
            }
            round_trip(&*bf16, &planes[0], Role::Whole, &array![[-1e38, 1e38]]);
        }
    }
}

#[test]
fn corrupt_side_information_is_an_error() {
    let planes = planes(1, 1, 2);
    for (text, numbers) in [
        ("uniform", [0x7c00u16, 0x7e00, 0x8001, 0xfc00].as_slice()),
        ("uniform(scale=bf16)", &[0x7f80, 0x7fc0, 0xbf80, 0x7f7f]),
        ("uniform(axis=channel)", &[0x7c00]),
    ] {
        let bound = bind_quantizer(text, &planes, Role::Whole, None);
        let good = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, 2.0]]).unwrap();
        for number in numbers {
            let mut bad = good.clone();
            bad.side[..2].copy_from_slice(&number.to_le_bytes());
            let error = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{text} {number:#x}");
        }
        let mut short = good.clone();
        short.side.pop();
        assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &short).is_err());
    }
    // Every pair of numbers gives finite values or an error.
    let bound = bind_quantizer("uniform(zero=true;scale=bf16)", &planes, Role::Whole, None);
    let mut coded = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, 2.0]]).unwrap();
    let mut rng = Rng(1);
    for _ in 0..20_000 {
        coded.side.copy_from_slice(&rng.bits().to_le_bytes());
        if let Ok(y) = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &coded) {
            assert!(y.iter().all(|y| y.is_finite()));
        }
    }
}

#[test]
fn settings_are_checked() {
    for (bad, setting) in [
        ("uniform(bits=0)", "bits"),
        ("uniform(bits=9)", "bits"),
        ("uniform(bits=1)", "bits"),
        ("uniform(bits=1,1;zero=true,false)", "bits"),
        ("uniform(bits=4,4,4)", "bits"),
        ("uniform(group=70000)", "group"),
        ("uniform(axis=row)", "row"),
        ("uniform(scale=f8)", "f8"),
    ] {
        let message = try_quantizer(bad).unwrap_err().to_string();
        assert!(message.contains("uniform") && message.contains(setting), "{bad}: {message}");
    }
}
