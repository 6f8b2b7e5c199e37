use super::*;
use crate::testing::*;
use cacheg_core::{ErrorKind, PartCx, Role, Seen, Source, StageData};
use ndarray::{Array2, s};

/// Planes that are sums of the planes before, and a little of their own.
fn related(planes: &[Plane], rows: usize, own: f32) -> Vec<Array2<f32>> {
    let mut all: Vec<Array2<f32>> = Vec::new();
    for plane in planes {
        let mut x = random(rows, plane.channels(), if plane.index < 2 { 1.0 } else { own });
        if plane.index >= 2 {
            x = x + &all[plane.index - 2] * 0.7 - &all[plane.index - 1].slice(s![.., ..;-1]) * 0.4;
        }
        all.push(x);
    }
    all
}

fn calibrated(spec: &str, planes: &[Plane], x: &[Array2<f32>]) -> StageData {
    let calibrator =
        try_transform(spec).unwrap().calibrator(&BindCx::new(planes, &[], None, Source::Profile));
    let calibrator = calibrator.unwrap();
    let all = planes.iter().map(|plane| {
        let mut sums = calibrator.accumulator(plane);
        let (tile, part) = (
            TileCx::new(plane, 0, x[0].nrows(), 0),
            PartCx::new(0, Role::Whole, x[0].nrows(), plane.channels()),
        );
        let references: Vec<_> = calibrator.references(plane).iter().map(|other| x[*other].view()).collect();
        let own = x[plane.index].view();
        let seen = if references.is_empty() { Seen::Values(own) } else { Seen::Predicted(own, &references) };
        sums.observe(&tile, &part, seen).unwrap();
        sums.finish().unwrap()
    });
    calibrator.finish(all.collect()).unwrap()
}

fn variance(x: &Array2<f32>) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32
}

#[test]
fn planes_are_predicted_from_those_before() {
    let planes = planes(4, 2, 8);
    let x = related(&planes, 1_500, 0.1);
    let data = calibrated("predict", &planes, &x);
    let bound = bind_transform("predict", &planes, Some(&data));
    let wanted: Vec<&[usize]> = planes.iter().map(|plane| bound.references(plane)).collect();
    assert_eq!(wanted, [&[][..], &[0], &[0, 1], &[0, 1, 2], &[2, 3], &[2, 3, 4], &[4, 5], &[4, 5, 6]]);
    // From what a lossy codec would have made of them.
    let lossy: Vec<Array2<f32>> = x.iter().map(|x| x.mapv(|x| (x * 32.0).round() / 32.0)).collect();
    for plane in &planes {
        let references: Vec<_> = bound.references(plane).iter().map(|other| lossy[*other].view()).collect();
        let tile = TileCx::new(plane, 0, 1_500, 0);
        let x = &x[plane.index];
        let mut left = Array2::from_elem(x.raw_dim(), f32::NAN);
        bound.forward(&tile, 0, x.view(), &references, left.view_mut()).unwrap();
        if plane.index >= 2 {
            assert!(variance(&left) < 0.05 * variance(x), "{}: {}", plane.name(), variance(&left));
        }
        let mut parts = vec![left.view()];
        parts.extend(references);
        let mut back = Array2::from_elem(x.raw_dim(), f32::NAN);
        bound.inverse(&tile, &parts, back.view_mut()).unwrap();
        assert!((x - &back).iter().all(|error| error.abs() < 1e-3));
        // Without references it is an error, not a panic.
        assert!(plane.index == 0 || bound.inverse(&tile, &parts[..1], back.view_mut()).is_err());
    }
}

#[test]
fn settings_choose_the_references() {
    let planes = planes(4, 1, 4);
    let of = |spec: &str| {
        let calibrator =
            try_transform(spec).unwrap().calibrator(&BindCx::new(&planes, &[], None, Source::Profile));
        calibrator.unwrap().references(&planes[7])
    };
    assert_eq!(of("predict(layers=2)"), [2, 3, 4, 5, 6]);
    assert_eq!(of("predict(v-from-k=false)"), [4, 5]);
    for wrong in ["predict(layers=0)", "predict(layers=8)", "predict(v-from-k=3)"] {
        assert_eq!(try_transform(wrong).unwrap_err().kind(), ErrorKind::InvalidSetting);
    }
}

#[test]
fn bad_data_is_refused() {
    let planes = planes(2, 1, 2);
    let stage = try_transform("predict").unwrap();
    // The first value from its key, then the second layer.
    let data = |weights: usize, shift: i8, grid: i8| {
        let mut data = StageData::new();
        carried::put_signed(&mut data, "weights", &vec![1; weights]);
        carried::put_signed(&mut data, "reference", &[0; 12]);
        carried::put_signed(&mut data, "shift", &[shift; 6]);
        carried::put_signed(&mut data, "grid", &[grid; 3]);
        data
    };
    let kind = |data: Option<&StageData>| {
        stage.bind(&BindCx::new(&planes, &[], data, Source::Profile)).err().map(|error| error.kind())
    };
    assert_eq!(kind(Some(&data(24, 10, 3))), None);
    assert_eq!(kind(None), Some(ErrorKind::Profile));
    for bad in [data(23, 10, 3), data(24, 61, 0), data(24, 40, 0), data(24, -17, 0), data(24, 0, 61)] {
        assert_eq!(kind(Some(&bad)), Some(ErrorKind::Profile));
    }
    // Whatever the numbers, nothing panics.
    let bound = stage.bind(&BindCx::new(&planes, &[], Some(&data(24, -16, 0)), Source::Profile)).unwrap();
    let (tile, large) = (TileCx::new(&planes[1], 0, 3, 0), Array2::from_elem((3, 2), f32::MAX));
    let mut out = Array2::zeros((3, 2));
    bound.inverse(&tile, &[large.view(), large.view()], out.view_mut()).unwrap();
    let error = bound.forward(&tile, 0, large.view(), &[large.view()], out.view_mut()).unwrap_err();
    assert!(error.to_string().contains("token 0, channel 0"), "{error}");
}

/// Strided views and others give the same.
#[test]
fn all_layouts_give_the_same_bits() {
    let planes = planes(1, 3, 7);
    let x = related(&planes, 70, 0.5);
    let data = calibrated("predict", &planes, &x);
    let bound = bind_transform("predict", &planes, Some(&data));
    let tile = TileCx::new(&planes[1], 0, 70, 0);
    let mut flat = Array2::zeros((70, 21));
    bound.inverse(&tile, &[x[1].view(), x[0].view()], flat.view_mut()).unwrap();
    let turned: Vec<Array2<f32>> = x.iter().map(|x| x.t().as_standard_layout().to_owned()).collect();
    let mut strided = Array2::zeros((21, 70));
    bound.inverse(&tile, &[turned[1].t(), turned[0].t()], strided.view_mut().reversed_axes()).unwrap();
    assert_eq!(flat, strided.t());
}
