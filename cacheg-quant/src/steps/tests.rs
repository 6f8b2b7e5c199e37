use super::octaves::{Steps, quarter_octaves, stored};
use super::*;
use crate::testing::*;
use cacheg_core::{Dtype, ErrorKind, Escapes, Role, Seen, Statistics};
use ndarray::{Array2, array};

/// Data of planes that are bound with one part each: all of one unit and scale, in quarter-octaves.
fn data(planes: &[Plane], unit: i32, scale: i32, centroid: u8) -> StageData {
    let channels = planes.iter().map(Plane::channels).sum();
    let heads = planes.iter().map(|plane| plane.shape.heads as usize).sum();
    let mut data = StageData::new();
    data.put_u8(UNIT, &[heads], &vec![stored(unit); heads]);
    data.put_u8(SCALE, &[channels], &vec![stored(scale); channels]);
    data.put_u8(CENTROID, &[576], &[centroid; 576]);
    data
}

fn calibrate(
    spec: &str,
    planes: &[Plane],
    source: Source,
    statistics: Option<&Statistics>,
    values: impl Fn(&Plane) -> Array2<f32>,
) -> Result<StageData> {
    let parts = one_part(planes, Role::Whole);
    let cx = BindCx::new(planes, &parts, None, source).with_statistics(statistics);
    let calibrator = try_quantizer(spec)?.calibrator(&cx).unwrap();
    let finish = planes.iter().map(|plane| {
        let x = values(plane);
        let mut sums = calibrator.accumulator(plane);
        // In two pieces.
        let half = x.nrows() / 2;
        for rows in [0..half, half..x.nrows()] {
            let tile = TileCx::new(plane, rows.start, rows.len(), 0);
            let part = PartCx::new(0, Role::Whole, rows.len(), plane.channels());
            sums.observe(&tile, &part, Seen::Values(x.slice(ndarray::s![rows, ..])))?;
        }
        sums.finish()
    });
    calibrator.finish(finish.collect::<Result<_>>()?)
}

/// Laplacian values of these deviations.
fn laplacian(rows: usize, deviations: &[f64], seed: u64) -> Array2<f32> {
    let mut rng = Rng(seed);
    Array2::from_shape_fn((rows, deviations.len()), |(_, col)| {
        let u = f64::from(rng.unit()).clamp(-0.999_999, 0.999_999);
        (-u.signum() * (1.0 - u.abs()).ln() * deviations[col] / std::f64::consts::SQRT_2) as f32
    })
}

#[test]
fn quarter_octaves_round_to_the_nearest() {
    for quarters in -4_000..4_000 {
        let exact = f64::from(quarters) / 4.0;
        assert_eq!(quarter_octaves(exact.exp2()), quarters);
        // Just within an eighth on both sides.
        for near in [-0.124_9, 0.124_9] {
            assert_eq!(quarter_octaves((exact + near).exp2()), quarters, "{near}");
        }
    }
    for (eighths, edge) in [(1, 0x3ff1_72b8_3c7d_517b), (7, 0x3ffd_5818_dcfb_a487)] {
        let quarters = (eighths + 1) / 2;
        assert_eq!(quarter_octaves(f64::from_bits(edge)), quarters);
        assert_eq!(quarter_octaves(f64::from_bits(edge - 1)), quarters - 1);
        assert_eq!(quarter_octaves(f64::from_bits(edge) * 1024.0), 40 + quarters);
    }
    for nothing in [0.0, -0.0, -1.0, f64::NAN, f64::NEG_INFINITY, 1e-320] {
        assert_eq!(quarter_octaves(nothing), -4_096);
        assert_eq!(stored(quarter_octaves(nothing)), 0);
    }
    assert_eq!(quarter_octaves(f64::MIN_POSITIVE), -4_088);
    assert_eq!(quarter_octaves(f64::MAX), 4_096);
    assert_eq!(stored(quarter_octaves(f64::INFINITY)), 255);
}

#[test]
fn steps_have_eight_bits_and_classes_are_of_their_size() {
    for factor in [1.0, 0.37, 17.3, 1e-6] {
        let steps = Steps::new(factor, 15);
        for unit in -128..128 {
            let step = steps.step(unit).unwrap();
            assert_eq!(step.to_bits() & 0xffff, 0);
            let exact = (f64::from(unit) / 4.0).exp2() * factor;
            assert!((f64::from(step) / exact - 1.0).abs() < 0.006, "{unit}: {step}");
            // A deviation of one step, within the roundings of both.
            let class = steps.class(quarter_octaves(f64::from(step)), unit);
            assert!(class.abs_diff(40) <= 1);
        }
    }
    let steps = Steps::new(1.0, 15);
    assert_eq!([steps.class(-128, 0), steps.class(127, 0), steps.class(3, -4)], [0, 95, 47]);
    assert_eq!(Steps::new(1e-300, 15).step(-128).unwrap(), 2f32.powi(-118));
    let error = Steps::new(1e35, 127).step(127).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSetting);
    assert!(Steps::new(f64::MAX, 2).step(127).is_err());
}

#[test]
fn hand_computed() {
    let planes = planes(1, 2, 2);
    let mut data = data(&planes, 0, 0, 0);
    // Steps of 2 · 0.5 and 1.414 · 0.5 in the keys' heads; classes 40 and 42 with 1.414 as deviation.
    data.put_u8(UNIT, &[4], &[stored(4), stored(2), 128, 128]);
    data.put_u8(SCALE, &[8], &[stored(0), stored(2), stored(2), stored(2), 128, 128, 128, 128]);
    let mut centroid = vec![0; 576];
    centroid[3 * 40..3 * 41].copy_from_slice(&[128 - 1, 64, 16]);
    centroid[3 * 42..3 * 43].copy_from_slice(&[32, 0, 8]);
    data.put_u8(CENTROID, &[576], &centroid);
    let bound = bind_quantizer("steps(step=0.5;reach=4)", &planes, Role::Whole, Some(&data));
    let part = Part::new(Role::Whole, 4);
    // Q(0.5) is −4: 0 − 4 + 4 + 40, and so on.
    assert_eq!(bound.classes(&planes[0], &part, 0), [40, 42, 44, 44]);
    assert_eq!(bound.alphabets(&planes[0], &part, 0), [Alphabet { size: 10, escape: true }]);
    assert!(bound.escapes() && bound.pointwise() && bound.independent_rows());
    let x = array![
        [1.0, -1.0, 0.6, 0.0],
        [-1.6, 2.0, 2.9, -0.3],
        [3.4, -4.4, -2.8, 7.2],
        [-4.5, 4.6, 1.06, -0.0]
    ];
    let coded = quantize(&*bound, &planes[0], Role::Whole, &x).unwrap();
    assert_eq!(coded.symbols, [5, 3, 5, 4, 2, 6, 8, 4, 7, 0, 0, 9, 0, 9, 5, 4]);
    assert_eq!(coded.escapes.items(), [(1011, 10), (1013, 5)]);
    let y = dequantize(&*bound, &planes[0], Role::Whole, x.dim(), &coded).unwrap();
    let half = 181.0 / 256.0;
    let want = array![
        [1.0 - 127.0 / 256.0, -1.0 + 0.125, half, 0.0],
        [-2.0 + 0.25, 2.0, 4.0 * half, 0.0],
        [3.0 - 0.0625, -4.0 + 8.0 / 256.0, -4.0 * half, 10.0 * half],
        [-4.0 + 0.0625, 5.0, half, 0.0]
    ];
    assert_eq!(y, want);
    let [first, second] =
        [0, 1].map(|part| Segment::new(0, part, 0, 4, 4, Alphabet { size: 10, escape: true }));
    assert_eq!(bound.escaped(&planes[0], &first, 3, -10).unwrap(), -10.0 * half);
    assert!(bound.escaped(&planes[0], &first, 4, 1).is_err());
    assert!(bound.escaped(&planes[0], &second, 0, 1).is_err());
    assert!(bound.escaped(&planes[0], &first.of_grade(0, 1), 0, 1).is_err());
}

/// The product of a reconstruction is exact, for all steps, symbols and centroids.
#[test]
fn reconstructions_are_exact() {
    let planes = planes(1, 1, 1);
    for unit in [-128, -3, 0, 1, 2, 127] {
        for centroid in [0, 1, 77, 127] {
            let data = data(&planes, unit, 0, centroid);
            let bound = bind_quantizer("steps(step=0.77;reach=127)", &planes, Role::Whole, Some(&data));
            let symbols: Vec<u8> = (0..255).collect();
            let coded = Coded { symbols, side: Vec::new(), escapes: Escapes::default() };
            let y = dequantize(&*bound, &planes[0], Role::Whole, (255, 1), &coded).unwrap();
            let step = f64::from(Steps::new(0.77, 127).step(unit).unwrap());
            for (q, y) in (-127i32..).zip(&y) {
                let shift = if q == 0 { 0.0 } else { f64::from(centroid) };
                let exact = (f64::from(256 * q.abs()) - shift) * step / 256.0;
                assert_eq!(f64::from(y.abs()), exact);
                assert!(*y == 0.0 || y.is_sign_negative() == (q < 0));
            }
            assert!(y.iter().zip(y.iter().skip(1)).all(|(a, b)| a < b));
        }
    }
}

#[test]
fn units_scales_and_centroids_follow_from_values() {
    let planes = planes(1, 2, 2);
    let deviations = [4.0, 4.0, 1.0, 0.25];
    let data =
        calibrate("steps(step=1)", &planes, Source::Profile, None, |_| laplacian(20_000, &deviations, 5));
    let data = data.unwrap();
    // Roots of the means of 16 and 16, 1 and 1/16: 4 and 0.73.
    assert_eq!(data.get_u8(UNIT).unwrap().1[..2], [stored(8), stored(-2)]);
    assert_eq!(data.get_u8(SCALE).unwrap().1[..4], [stored(8), stored(8), stored(0), stored(-8)]);
    let centroid = data.get_u8(CENTROID).unwrap().1;
    assert!(centroid.iter().all(|shift| *shift <= MOST));
    // Classes 40, 42 and 34, where the Laplacian is what was seen: 29 of one step; elsewhere it is taken for granted.
    for kind in 0..2 {
        let of = |class: usize| &centroid[3 * (96 * kind + class)..][..3];
        assert!(of(40)[..2].iter().all(|shift| shift.abs_diff(29) <= 3), "{:?}", of(40));
        assert!(of(40)[2].abs_diff(29) <= 9, "{:?}", of(40));
        assert_eq!(of(39)[0], of(39)[2]);
        assert!(of(34)[0].abs_diff(66) <= 4, "{:?}", of(34));
    }
    // Better than the cells' middles by what theory says.
    let zeros = self::data(&planes, 0, 0, 0).get_u8(CENTROID).unwrap().1;
    let mut plain = data.clone();
    plain.put_u8(CENTROID, &[576], &zeros);
    let x = laplacian(20_000, &deviations, 6);
    let [with, without] = [&data, &plain].map(|data| {
        let bound = bind_quantizer("steps(step=1)", &planes, Role::Whole, Some(data));
        let y = round_trip(&*bound, &planes[0], Role::Whole, &x);
        (&x - &y).mapv(|error| f64::from(error).powi(2)).sum()
    });
    assert!(with < 0.97 * without, "{with} {without}");
}

#[test]
fn units_follow_from_sensitivities() {
    let geometry = geometry_of(2, 2, 1, Dtype::F16);
    let planes = geometry.planes();
    let mut statistics = Statistics::new(&geometry, 1, 0).unwrap();
    let counts = cacheg_core::Counts { contexts: 1, tokens: 1, continuation_tokens: 1, pairs: 1 };
    let origin = cacheg_core::Origin { name: "x".into(), sha256: String::new() };
    statistics.note(origin, counts).unwrap();
    // Units 1/2, 1, 2, 1/4 and so on, before scaling; what costs nothing is 1,000 times the finest.
    let costs = [[4.0, 1.0], [0.25, 16.0], [1.0, 1.0], [1.0, 0.0]];
    for (number, costs) in costs.iter().enumerate() {
        let sums = &mut statistics.layers_mut()[number / 2];
        sums.residual = 1.0;
        let kind = ["key", "value"][number % 2];
        sums.get_mut(&format!("{kind}.sensitivity")).copy_from_slice(costs);
    }
    let spec = "steps(unit=sensitivity)";
    let run = |source, statistics| {
        calibrate(spec, &planes, source, statistics, |plane| {
            // Deviations of 8 and 2; the last plane's second head is always 0.
            Array2::from_shape_fn((4, 2), |(row, col)| {
                let zero = plane.index == 3 && col == 1;
                let size = if zero { 0.0 } else { [8.0, 2.0][col] };
                if row % 2 == 0 { size } else { -size }
            })
        })
    };
    let units = run(Source::Profile, Some(&statistics)).unwrap().get_u8(UNIT).unwrap().1;
    // Scales 12 and 4; costs −4 0, 4 −8, 0 0, 0 32: differences 16 4, 8 12, 12 4, 12, whose mean is 9.7.
    let want = [6, 10, 14, 2, 10, 10, 10, 10 + 32];
    let got: Vec<i32> = units.iter().map(|unit| meant(*unit)).collect();
    assert_eq!(got, want);
    let error = run(Source::Profile, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Profile && error.to_string().contains("--statistics"), "{error}");
    let error = run(Source::Chunk, None).unwrap_err();
    assert!(error.to_string().contains("needs a profile"), "{error}");
    let nothing = Statistics::new(&geometry, 1, 0).unwrap();
    assert_eq!(run(Source::Profile, Some(&nothing)).unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn nothing_seen_and_nothing_but_zeros() {
    let planes = planes(1, 2, 2);
    let none = |_: &Plane| Array2::zeros((0, 4));
    assert_eq!(
        calibrate("steps", &planes, Source::Profile, None, none).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
    let chunk = calibrate("steps", &planes, Source::Chunk, None, none).unwrap();
    let zeros = calibrate("steps", &planes, Source::Profile, None, |_| Array2::zeros((3, 4))).unwrap();
    assert_eq!(chunk, zeros);
    // Steps of 1, so that what comes later is not lost.
    let bound = bind_quantizer("steps", &planes, Role::Whole, Some(&zeros));
    assert_eq!(bound.classes(&planes[0], &Part::new(Role::Whole, 4), 0), [0; 4]);
    let coded = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, 0.4, -30.0, 1e6]]).unwrap();
    assert_eq!(coded.symbols, [16, 15, 31, 31]);
    for bad in [f32::NAN, f32::INFINITY] {
        let error = calibrate("steps", &planes, Source::Chunk, None, |_| Array2::from_elem((3, 4), bad));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn values_beyond_i32_are_errors() {
    let planes = planes_of(1, 1, 1, Dtype::F32);
    let bound = bind_quantizer("steps", &planes, Role::Whole, Some(&data(&planes, 0, 0, 9)));
    for bad in [2_147_483_648.0, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = quantize(&*bound, &planes[0], Role::Whole, &array![[bad]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{bad}");
    }
    for good in [2_147_483_520.0, -2_147_483_648.0, 15.6, -16.0] {
        let y = round_trip(&*bound, &planes[0], Role::Whole, &array![[good]]);
        assert!((y[[0, 0]] - good).abs() <= 0.5, "{good}");
    }
}

#[test]
fn bad_data_is_refused() {
    let planes = planes(1, 1, 2);
    let parts = one_part(&planes, Role::Whole);
    let stage = try_quantizer("steps").unwrap();
    let kind = |data: Option<&StageData>, source| {
        stage.bind(&BindCx::new(&planes, &parts, data, source)).err().map(|error| error.kind())
    };
    let good = data(&planes, 0, 0, 127);
    assert_eq!(kind(Some(&good), Source::Profile), None);
    assert_eq!(kind(None, Source::Profile), Some(ErrorKind::Profile));
    for (name, len) in [(UNIT, 3), (SCALE, 3), (SCALE, 5), (CENTROID, 575)] {
        let mut bad = good.clone();
        bad.put_u8(name, &[len], &vec![0; len]);
        assert_eq!(kind(Some(&bad), Source::Profile), Some(ErrorKind::Profile), "{name}");
        assert_eq!(kind(Some(&bad), Source::Chunk), Some(ErrorKind::Corrupt), "{name}");
    }
    assert_eq!(kind(Some(&data(&planes, 0, 0, 128)), Source::Chunk), Some(ErrorKind::Corrupt));
    assert_eq!(kind(Some(&StageData::new()), Source::Chunk), Some(ErrorKind::Corrupt));
    // The largest unit is finite; with a large `step` it is the setting's fault.
    assert_eq!(kind(Some(&data(&planes, 127, 0, 0)), Source::Profile), None);
    let large = try_quantizer("steps(step=1e30)").unwrap();
    let data = data(&planes, 127, 0, 0);
    let error = large.bind(&BindCx::new(&planes, &parts, Some(&data), Source::Profile)).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("`step`"), "{error}");
    // Escapes that are infinite, missing, or too many.
    let bound = bind_quantizer("steps(step=1e20;reach=1)", &planes, Role::Whole, Some(&data));
    let none = Coded { symbols: vec![1, 3], side: Vec::new(), escapes: Escapes::default() };
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &none).is_err());
    let mut large = none.clone();
    large.escapes.writer(1000).push(1, i32::MAX);
    let error = dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &large).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let unused = Coded { symbols: vec![1, 1], ..large };
    assert!(dequantize(&*bound, &planes[0], Role::Whole, (1, 2), &unused).is_err());
}

/// Parts of other widths than the plane count as one head.
#[test]
fn parts_of_other_widths() {
    let planes = planes(1, 2, 4);
    let parts = vec![vec![Part::new(Role::Whole, 5), Part::new(Role::Delta, 8)]; 2];
    let cx = BindCx::new(&planes, &parts, None, Source::Chunk);
    let calibrator = try_quantizer("steps").unwrap().calibrator(&cx).unwrap();
    let finish = |plane: &Plane| calibrator.accumulator(plane).finish().unwrap();
    let data = calibrator.finish(planes.iter().map(finish).collect()).unwrap();
    assert_eq!(data.get_u8(UNIT).unwrap().1.len(), 2 * (1 + 2));
    assert_eq!(data.get_u8(SCALE).unwrap().1.len(), 2 * (5 + 8));
    assert!(
        try_quantizer("steps")
            .unwrap()
            .bind(&BindCx::new(&planes, &parts, Some(&data), Source::Chunk))
            .is_ok()
    );
}

#[test]
fn settings_are_checked() {
    for (bad, setting) in [
        ("steps(step=0)", "`step`"),
        ("steps(step=-1)", "`step`"),
        ("steps(reach=0)", "`reach`"),
        ("steps(reach=128)", "`reach`"),
        ("steps(unit=parsec)", "parsec"),
        ("steps(level=1)", "level"),
    ] {
        let message = try_quantizer(bad).unwrap_err().to_string();
        assert!(message.contains("steps") && message.contains(setting), "{bad}: {message}");
    }
}
