use super::*;
use crate::{Dtype, ErrorKind, LayerGroup, Shape};

fn geometry(heads: u32, dtype: Dtype) -> Geometry {
    let shape = Some(Shape { heads, head_dim: 3, dtype });
    let layer = LayerGroup { repeat: 3, key: shape, value: shape, latent: None, rope: None };
    Geometry::new([layer]).unwrap()
}

/// Numbers in −1 .. 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn row(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.next()).collect()
    }
}

fn outer(out: &mut [f64], a: &[f64], b: &[f64]) {
    for (row, a) in out.chunks_exact_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(x, b)| *x += a * b);
    }
}

const TOKENS: usize = 40;

/// Statistics of random rows of two heads of three channels, window 1.
fn random(seed: u64) -> Statistics {
    let mut statistics = Statistics::new(&geometry(2, Dtype::F16), 4, 1).unwrap();
    let mut noise = Noise(seed);
    for _ in 0..TOKENS {
        let rows: Vec<Vec<f64>> = (0..3).map(|_| noise.row(12).iter().map(|x| x + 0.5).collect()).collect();
        for (layer, sums) in statistics.layers_mut().iter_mut().enumerate() {
            let (key, value) = rows[layer].split_at(6);
            for (name, x) in [("key", key), ("value", value)] {
                sums.get_mut(&format!("{name}.sum")).iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
                outer(sums.get_mut(&format!("{name}.moment")), x, x);
                for (head, x) in x.chunks(3).enumerate() {
                    outer(&mut sums.get_mut(&format!("{name}.sensitivity"))[head * 9..][..9], x, x);
                }
            }
            outer(sums.get_mut("value_key"), value, key);
            if layer > 0 {
                outer(sums.get_mut("back.1"), &rows[layer], &rows[layer - 1]);
            }
            for head in 0..2 {
                let (mut x, y) = (noise.row(7), noise.next());
                x[0] = 1.0;
                outer(&mut sums.get_mut("importance.xx")[head * 49..][..49], &x, &x);
                outer(&mut sums.get_mut("importance.xy")[head * 7..][..7], &x, &[y]);
                sums.get_mut("importance.yy")[head] += y * y;
            }
            sums.residual += 2.0;
        }
    }
    let counts =
        Counts { contexts: 1, tokens: TOKENS as u64, continuation_tokens: 10, pairs: 10 * TOKENS as u64 };
    statistics.note(Origin { name: format!("text {seed}"), sha256: format!("{seed:064x}") }, counts).unwrap();
    statistics
}

fn bytes(statistics: &Statistics) -> Vec<u8> {
    let mut out = Vec::new();
    let (length, _) = statistics.write(&mut out).unwrap();
    assert_eq!(length, out.len() as u64);
    out
}

#[test]
fn files_come_back_with_their_hash() {
    let statistics = random(1);
    let mut file = Vec::new();
    let (_, hash) = statistics.write(&mut file).unwrap();
    let back = Statistics::from_bytes(&file).unwrap();
    assert_eq!(back.hash(), Some(hash.as_str()));
    assert_eq!(Statistics { hash: None, ..back }, statistics);
    assert_eq!(bytes(&statistics), file, "the same bytes every time");
}

#[test]
fn sums_become_means() {
    let statistics = random(2);
    let planes = geometry(2, Dtype::F16).planes();
    let (key, value) = (&planes[2], &planes[3]);
    let mean = statistics.mean(key);
    assert!(mean.iter().all(|m| (m - 0.5).abs() < 0.4), "{mean:?}");
    let covariance = statistics.covariance(key);
    // Of numbers in −1 .. 1: a third.
    assert!((0..6).all(|i| (covariance[i * 7] - 1.0 / 3.0).abs() < 0.15), "{covariance:?}");
    let sums = statistics.layer(1).unwrap();
    let by_hand = sums.get("value_key")[1] / 40.0 - statistics.mean(value)[0] * mean[1];
    assert!((statistics.value_key_covariance(1)[1] - by_hand).abs() < 1e-12);
    let by_hand =
        sums.get("back.1")[12 * 7 + 2] / 40.0 - statistics.mean(value)[1] * statistics.mean(&planes[0])[2];
    assert!((statistics.back_covariance(1, 1)[12 * 7 + 2] - by_hand).abs() < 1e-12);
    assert!(statistics.back_covariance(1, 2).is_empty() && statistics.back_covariance(0, 1).is_empty());
    // Residual 2 · 40 / 10 = 8; 400 pairs.
    let by_hand = sums.get("key.sensitivity")[9 + 4] / 400.0 / 8.0;
    assert!((statistics.sensitivity(key)[9 + 4] - by_hand).abs() < 1e-15);
    let trace: f64 = [0, 4, 8, 9, 13, 17].iter().map(|i| statistics.sensitivity(key)[*i]).sum();
    assert!((statistics.mean_sensitivity(key) - trace / 6.0).abs() < 1e-15);
    // Sinks that cost nothing, 4 · 10 pairs more.
    let all = statistics.mean_sensitivity_of_all(key);
    assert!((all - statistics.mean_sensitivity(key) * 400.0 / 440.0).abs() < 1e-15);
    assert!(statistics.sink_sensitivity(value).iter().all(|x| *x == 0.0));
    let importance = statistics.importance(2, 1).unwrap();
    assert_eq!((importance.features, importance.xx[0], importance.xy.len()), (7, 40.0, 7));
    assert!(statistics.importance(2, 2).is_none() && statistics.importance(3, 0).is_none());
}

#[test]
fn merging_adds_and_refuses_what_does_not_belong() {
    let (a, b) = (random(1), random(2));
    let mut both = a.clone();
    both.merge(&b).unwrap();
    assert_eq!(both.counts().tokens, 2 * TOKENS as u64);
    assert_eq!(both.origins().len(), 2);
    for (name, tensor) in &both.layers[1].tensors {
        let sum = |i: usize| a.layers[1].get(name)[i] + b.layers[1].get(name)[i];
        assert!(tensor.values.iter().enumerate().all(|(i, x)| *x == sum(i)), "{name}");
    }
    both.validate().unwrap();
    let error = both.merge(&a).unwrap_err().to_string();
    assert!(error.contains("text 1"), "{error}");
    assert_eq!(both.counts().contexts, 2, "nothing was added");
    let error = both.note(a.origins()[0].clone(), Counts::default()).unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    for (other, why) in [
        (Statistics::new(&geometry(2, Dtype::F16), 3, 1).unwrap(), "sinks"),
        (Statistics::new(&geometry(2, Dtype::F16), 4, 2).unwrap(), "window"),
        (Statistics::new(&geometry(1, Dtype::F16), 4, 1).unwrap(), "another model"),
    ] {
        let error = both.merge(&other).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(a.check_model(&geometry(2, Dtype::Bf16)).is_ok());
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let spoil = |name: &str, at: usize, to: f64| {
        let mut statistics = random(3);
        statistics.layers_mut()[1].get_mut(name)[at] = to;
        let error = statistics.write(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        error.to_string()
    };
    for (name, at, to, why) in [
        ("value_key", 3, f64::NAN, "layers.1.value_key: invalid data: NaN at index 3"),
        ("key.sum", 0, f64::INFINITY, "layers.1.key.sum"),
        ("key.moment", 1, 1e3, "layers.1.key.moment: matrix: invalid data: not symmetric"),
        (
            "value.sensitivity",
            9,
            -1.0,
            "layers.1.value.sensitivity: head 1: invalid data: not positive definite",
        ),
        ("value.sum", 2, 1e3, "covariance of `layers.1.value`: invalid data: not positive definite"),
        ("back.1", 5, 1e6, "layers.1.back.1: invalid data: a cross moment"),
        ("importance.xx", 0, 3.0, "layers.1.importance"),
        ("importance.xy", 8, 1e3, "layers.1.importance: `xx`, `xy` and `yy` of head 1"),
    ] {
        let error = spoil(name, at, to);
        assert!(error.contains(why), "{name}: {error}");
    }
    let mut statistics = random(3);
    statistics.layers_mut()[2].residual = 0.0;
    assert!(statistics.write(&mut Vec::new()).unwrap_err().to_string().contains("residual"));
    let nothing = Statistics::new(&geometry(2, Dtype::F16), 4, 1).unwrap();
    assert!(nothing.write(&mut Vec::new()).unwrap_err().to_string().contains("of no contexts"));
}

/// A spoiled file's message; `None` if it was taken.
fn message(file: &[u8]) -> Option<String> {
    Statistics::from_bytes(file).err().map(|e| e.to_string())
}

#[test]
fn damaged_files_are_refused() {
    let file = bytes(&random(4));
    for length in (0..file.len()).step_by(97) {
        assert!(message(&file[..length]).is_some(), "{length} bytes were taken");
    }
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(file[8..header].to_vec()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        message(&[&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &file[header..]].concat()).unwrap()
    };
    for (from, to, why) in [
        (r#""cacheg_statistics":"0.1""#, r#""cacheg_statistics":"9.0""#, "version"),
        (r#""tokens":"40""#, r#""tokens":"-4""#, "tokens"),
        (r#""tokens":"40""#, r#""tokens":"41""#, "not 41"),
        (r#""pairs":"400""#, r#""pairs":"0""#, "of no pairs"),
        (r#""window":"1""#, r#""window":"4000000000""#, "at most 64"),
        (r#""window":"1""#, r#""window":"0""#, "too many"),
        (r#""window":"1""#, r#""window":"2""#, "no tensor `layers.2.back.2`"),
        (r#"\"heads\":2"#, r#"\"heads\":1"#, "shape"),
        (r#"\"heads\":2"#, r#"\"heads\":4000000"#, "over the limit"),
        (r#"\"heads\":2"#, r#"\"heads\":300000"#, "over the limit"),
        (r#"\"repeat\":3"#, r#"\"repeat\":4096"#, "shape"),
        (r#""layers.0.key.sum""#, r#""layers.0.key.some""#, "no tensor `layers.0.key.sum`"),
        (r#""dtype":"F64""#, r#""dtype":"I64""#, "not F64"),
        (r#""sinks":"4""#, r#""sinks":"4.5""#, "sinks"),
        (r#"\"name\":\"text 4\""#, r#"\"title\":\"text 4\""#, "sources"),
    ] {
        let error = with(from, to);
        assert!(error.contains(why), "{from} -> {to}: {error}");
    }
    // Damaged numbers are found or harmless, never a panic.
    let mut file = file;
    let mut noise = Noise(9);
    for _ in 0..300 {
        let at = header + (noise.next().abs() * (file.len() - header) as f64) as usize;
        let was = std::mem::replace(&mut file[at.min(header + 1_000)], 0xff);
        let _ = message(&file);
        file[at.min(header + 1_000)] = was;
    }
}
