//! Tables by the quantizer's classes: as good as a table for each channel, and nothing to store for channels.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use cacheg_core::testkit::Random;
use cacheg_core::{
    Alphabet, BindCx, Build, CLASSES, Coder, Dtype, ErrorKind, Geometry, LayerGroup, Part, PartCx, Plane,
    Result, Role, Seen, Segment, Shape, Source, StageData, TileCx, spec,
};

fn try_coder(text: &str) -> Result<Arc<dyn Coder>> {
    let stage = &spec::parse(text).unwrap()[0];
    let registry = cacheg_core::Registry::new(cacheg_entropy::PLUGINS.iter().copied()).unwrap();
    match registry.get(&stage.name).unwrap().build {
        Build::Coder(build) => build(&stage.config),
        _ => unreachable!(),
    }
}

/// Columns of Laplacian values, coded in steps.
struct Model {
    planes: Vec<Plane>,
    parts: Vec<Vec<Part>>,
    /// Deviations of each plane's columns in steps.
    deviations: Vec<Vec<f64>>,
    reach: i32,
}

impl Model {
    /// Deviations between these powers of two, not where classes' middles are.
    fn new(cols: u32, reach: u8, octaves: [f64; 2], escape: bool) -> Self {
        let shape = Some(Shape { heads: 1, head_dim: cols, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 2, key: shape, value: shape, latent: None, rope: None };
        let planes = Geometry::new([layer]).unwrap().planes();
        let mut random = Random::new(77);
        let (mut parts, mut deviations) = (Vec::new(), Vec::new());
        for _ in &planes {
            let octave = |_| octaves[0] + (octaves[1] - octaves[0]) * random.below(10_000) as f64 / 1e4;
            let octaves: Vec<f64> = (0..cols).map(octave).collect();
            let mut part = Part::new(Role::Whole, cols as usize);
            part.alphabets = vec![Alphabet { size: 2 * u16::from(reach) + 2, escape }];
            part.classes = octaves.iter().map(|octave| (4.0 * octave + 40.0).round() as u8).collect();
            parts.push(vec![part]);
            deviations.push(octaves.into_iter().map(f64::exp2).collect());
        }
        Self { planes, parts, deviations, reach: i32::from(reach) }
    }

    /// Symbols of a plane, and how many bits they are worth.
    fn symbols(&self, plane: usize, rows: usize, seed: u64) -> (Vec<u8>, f64) {
        let mut random = Random::new(seed + plane as u64);
        let (mut symbols, mut bits) = (Vec::new(), 0.0);
        for _ in 0..rows {
            for deviation in &self.deviations[plane] {
                let decay = deviation / std::f64::consts::SQRT_2;
                let beyond = |steps: f64| (-steps / decay).exp();
                let uniform = (1.0 + random.below(1 << 30) as f64) / f64::from((1 << 30) + 1);
                let size = (-uniform.ln() * decay).round() as i32;
                let sign = if random.below(2) == 0 { -1 } else { 1 };
                let reach = f64::from(self.reach);
                let share = match size {
                    0 => 1.0 - beyond(0.5),
                    _ if size > self.reach => beyond(reach + 0.5),
                    _ => (beyond(f64::from(size) - 0.5) - beyond(f64::from(size) + 0.5)) / 2.0,
                };
                bits -= share.log2();
                let escape = 2 * self.reach + 1;
                symbols.push((if size > self.reach { escape } else { self.reach + sign * size }) as u8);
            }
        }
        (symbols, bits)
    }

    fn cx<'a>(&'a self, data: Option<&'a StageData>, source: Source) -> BindCx<'a> {
        BindCx::new(&self.planes, &self.parts, data, source)
    }

    fn calibrate(&self, coder: &dyn Coder, source: Source, rows: usize, seed: u64) -> StageData {
        let calibrator = coder.calibrator(&self.cx(None, source)).unwrap();
        let planes = self.planes.iter().map(|plane| {
            let mut counts = calibrator.accumulator(plane);
            let (symbols, _) = self.symbols(plane.index, rows, seed);
            let part = PartCx::new(0, Role::Whole, rows, plane.channels());
            counts.observe(&TileCx::new(plane, 0, rows, 0), &part, Seen::Symbols(0, &symbols)).unwrap();
            counts.finish().unwrap()
        });
        calibrator.finish(planes.collect()).unwrap()
    }

    /// Bits of a stream of all planes, after a round trip, and what they are worth.
    fn coded(&self, spec: &str, rows: usize) -> (f64, f64) {
        let coder = try_coder(spec).unwrap();
        let data = self.calibrate(&*coder, Source::Profile, rows, 1);
        let bound = coder.bind(&self.cx(Some(&data), Source::Profile)).unwrap();
        let (mut segments, mut symbols, mut worth) = (Vec::new(), Vec::new(), 0.0);
        for (plane, parts) in self.planes.iter().zip(&self.parts) {
            let (own, bits) = self.symbols(plane.index, rows, 1_000);
            segments.push(Segment::new(plane.index, 0, 0, rows, plane.channels(), parts[0].alphabets[0]));
            symbols.extend(own);
            worth += bits;
        }
        let mut out = vec![0; bound.max_len(&segments)];
        let len = bound.encode(&segments, &symbols, &mut out, &mut bound.scratch()).unwrap();
        let mut back = vec![0; symbols.len()];
        bound.decode(&segments, &out[..len], &mut back, &mut bound.scratch()).unwrap();
        assert_eq!(symbols, back);
        (8.0 * len as f64, worth)
    }
}

#[test]
fn streams_are_near_their_ideal_and_those_of_tables_by_channel() {
    for (reach, octaves) in [(15, [-4.0, 2.0]), (127, [-3.0, 5.0]), (3, [-2.0, 0.5])] {
        let model = Model::new(96, reach, octaves, true);
        for name in ["rans", "range"] {
            let (by_scale, worth) = model.coded(&format!("{name}(tables=scale)"), 3_000);
            let (by_channel, _) = model.coded(&format!("{name}(tables=channel)"), 3_000);
            let ratios = [by_scale / worth, by_scale / by_channel];
            assert!(ratios[0] < 1.01 && ratios[1] < 1.015, "{name}, reach {reach}: {ratios:?}");
        }
    }
}

/// What a class was never seen to do is what a Laplacian would do.
#[test]
fn classes_that_calibration_never_saw() {
    let mut model = Model::new(64, 15, [-3.0, 2.0], true);
    let coder = try_coder("rans(tables=scale)").unwrap();
    let data = model.calibrate(&*coder, Source::Profile, 0, 1);
    assert_eq!(data.get_u32("tables").unwrap().1, [96, 96]);
    assert!(data.get_u8("class").is_err());
    let bound = coder.bind(&model.cx(Some(&data), Source::Profile)).unwrap();
    let (symbols, worth) = model.symbols(0, 2_000, 5);
    let segments = [Segment::new(0, 0, 0, 2_000, 64, model.parts[0][0].alphabets[0])];
    let bits = bound.ideal_bits(&segments, &symbols).unwrap();
    assert!(bits < 1.01 * worth, "{bits} {worth}");
    // Tables serve any classes.
    for part in model.parts.iter_mut().flatten() {
        part.classes.fill(95);
    }
    assert!(coder.bind(&model.cx(Some(&data), Source::Profile)).is_ok());
}

#[test]
fn chunks_carry_tables_of_classes_that_occur() {
    for (reach, escape) in [(15, true), (40, true), (127, false)] {
        let model = Model::new(24, reach, [-2.0, 2.0], escape);
        for name in ["rans", "range"] {
            let coder = try_coder(&format!("{name}(tables=scale)")).unwrap();
            let cx = model.cx(None, Source::Chunk);
            for rows in [0, 3, 500] {
                let data = model.calibrate(&*coder, Source::Chunk, rows, 1);
                let packed = coder.pack(&cx, &data).unwrap();
                // At most 17 classes of keys and of values; 32 weights of 12 bits and a few more each.
                assert!(reach > 15 || packed.len() < 2 * 17 * 64, "{}", packed.len());
                assert_eq!(coder.unpack(&cx, &packed).unwrap(), data, "{name} {reach} {rows}");
                assert!(coder.bind(&model.cx(Some(&data), Source::Chunk)).is_ok());
                for len in 0..packed.len() {
                    assert!(coder.unpack(&cx, &packed[..len]).is_err());
                }
                assert!(coder.unpack(&cx, &[&packed[..], &[0]].concat()).is_err());
            }
        }
    }
}

#[test]
fn without_classes_there_is_an_error() {
    let mut model = Model::new(4, 15, [0.0, 1.0], true);
    let coder = try_coder("rans(tables=scale)").unwrap();
    let data = model.calibrate(&*coder, Source::Profile, 9, 1);
    let error = |model: &Model| coder.bind(&model.cx(Some(&data), Source::Profile)).err().unwrap();
    model.parts[1][0].classes = vec![CLASSES as u8; 4];
    assert_eq!(error(&model).kind(), ErrorKind::InvalidData);
    model.parts[1][0].classes = vec![1; 3];
    assert_eq!(error(&model).kind(), ErrorKind::InvalidData);
    model.parts[1][0].classes = Vec::new();
    let error = error(&model);
    assert_eq!(error.kind(), ErrorKind::InvalidSetting);
    assert!(error.to_string().contains("such as `steps`"), "{error}");
    // Of other scopes nobody asks for classes.
    let by_class = try_coder("rans(tables=class)").unwrap();
    let data = model.calibrate(&*by_class, Source::Profile, 9, 1);
    assert!(by_class.bind(&model.cx(Some(&data), Source::Profile)).is_ok());
    for spec in
        ["rans(tables=scale;contexts=3)", "rans(carried=scale;contexts=3)", "range(tables=scale;cdf=33)"]
    {
        assert_eq!(try_coder(spec).err().unwrap().kind(), ErrorKind::InvalidSetting, "{spec}");
    }
}
