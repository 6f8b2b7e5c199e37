//! What the conformance kit does not look at: sizes, row counts around the lanes, scopes, carried tables.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Build, Coder, Dtype, Geometry, LayerGroup, Part, PartCx, Plane, Role, Seen,
    Segment, Shape, Source, StageData, TileCx, spec,
};

const SCOPES: [&str; 4] = ["one", "layer", "channel", "class"];

fn coder(text: &str) -> Arc<dyn Coder> {
    let stage = &spec::parse(text).unwrap()[0];
    let registry = cacheg_core::Registry::new(cacheg_entropy::PLUGINS.iter().copied()).unwrap();
    match registry.get(&stage.name).unwrap().build {
        Build::Coder(build) => build(&stage.config).unwrap(),
        _ => unreachable!(),
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A symbol near a middle that depends on the column.
    fn symbol(&mut self, size: u16, col: usize, width: u32) -> u8 {
        let noise =
            (0..4).map(|_| self.next() as i64 % i64::from(width) - i64::from(width) / 2).sum::<i64>() / 2;
        let middle = (i64::from(size) / 2 + col as i64 % 5 - 2).max(0);
        (middle + noise).clamp(0, i64::from(size) - 1) as u8
    }
}

/// A model of a few planes, its parts and symbols.
struct Model {
    planes: Vec<Plane>,
    parts: Vec<Vec<Part>>,
}

impl Model {
    /// Planes of `cols` channels; parts of all these alphabets, each as a symbol plane.
    fn new(cols: u32, parts: &[&[u16]]) -> Self {
        let shape = Some(Shape { heads: 1, head_dim: cols, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 2, key: shape, value: shape, latent: None, rope: None };
        let planes = Geometry::new([layer]).unwrap().planes();
        let part = |sizes: &&[u16]| {
            let mut part = Part::new(Role::Whole, cols as usize);
            part.alphabets.extend(sizes.iter().map(|size| Alphabet { size: *size, escape: *size > 2 }));
            part
        };
        let parts = vec![parts.iter().map(part).collect(); planes.len()];
        Self { planes, parts }
    }

    fn cx<'a>(&'a self, data: Option<&'a StageData>, source: Source) -> BindCx<'a> {
        BindCx::new(&self.planes, &self.parts, data, source)
    }

    fn segments(&self, rows: usize) -> Vec<Segment> {
        let mut segments = Vec::new();
        for (plane, parts) in self.parts.iter().enumerate() {
            for (index, part) in parts.iter().enumerate() {
                for (symbol_plane, alphabet) in part.alphabets.iter().enumerate() {
                    // The second part has fewer rows, perhaps none.
                    let rows = rows / (index + 1);
                    segments.push(Segment::new(plane, index, symbol_plane, rows, part.cols, *alphabet));
                }
            }
        }
        segments
    }

    fn symbols(&self, segments: &[Segment], seed: u64, width: u32) -> Vec<u8> {
        let mut random = Random(seed);
        let of = |s: &Segment| (0..s.len()).map(|i| (s.alphabet.size, i % s.cols)).collect::<Vec<_>>();
        let all: Vec<(u16, usize)> = segments.iter().flat_map(of).collect();
        all.into_iter().map(|(size, col)| random.symbol(size, col, width)).collect()
    }

    fn calibrate(
        &self,
        coder: &dyn Coder,
        source: Source,
        rows: usize,
        seed: u64,
        width: u32,
    ) -> Option<StageData> {
        let cx = self.cx(None, source);
        let calibrator = coder.calibrator(&cx)?;
        let segments = self.segments(rows);
        let symbols = self.symbols(&segments, seed, width);
        let mut gathered = Vec::new();
        for plane in &self.planes {
            let mut accumulator = calibrator.accumulator(plane);
            let mut rest = &symbols[..];
            for segment in &segments {
                let (own, more) = rest.split_at(segment.len());
                rest = more;
                if segment.plane == plane.index {
                    let part = PartCx::new(segment.part, Role::Whole, segment.rows, segment.cols);
                    let seen = Seen::Symbols(segment.symbol_plane, own);
                    accumulator.observe(&TileCx::new(plane, 0, rows, 0), &part, seen).unwrap();
                }
            }
            gathered.push(accumulator.finish().unwrap());
        }
        Some(calibrator.finish(gathered).unwrap())
    }

    fn bind(
        &self,
        coder: &dyn Coder,
        source: Source,
        rows: usize,
        seed: u64,
        width: u32,
    ) -> Box<dyn BoundCoder> {
        let data = self.calibrate(coder, source, rows, seed, width);
        coder.bind(&self.cx(data.as_ref(), source)).unwrap()
    }
}

fn round_trip(bound: &dyn BoundCoder, segments: &[Segment], symbols: &[u8]) -> Vec<u8> {
    let mut out = vec![0xa5; bound.max_len(segments)];
    let mut scratch = bound.scratch();
    let len = bound.encode(segments, symbols, &mut out, &mut scratch).unwrap();
    let mut back = vec![0x5a; symbols.len()];
    bound.decode(segments, &out[..len], &mut back, &mut scratch).unwrap();
    assert!(back == symbols);
    out.truncate(len);
    out
}

#[test]
fn any_number_of_rows_comes_back() {
    for (text, model) in [
        ("rans", Model::new(3, &[&[20], &[200, 2]])),
        ("rans(tables=channel)", Model::new(5, &[&[33], &[32]])),
        ("range", Model::new(3, &[&[20], &[200, 2]])),
        ("range(streams=channel)", Model::new(3, &[&[20], &[200, 2]])),
        ("raw", Model::new(3, &[&[20], &[200, 2]])),
    ] {
        let coder = coder(text);
        let bound = model.bind(&*coder, Source::Profile, 64, 1, 8);
        for rows in [0, 1, 2, 31, 32, 33, 63, 64, 65, 1000] {
            let segments = model.segments(rows);
            for width in [1, 8, 300] {
                let bytes = round_trip(&*bound, &segments, &model.symbols(&segments, 7, width));
                assert!(rows > 0 || bytes.is_empty(), "{text}");
            }
        }
    }
}

#[test]
fn large_streams_are_near_their_ideal() {
    let model = Model::new(64, &[&[32, 256]]);
    for (text, slack) in [("rans", 1.003), ("range", 1.0005), ("range(streams=channel)", 1.012)] {
        let coder = coder(text);
        let bound = model.bind(&*coder, Source::Chunk, 1024, 1, 8);
        let segments = model.segments(1024);
        let symbols = model.symbols(&segments, 1, 8);
        let bits = 8.0 * round_trip(&*bound, &segments, &symbols).len() as f64;
        let ideal = bound.ideal_bits(&segments, &symbols).unwrap();
        assert!(bits >= ideal && bits <= ideal * slack, "{text}: {bits} bits, ideal {ideal}");
    }
}

#[test]
fn carried_tables_come_back_in_every_scope() {
    let model = Model::new(6, &[&[20, 256], &[33, 2]]);
    for name in ["rans", "range"] {
        for scope in SCOPES {
            let coder = coder(&format!("{name}(tables={scope};classes=5)"));
            for rows in [0, 3, 2000] {
                for source in [Source::Chunk, Source::Profile] {
                    let data = model.calibrate(&*coder, source, rows, 3, 9).unwrap();
                    let cx = model.cx(None, source);
                    let packed = coder.pack(&cx, &data).unwrap();
                    assert_eq!(coder.unpack(&cx, &packed).unwrap(), data, "{name} {scope} {rows}");
                    for len in 0..packed.len() {
                        assert!(coder.unpack(&cx, &packed[..len]).is_err(), "{name} {scope}: {len} bytes");
                    }
                    let longer = [&packed[..], &[0]].concat();
                    assert!(coder.unpack(&cx, &longer).is_err());
                    // Corrupt bytes: an error, or tables that work.
                    let segments = model.segments(4);
                    let symbols = model.symbols(&segments, 5, 40);
                    for at in 0..packed.len().min(300) {
                        for flip in [1, 0x10, 0xff] {
                            let mut bad = packed.clone();
                            bad[at] ^= flip;
                            if let Ok(data) = coder.unpack(&cx, &bad) {
                                let bound = coder.bind(&model.cx(Some(&data), source)).unwrap();
                                round_trip(&*bound, &segments, &symbols);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn cdf_tables_have_the_public_form() {
    let model = Model::new(6, &[&[32]]);
    let coder = coder("range(tables=channel;cdf=33)");
    let cx = model.cx(None, Source::Chunk);
    let data = model.calibrate(&*coder, Source::Chunk, 256, 3, 9).unwrap();
    let packed = coder.pack(&cx, &data).unwrap();
    assert_eq!(packed.len(), 4 * 6 * 33 * 2);
    assert_eq!(coder.unpack(&cx, &packed).unwrap(), data);
    for table in packed.chunks(66) {
        let cdf: Vec<u16> = table.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert!(cdf[0] == 0 && cdf[32] == 0 && cdf[..32].is_sorted_by(|a, b| a < b));
    }
    for at in 0..66 {
        let mut bad = packed.clone();
        bad[at] ^= 0xff;
        if let Ok(data) = coder.unpack(&cx, &bad) {
            assert!(coder.bind(&model.cx(Some(&data), Source::Chunk)).is_ok());
        }
    }
    assert!(coder.unpack(&cx, &packed[1..]).is_err());
    let large = Model::new(6, &[&[33]]);
    assert!(coder.bind(&large.cx(Some(&data), Source::Chunk)).is_err());
}

#[test]
fn impossible_settings_are_refused() {
    for text in [
        "range(cdf=33)",
        "range(tables=channel;cdf=2)",
        "rans(classes=0)",
        "rans(classes=257)",
        "rans(cdf=33)",
    ] {
        let stage = &spec::parse(text).unwrap()[0];
        let build = |plugin: &cacheg_core::Plugin| match plugin.build {
            Build::Coder(build) => build(&stage.config),
            _ => unreachable!(),
        };
        let plugin = cacheg_entropy::PLUGINS.iter().find(|plugin| plugin.name == stage.name).unwrap();
        assert!(build(plugin).is_err(), "{text}");
    }
}

#[test]
fn truncation_is_always_found_and_corruption_never_panics() {
    let model = Model::new(3, &[&[20, 200], &[33, 2]]);
    let mut random = Random(9);
    for text in ["rans", "range", "range(streams=channel)", "raw"] {
        let coder = coder(text);
        let bound = model.bind(&*coder, Source::Profile, 100, 1, 9);
        let segments = model.segments(40);
        let symbols = model.symbols(&segments, 2, 9);
        let bytes = round_trip(&*bound, &segments, &symbols);
        let mut back = vec![0; symbols.len()];
        let mut scratch = bound.scratch();
        for len in 0..bytes.len() {
            assert!(
                bound.decode(&segments, &bytes[..len], &mut back, &mut scratch).is_err(),
                "{text}: {len}"
            );
        }
        let longer = [&bytes[..], &[0, 0]].concat();
        assert!(bound.decode(&segments, &longer, &mut back, &mut scratch).is_err(), "{text}");
        for _ in 0..2000 {
            let mut bad = bytes.clone();
            for _ in 0..=random.next() % 3 {
                let at = random.next() as usize % bad.len();
                bad[at] = random.next() as u8;
            }
            if bound.decode(&segments, &bad, &mut back, &mut scratch).is_ok() {
                round_trip(&*bound, &segments, &back);
            }
        }
    }
}
