use super::*;
use crate::testing::*;
use cacheg_core::{ErrorKind, PartCx, Role, Seen, Source, StageData, Statistics};

/// Channels that are sums of few sources, so that they are correlated.
fn mixed(rows: usize, cols: usize) -> Array2<f32> {
    let (a, b) = (random(rows, cols, 1.0), random(rows, 1, 3.0));
    Array2::from_shape_fn((rows, cols), |(r, c)| 0.3 * a[[r, c]] + b[[r, 0]] * ((c % 3) as f32 - 0.8))
}

fn calibrated(
    spec: &str,
    planes: &[Plane],
    statistics: Option<&Statistics>,
    x: &Array2<f32>,
) -> Result<StageData> {
    let cx = BindCx::new(planes, &[], None, Source::Profile).with_statistics(statistics);
    let calibrator = try_transform(spec)?.calibrator(&cx).unwrap();
    let all = planes.iter().map(|plane| {
        let mut sums = calibrator.accumulator(plane);
        for (first, rows) in [(0, 3), (3, x.nrows() - 3)] {
            let tile = TileCx::new(plane, first, rows, 0);
            let part = PartCx::new(0, Role::Whole, rows, plane.channels());
            sums.observe(&tile, &part, Seen::Values(x.slice(s![first..first + rows, ..]))).unwrap();
        }
        sums.finish()
    });
    calibrator.finish(all.collect::<Result<_>>()?)
}

#[test]
fn coefficients_are_uncorrelated_and_sorted() {
    let planes = planes(1, 2, 8);
    let x = mixed(500, 16);
    let data = calibrated("klt", &planes, None, &x).unwrap();
    let bound = bind_transform("klt", &planes, Some(&data));
    let mut variances = Vec::new();
    let y = round_trip_transform(&*bound, &planes[0], 0, &x, |_, y| {
        for head in 0..2 {
            let y = y.slice(s![.., 8 * head..8 * head + 8]).mapv(f64::from);
            let y = &y - &y.mean_axis(ndarray::Axis(0)).unwrap();
            let covariance = y.t().dot(&y) / 500.0;
            let own: Vec<f64> = covariance.diag().to_vec();
            for ((i, j), value) in covariance.indexed_iter().filter(|((i, j), _)| i != j) {
                // But for what 8 bits let through of the first.
                let bound = 0.02 * (own[i] * own[j]).sqrt() + own[0] / 256.0;
                assert!(value.abs() < bound, "{i} {j}: {value}, {bound}");
            }
            assert!(own.windows(2).all(|pair| pair[0] > 0.95 * pair[1]), "{own:?}");
            variances.push(own);
        }
    });
    // Nearly all of it in one coefficient.
    assert!(variances.iter().all(|own| own[0] > 20.0 * own[1]), "{variances:?}");
    assert!((&x - &y).iter().all(|error| error.abs() < 5e-3));
}

#[test]
fn what_costs_more_is_scaled_up() {
    let planes = planes(1, 1, 2);
    let geometry = geometry_of(1, 1, 2, cacheg_core::Dtype::F16);
    let mut statistics = Statistics::new(&geometry, 0, 1).unwrap();
    let counts = cacheg_core::Counts { contexts: 1, tokens: 10, continuation_tokens: 10, pairs: 100 };
    let origin = cacheg_core::Origin { name: "x".into(), sha256: "0".repeat(64) };
    statistics.note(origin, counts).unwrap();
    let layer = &mut statistics.layers_mut()[0];
    layer.residual = 1.0;
    layer.get_mut("key.sensitivity").copy_from_slice(&[9.0, 0.0, 0.0, 1.0]);
    layer.get_mut("value.sensitivity").copy_from_slice(&[1.0, 0.0, 0.0, 1.0]);
    let x = random(400, 2, 1.0);
    let data = calibrated("klt(metric=sensitivity)", &planes, Some(&statistics), &x).unwrap();
    let bound = bind_transform("klt(metric=sensitivity)", &planes, Some(&data));
    let mut gains = Vec::new();
    for plane in &planes {
        let unit = Array2::from_diag_elem(2, 1.0);
        round_trip_transform(&*bound, plane, 0, &unit, |_, y| {
            gains.push(y.outer_iter().map(|row| row.dot(&row)).collect::<Vec<_>>());
        });
    }
    // (M + 0.3) / 1.3 with M = diag(1.8, 0.2); values are all alike.
    let expected = [[2.1 / 1.3, 0.5 / 1.3], [1.0, 1.0]];
    for (found, expected) in gains.iter().zip(expected) {
        assert!(
            found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.02),
            "{gains:?}"
        );
    }
    let error = calibrated("klt(metric=sensitivity)", &planes, None, &x).unwrap_err();
    assert!(error.to_string().contains("--statistics"), "{error}");
    statistics.layers_mut()[0].get_mut("key.sensitivity").copy_from_slice(&[1.0, 9.0, 9.0, 1.0]);
    let error = calibrated("klt(metric=sensitivity)", &planes, Some(&statistics), &x).unwrap_err();
    assert!(
        error.to_string().contains("positive definite") && error.to_string().contains("head 0"),
        "{error}"
    );
}

#[test]
fn channels_that_never_change() {
    let planes = planes(1, 1, 4);
    let mut x = mixed(50, 4);
    x.column_mut(2).fill(7.0);
    let data = calibrated("klt", &planes, None, &x).unwrap();
    let bound = bind_transform("klt", &planes, Some(&data));
    let y = round_trip_transform(&*bound, &planes[0], 0, &x, |_, _| {});
    assert!((&x - &y).iter().all(|error| error.abs() < 5e-3));
}

fn data(synthesis: &[i8], shift: &[i8], grid: &[i8]) -> StageData {
    let mut data = StageData::new();
    carried::put_signed(&mut data, "synthesis", synthesis);
    carried::put_signed(&mut data, "shift", shift);
    carried::put_signed(&mut data, "grid", grid);
    data
}

#[test]
fn bad_data_is_refused() {
    let planes = planes(1, 1, 2);
    let stage = try_transform("klt").unwrap();
    let kind = |data: Option<&StageData>, source| {
        stage.bind(&BindCx::new(&planes, &[], data, source)).err().unwrap().kind()
    };
    assert_eq!(kind(None, Source::Profile), ErrorKind::Profile);
    assert_eq!(kind(Some(&StageData::new()), Source::Chunk), ErrorKind::Corrupt);
    assert_eq!(kind(Some(&data(&[1; 7], &[0; 4], &[0; 2])), Source::Profile), ErrorKind::Profile);
    assert_eq!(kind(Some(&data(&[1; 8], &[0; 3], &[0; 2])), Source::Chunk), ErrorKind::Corrupt);
    assert_eq!(kind(Some(&data(&[1; 8], &[0, 0, 0, 61], &[0; 2])), Source::Chunk), ErrorKind::Corrupt);
    assert_eq!(kind(Some(&data(&[1; 8], &[0; 4], &[0, -61])), Source::Chunk), ErrorKind::Corrupt);
    assert_eq!(kind(Some(&data(&[-128; 8], &[0; 4], &[0; 2])), Source::Chunk), ErrorKind::Corrupt);
    // A matrix without an inverse decodes, but cannot encode.
    let bound = bind_transform("klt", &planes, Some(&data(&[64; 8], &[6; 4], &[10; 2])));
    let (tile, x) = (TileCx::new(&planes[0], 0, 1, 0), Array2::ones((1, 2)));
    let mut out = Array2::zeros((1, 2));
    bound.inverse(&tile, &[x.view()], out.view_mut()).unwrap();
    assert_eq!(out, Array2::from_elem((1, 2), 2.0));
    let error = bound.forward(&tile, 0, x.view(), &[], out.view_mut()).unwrap_err();
    assert!(error.to_string().contains("no inverse"), "{error}");
    // Heads without end.
    let wide = crate::testing::planes(1, 1, 1_025);
    let error = stage.bind(&BindCx::new(&wide, &[], None, Source::Chunk)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("1024"), "{error}");
}

/// Large ones need more than 16 bits; what no integer holds is refused, and no profile's numbers panic.
#[test]
fn outliers() {
    let planes = planes(1, 1, 8);
    let x = mixed(200, 8);
    let data = calibrated("klt", &planes, None, &x).unwrap();
    let bound = bind_transform("klt", &planes, Some(&data));
    let mut large = x.clone();
    large[[7, 3]] = 1_000.0;
    let y = round_trip_transform(&*bound, &planes[0], 0, &large, |_, _| {});
    assert!((&large - &y).iter().all(|error| error.abs() < 1e-2));
    large[[7, 3]] = 1e9;
    let (tile, mut out) = (TileCx::new(&planes[0], 100, 200, 0), Array2::zeros(x.dim()));
    let error = bound.forward(&tile, 0, large.view(), &[], out.view_mut()).unwrap_err();
    assert!(error.to_string().contains("token 107"), "{error}");
    large.fill(f32::MAX);
    bound.inverse(&tile, &[large.view()], out.view_mut()).unwrap();
}

/// Slices and other views, strips and what is left of them.
#[test]
fn all_layouts_give_the_same_bits() {
    for n in [1, 5, 32, 33, 100] {
        let (x, matrix) = (random(1, n, 1.0), random(n, n, 1.0));
        let (mut fast, mut slow) = (Array2::zeros((1, n)), Array2::zeros((1, n)));
        multiply(x.as_slice().unwrap(), matrix.as_slice().unwrap(), fast.as_slice_mut().unwrap());
        multiply_strided(x.row(0), &matrix, slow.row_mut(0));
        assert_eq!(fast, slow, "{n}");
    }
}
