//! Files that say how much attention tokens got, and which ones are left.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::{Cpu, Dtype, ExtraTensor, Importance, LayerGroup, kv_metadata, write_kv, write_kv_with};
use cacheg::{Encoder, ErrorKind, Geometry, KvCache, KvFile, Limits, Pipeline, calibrate, flow};
use common::{cache, encode_with, even, importance, shape};

/// A file says which tokens are left, and nobody takes it for a whole one.
#[test]
fn files_with_dropped_tokens_say_so() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let kv = KvCache::copy_of(&cache(&geometry, 40, 1).view(), 7, 33);
    let of_kv = importance(&geometry, 33, 2);
    let bytes = encode_with(&registry, "h2o(keep=0.4)|bytes|raw", &kv, &of_kv, None, 20).unwrap();
    let decode = flow::Decode { registry: &registry, profile: None, backend: &Cpu };
    let decoded = decode.run(&bytes, &Limits::default(), &|_| ()).unwrap();
    let view = decoded.view().unwrap();
    let mut file = Vec::new();
    let mut metadata = kv_metadata(&view);
    metadata.insert("context_tokens".into(), "what the source said".into());
    write_kv(&mut file, &view, &metadata).unwrap();

    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let positions = tensors.tensor("layers.2.positions").unwrap();
    assert_eq!((positions.dtype(), positions.shape()), (safetensors::Dtype::I64, &[3, 13][..]));
    let written = positions.data().as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let kept = decoded.kept.as_ref().unwrap();
    assert!(written.eq((0..3).flat_map(|head| kept.positions(2, head))));

    let back = KvFile::from_bytes(file.clone(), &Limits::default()).unwrap();
    assert_eq!(back.view().kept(), Some(kept));
    assert_eq!(back.metadata()["context_tokens"], "33");
    assert_eq!(back.metadata()["next_position"], "40");
    cacheg::compare::planes(&view, &back.view()).unwrap();
    let error = cacheg::compare::planes(&kv.view(), &back.view()).unwrap_err().to_string();
    assert!(error.contains("33 and 13 of 33 tokens") && error.contains("dropped"), "{error}");

    // Neither coded again nor calibrated on as if it were whole.
    let pipeline = || Pipeline::parse(&registry, "mean|uniform|raw").unwrap();
    let encoder = Encoder::new(pipeline(), back.geometry(), None).unwrap();
    for error in [
        encoder.encode(&back.view(), 0..5, &|_| ()).unwrap_err(),
        calibrate(&[pipeline()], &[back.view()], 20, &|_| ()).unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(error.kind() == ErrorKind::InvalidData && message.contains("13 of 33"), "{message}");
    }
    drop(tensors);
    lying_files(&file);
}

fn lying_files(good: &[u8]) {
    let refused = |from: &str, to: &str, says: &str| {
        assert_eq!(from.len(), to.len());
        let mut bad = good.to_vec();
        let at = bad.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        let error = KvFile::from_bytes(bad, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(r#""context_tokens":"33""#, r#""context_tokens":"32""#, "do not end before position 40");
    refused(r#""context_tokens":"33""#, r#""context_toxens":"33""#, "no number of tokens");
    refused(r#""next_position":"40""#, r#""next_position":"no""#, "no next position");
    refused("layers.1.positions", "layers.1.positionz", "layers.1.positions");
    refused(r#""shape":[2,13]"#, r#""shape":[1,26]"#, "expected");
    let first = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for (at, position, says) in [
        (0, 6i64, "outside"),
        (0, -1, "outside"),
        (0, 1 << 40, "outside"),
        (1, 7, "ascending"),
        (12, 40, "beyond"),
    ] {
        let mut bad = good.to_vec();
        bad[first + 8 * at..][..8].copy_from_slice(&position.to_le_bytes());
        // What is written must be another position than it was.
        assert!(bad != good || at == 1);
        if let Err(error) = KvFile::from_bytes(bad.clone(), &Limits::default()) {
            assert!(error.to_string().contains(says), "{error}");
        } else {
            assert_eq!(bad, good);
        }
    }
}

#[test]
fn importance_is_read_from_files() {
    let geometry = Geometry::new([LayerGroup {
        repeat: 2,
        key: shape(2, 4, Dtype::F16),
        value: shape(2, 4, Dtype::F16),
        latent: None,
        rope: None,
    }])
    .unwrap();
    let kv = cache(&geometry, 5, 1);
    let sums: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let queries = vec![0.0; 4 * 3 * 4];
    let read = |tensors: &[(&str, &[usize], &[f32])]| {
        let tensors: Vec<ExtraTensor<'_>> =
            tensors.iter().map(|(name, shape, values)| ExtraTensor { name, shape, values }).collect();
        let mut file = Vec::new();
        write_kv_with(&mut file, &kv.view(), &kv_metadata(&kv.view()), &tensors).unwrap();
        KvFile::from_bytes(file, &Limits::default()).unwrap().importance()
    };
    let all: [(&str, &[usize], &[f32]); 5] = [
        ("layers.0.attention_sum", &[4, 5], &sums),
        ("layers.0.attention_recent", &[4, 5], &sums),
        ("layers.1.attention_sum", &[4, 5], &sums),
        ("layers.1.attention_recent", &[4, 5], &sums),
        ("layers.0.queries", &[4, 3, 4], &queries),
    ];
    let importance: Importance = read(&all).unwrap().unwrap();
    assert_eq!((importance.tokens(), importance.layers(), importance.recent_queries()), (5, 2, Some(3)));
    assert_eq!(importance.accumulated(1, 0), [5.0, 7.0, 9.0, 11.0, 13.0]);
    assert_eq!(importance.recent(0, 1), [25.0, 27.0, 29.0, 31.0, 33.0]);
    assert_eq!(read(&all[..4]).unwrap().unwrap().recent_queries(), None);
    assert_eq!(read(&[]).unwrap(), None);

    let refused = |at: usize, name: &str, shape: &[usize], values: &[f32], says: &str| {
        let mut tensors = all;
        tensors[at] = (name, shape, values);
        let message = read(&tensors).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    };
    refused(2, "other", &[4, 5], &sums, "layers.1.attention_sum: invalid data: not there");
    refused(3, "other", &[4, 5], &sums, "layers.1.attention_recent: invalid data: not there");
    refused(1, "layers.0.attention_recent", &[5, 4], &sums, "[query_heads, 5] is expected");
    refused(1, "layers.0.attention_recent", &[3, 5], &sums[..15], "a multiple of 2");
    refused(1, "layers.0.attention_recent", &[2, 2, 5], &sums, "is expected");
    let mut bad = sums.clone();
    bad[7] = -1.0;
    refused(0, "layers.0.attention_sum", &[4, 5], &bad, "-1 at query head 1, token 2");
    bad[7] = f32::NAN;
    refused(0, "layers.0.attention_sum", &[4, 5], &bad, "NaN at query head 1, token 2");
}
