use super::*;
use crate::testing::*;
use cacheg_core::{Dtype, ErrorKind, Role};
use ndarray::{Array2, array};

/// 2 bits: entries ±927/2048 and ±3093/2048, the threshold 2010/2048 = 0.981…
#[test]
fn hand_computed() {
    let planes = planes(1, 1, 4);
    let bound = bind_quantizer("lloyd-max(bits=2)", &planes, Role::Whole, None);
    // The mean squares are 4, 0 and 1/4 (a scale of 2, 0, 1/2).
    let x = array![[2.0, -1.9, 2.0 * 2010.0 / 2048.0, -0.0], [0.0, 0.0, -0.0, 0.0], [0.5, -0.5, 0.5, -0.5]];
    let mean_square = (4.0 + 1.9 * 1.9 + (2010.0f64 / 1024.0).powi(2)) / 4.0;
    let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
    // sqrt(2.866) = 1.693, and 2.0 / 1.693 is beyond the threshold, 1.9 / 1.693 too.
    assert!((mean_square.sqrt() - 1.6929).abs() < 1e-3);
    assert_eq!(coded.symbols, [3, 0, 3, 2, 2, 2, 2, 2, 3, 0, 3, 0]);
    let scale = ScaleFormat::F16.value(ScaleFormat::F16.up(mean_square.sqrt() as f32).unwrap());
    assert_eq!(coded.side[..2], ScaleFormat::F16.up(scale).unwrap().to_le_bytes());
    assert_eq!(coded.side[2..], [0, 0, 0x00, 0x38]);
    let y = dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap();
    let (low, high) = (927.0 / 2048.0, 3093.0 / 2048.0);
    assert_eq!(y.row(0).to_vec(), [high * scale, -high * scale, high * scale, low * scale]);
    assert_eq!(y.row(1).to_vec(), [0.0; 4]);
    assert_eq!(y.row(2).to_vec(), [high / 2.0, -high / 2.0, high / 2.0, -high / 2.0]);
}

/// A threshold itself belongs to the outer entry, on either side; just below it, the inner one is taken.
#[test]
fn thresholds_are_exact() {
    for bits in 1..=8u8 {
        let book = Codebook::new(bits);
        let (half, mut symbols) = (book.half(), [0; BLOCK]);
        for (at, threshold) in book.thresholds().iter().enumerate() {
            let mut values = [0.0; BLOCK];
            values[..4].copy_from_slice(&[
                *threshold,
                -threshold,
                threshold.next_down(),
                -threshold.next_down(),
            ]);
            nearest(&book, &values, 1.0, &mut symbols);
            let inner = [half + at, half - 1 - at];
            assert_eq!(
                symbols[..4].iter().map(|s| usize::from(*s)).collect::<Vec<_>>(),
                [inner[0] + 1, inner[1] - 1, inner[0], inner[1]]
            );
        }
        nearest(&book, &[f32::MAX; BLOCK], 1.0, &mut symbols);
        assert_eq!(u16::from(symbols[BLOCK - 1]), book.alphabet() - 1);
    }
}

/// Every symbol is that of the nearest entry, and groups are where the settings put them.
#[test]
fn nearest_entries_of_every_group() {
    let sizes = [(0, 4), (1, 1), (2, 70), (5, 64), (3, 130), (4, 200)];
    for bits in [1, 2, 3, 4, 8] {
        for group in [0, 1, 3, 64, 100] {
            for (rows, cols) in sizes {
                // Two heads where the width is even.
                let heads = 2 - cols as u32 % 2;
                let planes = planes(1, heads, cols as u32 / heads);
                let text = format!("lloyd-max(bits={bits};group={group})");
                let bound = bind_quantizer(&text, &planes, Role::Delta, None);
                let x = random(rows, cols, 4.0);
                let coded = quantize(&*bound, &planes[0], Role::Delta, &x).unwrap();
                let width = if group == 0 { cols / heads as usize } else { group };
                assert_eq!(coded.side.len(), rows * cols.div_ceil(width) * 2, "{text}");
                let y = dequantize(&*bound, &planes[0], Role::Delta, x.dim(), &coded).unwrap();
                let book = Codebook::new(bits);
                let entries = &book.entries()[..usize::from(book.alphabet())];
                for (row, (x, y)) in x.outer_iter().zip(y.outer_iter()).enumerate() {
                    for (at, (x, y)) in x.to_vec().chunks(width).zip(y.to_vec().chunks(width)).enumerate() {
                        let side = &coded.side[(row * cols.div_ceil(width) + at) * 2..];
                        let scale = ScaleFormat::F16.value(u16::from_le_bytes([side[0], side[1]]));
                        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                        let rms = (squares / x.len() as f64).sqrt();
                        assert!(
                            f64::from(scale) >= rms * (1.0 - 1e-7) && f64::from(scale) <= rms * 1.001 + 1e-7
                        );
                        for (x, y) in x.iter().zip(y) {
                            let best = entries.iter().map(|e| (e * scale - x).abs()).fold(f32::MAX, f32::min);
                            assert!((x - y).abs() <= best * 1.000_01 + 1e-6, "{text}: {x} {y} {best}");
                        }
                    }
                }
            }
        }
    }
}

/// Of normal values the mean squared error is the one that the codebook promises.
#[test]
fn normal_values_have_the_promised_error() {
    let planes = planes(1, 1, 128);
    let mut rng = Rng(11);
    // Box and Muller's.
    let mut normal = || {
        let (u, v) = (f64::from(rng.unit()).abs().max(1e-9), f64::from(rng.unit()));
        (3.0 * (-2.0 * u.ln()).sqrt() * (v * std::f64::consts::PI).cos()) as f32
    };
    let x = Array2::from_shape_simple_fn((400, 128), &mut normal);
    let power: f32 = x.iter().map(|x| x * x).sum();
    for (bits, promised) in [(1, 0.3634), (2, 0.1175), (3, 0.03455), (4, 0.0095)] {
        let bound = bind_quantizer(&format!("lloyd-max(bits={bits})"), &planes, Role::Whole, None);
        let y = round_trip(&*bound, &planes[0], Role::Whole, &x);
        let error: f32 = (&x - &y).iter().map(|e| e * e).sum();
        // A little less: channels of a norm of 128 have shorter tails than normal ones.
        assert!((0.94..1.02).contains(&(error / power / promised)), "{bits} bits: {}", error / power);
    }
}

#[test]
fn kinds_have_settings_of_their_own() {
    let planes = planes(1, 2, 64);
    let bound = bind_quantizer("lloyd-max(bits=3,5;group=0,16)", &planes, Role::Whole, None);
    let part = PartCx::new(0, Role::Whole, 10, 128);
    assert_eq!(bound.side_len(&planes[0], &part), 10 * 2 * 2);
    assert_eq!(bound.side_len(&planes[1], &part), 10 * 8 * 2);
    let size = |plane: &Plane| bound.alphabets(plane, &Part::new(Role::Whole, 128), 0)[0].size;
    assert_eq!((size(&planes[0]), size(&planes[1])), (8, 32));
    assert!(bound.independent_rows() && bound.row_multiple() == 1);
}

#[test]
fn values_that_are_too_large_or_not_finite_are_refused() {
    let planes = planes_of(1, 1, 2, Dtype::F32);
    let f16 = bind_quantizer("lloyd-max", &planes, Role::Whole, None);
    let bf16 = bind_quantizer("lloyd-max(scale=bf16)", &planes, Role::Whole, None);
    let error = quantize(&*f16, &planes[0], Role::Whole, &array![[1e9, 0.0]]).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidData && error.to_string().contains("scale=bf16"), "{error}");
    assert!(quantize(&*bf16, &planes[0], Role::Whole, &array![[1e9, 0.0]]).is_ok());
    let error = quantize(&*bf16, &planes[0], Role::Whole, &array![[3e38, -3e38]]).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(quantize(&*f16, &planes[0], Role::Whole, &array![[bad, 0.0]]).is_err());
    }
    // Values that vanish beside the smallest scale become small ones.
    for bound in [&f16, &bf16] {
        let y = round_trip(&**bound, &planes[0], Role::Whole, &array![[1e-45, -1e-30]]);
        assert!(y.iter().all(|y| y.abs() < 1e-6), "{y}");
    }
}

#[test]
fn impossible_scales_are_corrupt() {
    let planes = planes(1, 1, 2);
    let bound = bind_quantizer("lloyd-max", &planes, Role::Whole, None);
    let mut coded = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, 2.0]]).unwrap();
    // Infinite, not a number, negative.
    for side in [[0, 0x7c], [1, 0x7e], [0, 0xbc]] {
        coded.side.copy_from_slice(&side);
        let error = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &coded).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let bound = bind_quantizer("lloyd-max(scale=bf16)", &planes, Role::Whole, None);
    coded.side.copy_from_slice(&0x7f7fu16.to_le_bytes());
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &coded).is_err());
    coded.side = vec![0];
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &coded).is_err());
}

#[test]
fn settings_are_checked() {
    for (text, why) in [
        ("lloyd-max(bits=0)", "1 to 8"),
        ("lloyd-max(bits=4,9)", "1 to 8"),
        ("lloyd-max(bits=1,2,3)", "one value, or two"),
        ("lloyd-max(group=65537)", "65536"),
        ("lloyd-max(scale=f8)", "f8"),
    ] {
        let error = try_quantizer(text).unwrap_err().to_string();
        assert!(error.contains("lloyd-max") && error.contains(why), "{error}");
    }
}
