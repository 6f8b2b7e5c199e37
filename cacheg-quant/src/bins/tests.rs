use super::*;
use crate::testing::*;
use cacheg_core::{Dtype, ErrorKind, Escapes, Seen, Source, StageData};
use ndarray::{Array2, array};

const PUBLIC: &str = "bins(k=32,16,16;k-at=10,20;v=32,16;v-at=2;scale=f16)";

/// The bins of every plane of a model of `layers` layers, keys and values.
fn bins_of(text: &str, layers: u32) -> (Vec<u16>, Vec<u16>) {
    let planes = planes(layers, 1, 2);
    let bound = bind_quantizer(text, &planes, Role::Whole, None);
    let size = |plane: &Plane| bound.alphabets(plane, &Part::new(Role::Whole, 2), 0)[0].size;
    let of = |kind| planes.iter().filter(|plane| plane.kind == kind).map(size).collect();
    (of(Kind::Key), of(Kind::Value))
}

#[test]
fn layers_take_their_bins() {
    let (k, v) = bins_of(PUBLIC, 32);
    let runs = |bins: &[u16], first: u16| bins.iter().take_while(|b| **b == first).count();
    assert_eq!((runs(&k, 32), runs(&v, 32)), (10, 2));
    assert!(k[10..].iter().chain(&v[2..]).all(|bins| *bins == 16));
    let (k, v) = bins_of("bins(k=32,16,8;v=32,16)", 6);
    assert_eq!((k, v), (vec![32, 32, 16, 16, 8, 8], vec![32, 32, 32, 16, 16, 16]));
    let (k, v) = bins_of("bins(k=12;v=256)", 2);
    assert_eq!((k, v), (vec![12; 2], vec![256; 2]));
}

#[test]
fn hand_computed_absmax() {
    let planes = planes(1, 1, 4);
    let bound = bind_quantizer("bins(k=16)", &planes, Role::Whole, None);
    // C = 7, max = 14: x · 7 / 14 = x / 2, ties to even.
    let x = array![[14.0, -14.0, 3.0, -5.0], [0.0, -0.0, 0.0, 0.0]];
    let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
    assert_eq!(coded.symbols, [14, 0, 9, 5, 7, 7, 7, 7]);
    assert_eq!(coded.side, [0x60, 0x41, 0, 0]);
    let y = dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap();
    assert_eq!(y, array![[14.0, -14.0, 4.0, -4.0], [0.0, 0.0, 0.0, 0.0]]);
    assert!(!bound.escapes());
}

/// The public code's formula in exact rational arithmetic, on f16 values: x = X/2²⁴, max = M/2²⁴.
#[test]
fn public_arithmetic_is_exact_on_f16() {
    let integer = |x: f32| (f64::from(x) * 2f64.powi(24)) as i128;
    let mut rng = Rng(11);
    let mut ties = 0;
    for (bins, text) in [(12, "k=12"), (16, "k=16"), (32, "k=32"), (33, "k=33"), (256, "k=256")] {
        let c = i128::from(bins / 2 - 1);
        let planes = planes(1, 1, 64);
        let bound = bind_quantizer(&format!("bins({text};scale=f16)"), &planes, Role::Whole, None);
        for round in 0..400 {
            let amplitude = 2f32.powi(round % 24 - 12);
            // Few different mantissas make exact ties likely.
            let grid = if round % 2 == 0 { 2048.0 } else { (2 * c) as f32 };
            let x =
                Array2::from_shape_simple_fn((1, 64), || f16((rng.unit() * grid).round() / grid * amplitude));
            let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
            let y = dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap();
            let max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let m = integer(max);
            for ((x, y), symbol) in x.iter().zip(&y).zip(&coded.symbols) {
                let (num, den) = (2 * integer(*x) * c + m, 2 * m);
                let floor = num.div_euclid(den);
                let tie = num.rem_euclid(den) == 0;
                let nearest = if tie && floor % 2 != 0 { floor - 1 } else { floor };
                ties += u32::from(tie);
                assert_eq!(i128::from(*symbol) - c, nearest, "x {x} max {max} bins {bins}");
                let exact = (nearest * m) as f64 / c as f64 / 2f64.powi(24);
                assert_eq!(*y, exact as f32, "q {nearest} max {max} bins {bins}");
            }
        }
    }
    assert!(ties > 1000, "{ties} ties");
}

#[test]
fn scales_round_up_so_that_nothing_clips() {
    let planes = planes_of(1, 1, 64, Dtype::F32);
    for scale in ["bf16", "f16"] {
        let bound = bind_quantizer(&format!("bins(k=256;scale={scale})"), &planes, Role::Whole, None);
        let x = random(200, 64, 3.0);
        let y = round_trip(&*bound, &planes[0], Role::Whole, &x);
        for (x, y) in x.outer_iter().zip(y.outer_iter()) {
            let max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let half = max * 1.008 / 127.0 / 2.0;
            assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= half * 1.001));
        }
    }
}

#[test]
fn anchors_have_their_own_bins() {
    let planes = planes(3, 1, 4);
    let bound = bind_quantizer("bins(k=8;anchor=64;step=1)", &planes, Role::Anchor, Some(&sigmas(&[1.0; 6])));
    assert_eq!(
        bound.alphabets(&planes[0], &Part::new(Role::Anchor, 4), 0)[0],
        Alphabet { size: 64, escape: false }
    );
    assert_eq!(bound.side_len(&planes[0], &PartCx::new(0, Role::Anchor, 5, 4)), 10);
    let x = random(5, 4, 1.0);
    let y = round_trip(&*bound, &planes[0], Role::Anchor, &x);
    assert!((&x - &y).iter().all(|e| e.abs() < 1.0 / 31.0 / 1.9));
}

fn sigmas(values: &[f32]) -> StageData {
    let bits: Vec<u16> = values.iter().map(|v| crate::carried::bf16(f64::from(*v))).collect();
    let mut data = StageData::new();
    data.put_u16("sigma", &[bits.len()], &bits);
    data
}

#[test]
fn hand_computed_steps_and_escapes() {
    let planes = planes(3, 1, 3);
    let data = sigmas(&[1.0, 1.0, 4.0, 1.0, 1.0, 1.0]);
    let bound = bind_quantizer("bins(step=0.5,1,1.5;level=0.5;reach=2)", &planes, Role::Delta, Some(&data));
    assert!(bound.escapes());
    // Layer 1's keys: step 1 × 0.5 × 4 = 2, symbols for −2..=2, escape 5.
    let x = array![[0.0, 3.0, -5.0], [5.1, -400.0, 1e7]];
    let coded = quantize(&*bound, &planes[2], Role::Delta, &x).unwrap();
    assert_eq!(coded.symbols, [2, 4, 0, 5, 5, 5]);
    assert!(coded.side.is_empty());
    assert_eq!(coded.escapes.items(), [(1003, 3), (1004, -200), (1005, 5_000_000)]);
    let y = dequantize(&*bound, &planes[2], Role::Delta, x.dim(), &coded).unwrap();
    assert_eq!(y, array![[0.0, 4.0, -4.0], [6.0, -400.0, 1e7]]);
    // Layer 2: 1.5 × 0.5 × 1.
    let y = round_trip(&*bound, &planes[5], Role::Delta, &array![[0.75, 0.37, -0.38]]);
    assert_eq!(y, array![[0.75, 0.0, -0.75]]);
}

#[test]
fn steps_have_eight_bits_and_are_never_zero() {
    let planes = planes(1, 1, 1);
    for (sigma, want) in [(0.0, 1.0), (1.0, 0.333_984_38), (1e-38, f32::MIN_POSITIVE)] {
        let bound = bind_quantizer("bins(step=0.33333333)", &planes, Role::Whole, Some(&sigmas(&[sigma; 2])));
        assert_eq!(round_trip(&*bound, &planes[0], Role::Whole, &array![[want]]), array![[want]]);
        let coded = quantize(&*bound, &planes[0], Role::Whole, &array![[want]]).unwrap();
        assert_eq!(coded.symbols, [128], "{sigma}");
    }
}

#[test]
fn values_beyond_i32_are_errors() {
    let planes = planes_of(1, 1, 1, Dtype::F32);
    let bound = bind_quantizer("bins(step=1)", &planes, Role::Whole, Some(&sigmas(&[1.0; 2])));
    for bad in [2_147_483_648.0, -2_147_483_904.0, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = quantize(&*bound, &planes[0], Role::Whole, &array![[bad]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{bad}");
    }
    for good in [2_147_483_520.0, -2_147_483_648.0, 127.5, 128.0, -127.5, 4_194_305.0] {
        let y = round_trip(&*bound, &planes[0], Role::Whole, &array![[good]]);
        assert!((y[[0, 0]] - good).abs() <= 0.5, "{good}");
    }
    let absmax = bind_quantizer("bins(scale=f16)", &planes, Role::Whole, None);
    let error = quantize(&*absmax, &planes[0], Role::Whole, &array![[1e6]]).unwrap_err();
    assert!(error.to_string().contains("scale=bf16"), "{error}");
    let absmax = bind_quantizer("bins", &planes, Role::Whole, None);
    for bad in [f32::MAX, f32::NAN, f32::INFINITY] {
        assert!(quantize(&*absmax, &planes[0], Role::Whole, &array![[bad]]).is_err(), "{bad}");
    }
}

#[test]
fn corrupt_input_is_an_error() {
    let planes = planes(1, 1, 2);
    let bound = bind_quantizer("bins", &planes, Role::Whole, None);
    let good = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, 2.0]]).unwrap();
    for side in [0x7f80u16, 0x7fc1, 0xbf80, 0x7f7f] {
        let bad = Coded { side: side.to_le_bytes().to_vec(), ..good.clone() };
        let error = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{side:#x}");
    }
    let bad = Coded { side: Vec::new(), ..good };
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &bad).is_err());

    let bound = bind_quantizer("bins(step=1)", &planes, Role::Whole, Some(&sigmas(&[1e30; 2])));
    let none = Coded { symbols: vec![127, 255], side: Vec::new(), escapes: Escapes::default() };
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &none).is_err());
    let mut large = none.clone();
    large.escapes.writer(1000).push(1, i32::MAX);
    let error = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &large).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let unused = Coded { symbols: vec![127, 127], ..large };
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &unused).is_err());
}

#[test]
fn sigma_is_calibrated_without_anchors() {
    let planes = planes(1, 1, 2);
    let parts = vec![vec![Part::new(Role::Anchor, 2), Part::new(Role::Delta, 2)]; 2];
    let stage = try_quantizer("bins(step=1)").unwrap();
    let cx = BindCx::new(&planes, &parts, None, Source::Profile);
    assert!(stage.bind(&cx).is_err());
    assert!(try_quantizer("bins").unwrap().calibrator(&cx).is_none());
    let calibrator = stage.calibrator(&cx).unwrap();
    assert!(calibrator.accumulator(&planes[0]).finish().is_err());
    let finish = planes.iter().map(|plane| {
        let mut sums = calibrator.accumulator(plane);
        let tile = TileCx::new(plane, 0, 3, 0);
        let anchors = array![[1e9, 1e9]];
        let deltas =
            if plane.index == 0 { array![[3.0, -1.0], [3.0, -1.0]] } else { array![[5.0, 5.0], [5.0, 5.0]] };
        let anchor_cx = PartCx::new(0, Role::Anchor, 1, 2);
        sums.observe(&tile, &anchor_cx, Seen::Values(anchors.view())).unwrap();
        let delta_cx = PartCx::new(1, Role::Delta, 2, 2);
        sums.observe(&tile, &delta_cx, Seen::Values(deltas.view())).unwrap();
        assert!(sums.observe(&tile, &delta_cx, Seen::Symbols(0, &[])).is_err());
        sums.finish().unwrap()
    });
    let data = calibrator.finish(finish.collect()).unwrap();
    // 2 is the deviation of (3, −1); what does not vary has its magnitude.
    assert_eq!(data.get_u16("sigma").unwrap().1, [0, 0x4000, 0, 0x40a0]);
    let bound = stage.bind(&BindCx::new(&planes, &parts, Some(&data), Source::Profile)).unwrap();
    let alphabet = |index: usize| bound.alphabets(&planes[0], &parts[0][index], index)[0];
    assert_eq!(alphabet(0), Alphabet { size: 256, escape: false });
    assert_eq!(alphabet(1), Alphabet { size: 256, escape: true });
    // A chunk without deltas binds.
    let chunk = stage.calibrator(&BindCx::new(&planes, &parts, None, Source::Chunk)).unwrap();
    assert!(chunk.accumulator(&planes[0]).finish().is_ok());
    for bad in [sigmas(&[1.0; 3]), sigmas(&[1.0, f32::NAN, 1.0, 1.0]), sigmas(&[1.0, -1.0, 1.0, 1.0])] {
        let error = stage.bind(&BindCx::new(&planes, &parts, Some(&bad), Source::Chunk)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn units_follow_from_sensitivities() {
    let geometry = geometry_of(2, 1, 2, Dtype::F16);
    let planes = geometry.planes();
    let parts = vec![vec![Part::new(Role::Anchor, 2), Part::new(Role::Delta, 2)]; 4];
    let mut statistics = cacheg_core::Statistics::new(&geometry, 1, 0).unwrap();
    let counts = cacheg_core::Counts { contexts: 1, tokens: 1, continuation_tokens: 1, pairs: 1 };
    let origin = cacheg_core::Origin { name: "x".into(), sha256: String::new() };
    statistics.note(origin, counts).unwrap();
    // Mean diagonals of 4, 1; 1/4 and hardly anything, which counts as 4 millionths.
    for (layer, kind, traces) in [(0, "key", 8.0), (0, "value", 2.0), (1, "key", 0.5), (1, "value", 1e-30)] {
        let sums = &mut statistics.layers_mut()[layer];
        sums.residual = 1.0;
        sums.get_mut(&format!("{kind}.sensitivity"))[0] = traces;
    }
    let stage = try_quantizer("bins(step=1;unit=sensitivity)").unwrap();
    assert_eq!(stage.config()["unit"], "sensitivity");
    assert!(try_quantizer("bins(step=1)").unwrap().config().get("unit").is_none());
    let data = |cx: &BindCx<'_>| {
        let calibrator = stage.calibrator(cx).unwrap();
        let finish = planes.iter().map(|plane| {
            let mut sums = calibrator.accumulator(plane);
            let x = array![[3.0, -1.0], [3.0, -1.0]];
            let part = PartCx::new(1, Role::Delta, 2, 2);
            sums.observe(&TileCx::new(plane, 0, 3, 0), &part, Seen::Values(x.view())).unwrap();
            sums.finish().unwrap()
        });
        calibrator.finish(finish.collect())
    };
    let cx = BindCx::new(&planes, &parts, None, Source::Profile);
    assert!(data(&cx).unwrap_err().to_string().contains("--statistics"));
    let cx = cx.with_statistics(Some(&statistics));
    let units: Vec<f32> =
        data(&cx).unwrap().get_u16("sigma").unwrap().1.into_iter().map(crate::carried::widen).collect();
    // σ is 2 everywhere; units 1/2, 1, 2, 500 have the geometric mean 500^(1/4).
    let scale = 2.0 / 500f32.powf(0.25);
    for (got, want) in units.chunks_exact(2).zip([0.5, 1.0, 2.0, 500.0]) {
        assert_eq!(got[0], 0.0, "anchors");
        assert!((got[1] / (scale * want) - 1.0).abs() < 0.004, "{units:?}");
    }
    // Sinks cost nothing unless there are no anchors; then those of layer 0's keys, 1,000 times.
    statistics.layers_mut()[0].get_mut("key.sink_sensitivity")[0] = 8_000.0;
    let cx = BindCx::new(&planes, &parts, None, Source::Profile).with_statistics(Some(&statistics));
    let again = data(&cx).unwrap().get_u16("sigma").unwrap().1;
    assert_eq!(again.iter().map(|bits| crate::carried::widen(*bits)).collect::<Vec<_>>(), units);
    let whole = one_part(&planes, Role::Whole);
    let cx = BindCx::new(&planes, &whole, None, Source::Profile).with_statistics(Some(&statistics));
    let costs = unit::Costs::new(&cx);
    let roles = vec![vec![Role::Whole]; 4];
    let one = crate::carried::bf16(1.0);
    let units = costs.units(&roles, &[one; 4]).unwrap().into_iter().map(crate::carried::widen);
    let units: Vec<f32> = units.collect();
    // (8 + 8,000) / 2 channels / 2 pairs against 2 / 2 / 2.
    assert!((units[1] / units[0] / 4_004f32.sqrt() - 1.0).abs() < 0.01, "{units:?}");
    let chunk = BindCx::new(&planes, &parts, None, Source::Chunk);
    assert!(data(&chunk).unwrap_err().to_string().contains("needs a profile"));
}

#[test]
fn no_rows() {
    let planes = planes(1, 1, 4);
    let bound = bind_quantizer("bins", &planes, Role::Whole, None);
    assert_eq!(round_trip(&*bound, &planes[0], Role::Whole, &Array2::zeros((0, 4))).nrows(), 0);
}

#[test]
fn settings_are_checked() {
    for (bad, setting) in [
        ("bins(k=3)", "`k`"),
        ("bins(v=300)", "`v`"),
        ("bins(anchor=2)", "`anchor`"),
        ("bins(k=32,16;k-at=1,2)", "`k-at`"),
        ("bins(k=32,16,8;k-at=5,5)", "`k-at`"),
        ("bins(v=32,16;v-at=0)", "`v-at`"),
        ("bins(step=0)", "`step`"),
        ("bins(step=1;level=-1)", "`level`"),
        ("bins(level=2)", "`level`"),
        ("bins(step=1;reach=0)", "`reach`"),
        ("bins(step=1;reach=128)", "`reach`"),
        ("bins(scale=f8)", "f8"),
        ("bins(unit=sensitivity)", "`unit`"),
        ("bins(step=1;unit=parsec)", "parsec"),
    ] {
        let message = try_quantizer(bad).unwrap_err().to_string();
        assert!(message.contains("bins") && message.contains(setting), "{bad}: {message}");
    }
}
