//! KV cache files: every layout and element type, what metadata says, and files that lie.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test's helper fails the test")]

use std::collections::BTreeMap;
use std::path::Path;

use cacheg_core::{
    Dtype, ErrorKind, ExtraTensor, Geometry, Kind, KvCache, KvFile, KvView, LayerGroup, Limits, Order,
    Pairing, Plane, Result, Rope, RopeScaling, Shape, kv_metadata, write_kv, write_kv_with,
};
use safetensors::{Dtype as StDtype, SafeTensors};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cacheg/sample/smollm2-135m-novel.safetensors");

/// One tensor of a file made by hand: name, element type, shape, bytes.
type Entry<'a> = (&'a str, &'a str, &'a [u64], Vec<u8>);

/// Metadata.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn metadata(pairs: Pairs<'_>) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A file of any header and any data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn file(pairs: Pairs<'_>, tensors: &[Entry<'_>]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::to_value(metadata(pairs)).unwrap());
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert((*name).into(), info);
        data.extend(bytes);
    }
    raw(&serde_json::Value::Object(header).to_string(), &data)
}

fn read(bytes: Vec<u8>) -> Result<KvFile> {
    KvFile::from_bytes(bytes, &Limits::default())
}

/// What is wrong with a file, and how it is told.
fn refused(bytes: Vec<u8>) -> (ErrorKind, String) {
    let error = read(bytes).expect_err("must be refused");
    (error.kind(), error.to_string())
}

/// Small numbers, exact in every element type.
fn numbers(dtype: Dtype, count: usize) -> Vec<u8> {
    let values: Vec<f32> = (0..count).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut bytes = vec![0; count * dtype.size()];
    dtype.narrow(&values, &mut bytes);
    bytes
}

fn load(view: &KvView<'_>, plane: usize) -> Vec<f32> {
    let mut out = vec![0.0; view.tokens() * view.planes()[plane].channels()];
    view.load(plane, 0, view.tokens(), &mut out);
    out
}

fn written(kv: &KvView<'_>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_kv(&mut bytes, kv, metadata).unwrap();
    bytes
}

/// What metadata says of the RoPE of one layer with heads of 8 channels.
fn rope_of(pairs: Pairs<'_>) -> Result<Option<Rope>> {
    ropes_of(pairs, 1).map(|ropes| ropes[0])
}

fn ropes_of(pairs: Pairs<'_>, layers: usize) -> Result<Vec<Option<Rope>>> {
    let names: Vec<String> = (0..layers).map(|i| format!("layers.{i}.key")).collect();
    let tensors: Vec<Entry<'_>> =
        names.iter().map(|name| (name.as_str(), "F16", &[1, 1, 8][..], vec![0; 16])).collect();
    let file = read(file(pairs, &tensors))?;
    Ok(file.geometry().planes().iter().map(|plane| plane.rope).collect())
}

#[test]
fn every_element_type_and_the_batch_axis() {
    let names = ["F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"];
    for (dtype, name) in Dtype::ALL.into_iter().zip(names) {
        let bytes = numbers(dtype, 2 * 3 * 4);
        for shape in [&[2, 3, 4][..], &[1, 2, 3, 4][..]] {
            let tensors = [
                ("layers.0.key", name, shape, bytes.clone()),
                ("layers.0.value", name, shape, bytes.clone()),
            ];
            let file = read(file(&[], &tensors)).unwrap();
            let expected = Shape { heads: 2, head_dim: 4, dtype };
            assert_eq!(file.tokens(), 3);
            let [group] = file.geometry().groups() else { panic!("one layer") };
            assert_eq!((group.key, group.value, group.latent), (Some(expected), Some(expected), None));
            assert_eq!(file.view().plane_bytes(1), bytes);
            assert_eq!(file.view().order(), Order::HeadMajor);
        }
    }
}

#[test]
fn layers_may_differ_and_hold_any_kinds() {
    let tensors: [Entry<'_>; 6] = [
        // Not in the file's order.
        ("layers.2.latent", "BF16", &[1, 2, 6], numbers(Dtype::Bf16, 12)),
        ("layers.0.value", "F16", &[2, 2, 4], numbers(Dtype::F16, 16)),
        ("layers.0.key", "F32", &[2, 2, 8], numbers(Dtype::F32, 32)),
        ("layers.1.value", "F8_E4M3", &[1, 2, 2], numbers(Dtype::F8E4m3, 4)),
        // What else a KV file may carry is not looked at.
        ("layers.0.query", "F64", &[1, 2], vec![0; 16]),
        ("layers.0.attn.key", "I32", &[1], vec![0; 4]),
    ];
    let file = read(file(&[], &tensors)).unwrap();
    let planes = file.geometry().planes();
    let names: Vec<_> = planes.iter().map(Plane::name).collect();
    assert_eq!(names, ["layers.0.key", "layers.0.value", "layers.1.value", "layers.2.latent"]);
    assert_eq!(planes[0].shape, Shape { heads: 2, head_dim: 8, dtype: Dtype::F32 });
    assert_eq!(planes[2].shape, Shape { heads: 1, head_dim: 2, dtype: Dtype::F8E4m3 });
    assert_eq!(file.view().plane_bytes(0), numbers(Dtype::F32, 32));
    assert_eq!(file.view().plane_bytes(3), numbers(Dtype::Bf16, 12));
}

#[test]
fn more_than_ten_layers_are_in_numeric_order() {
    let names: Vec<String> = (0..12).map(|i| format!("layers.{i}.key")).collect();
    let tensors: Vec<Entry<'_>> =
        (0..12).map(|i| (names[i].as_str(), "F8_E5M2", &[1, 1, 1][..], vec![i as u8])).collect();
    let file = read(file(&[], &tensors)).unwrap();
    for i in 0..12 {
        assert_eq!(file.view().plane_bytes(i), [i as u8]);
    }
}

/// The same numbers, stacked in both ways, read as the same cache.
#[test]
fn stacked_layouts() {
    let (layers, tokens, heads, dim) = (3, 5, 2, 4);
    let shape = Shape { heads: heads as u32, head_dim: dim as u32, dtype: Dtype::F16 };
    let group = LayerGroup { repeat: 3, key: Some(shape), value: Some(shape), latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    let value = |layer: usize, kind: usize, token: usize, channel: usize| {
        (((layer * 2 + kind) * tokens + token) * heads * dim + channel) as f32
    };
    let expected = KvCache::from_fn(&geometry, tokens, |plane, token, channel| {
        value(plane.layer as usize, usize::from(plane.kind == Kind::Value), token, channel)
    });
    let plane = |layer: usize, kind: usize| {
        let values: Vec<f32> = (0..tokens)
            .flat_map(|token| (0..heads * dim).map(move |channel| value(layer, kind, token, channel)))
            .collect();
        let mut bytes = vec![0; values.len() * 2];
        Dtype::F16.narrow(&values, &mut bytes);
        bytes
    };
    let kinds_first: Vec<u8> = (0..2).flat_map(|k| (0..layers).flat_map(move |l| plane(l, k))).collect();
    let layers_first: Vec<u8> = (0..layers).flat_map(|l| (0..2).flat_map(move |k| plane(l, k))).collect();

    let both = [("kv_heads", "2"), ("head_dim", "4"), ("rope_theta", "10000.0")];
    for (pairs, dims, bytes) in [
        (&both[..], &[2, 3, 5, 8][..], &kinds_first),
        (&both[..1], &[2, 3, 5, 8][..], &kinds_first),
        (&both[1..2], &[2, 3, 5, 8][..], &kinds_first),
        (&[][..], &[3, 2, 5, 2, 4][..], &layers_first),
    ] {
        let stacked = read(file(pairs, &[("kv", "F16", dims, bytes.clone())])).unwrap();
        let view = stacked.view();
        assert_eq!(view.order(), Order::TokenMajor);
        // Written by layer, it reads as the same; the metadata that split `hidden` still fits.
        let again = read(written(&view, stacked.metadata())).unwrap();
        assert_eq!(again.metadata(), stacked.metadata());
        assert_eq!(again.geometry(), stacked.geometry());
        assert_eq!(again.view().order(), Order::HeadMajor);
        for index in 0..6 {
            assert_eq!(load(&view, index), load(&expected.view(), index), "plane {index}");
            assert_eq!(again.view().plane_bytes(index), expected.plane_bytes(index), "plane {index}");
        }
    }

    let one_head = read(file(&[], &[("kv", "F16", &[2, 3, 5, 8], kinds_first.clone())])).unwrap();
    assert_eq!(one_head.geometry().groups()[0].key, Some(Shape { heads: 1, head_dim: 8, dtype: Dtype::F16 }));
    assert_eq!(load(&one_head.view(), 5), load(&expected.view(), 5));

    for pairs in [&[("kv_heads", "3")][..], &[("kv_heads", "0")], &[("kv_heads", "2"), ("head_dim", "8")]] {
        let (kind, text) = refused(file(pairs, &[("kv", "F16", &[2, 3, 5, 8], kinds_first.clone())]));
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(text.contains("8 channels"), "{text}");
    }
}

#[test]
fn stacked_latents() {
    let bytes = numbers(Dtype::Bf16, 2 * 3 * 6);
    let pairs = [("kv_heads", "128"), ("rope_theta", "10000"), ("rope_start", "4"), ("rope_dims", "2")];
    let file = read(file(&pairs, &[("kv", "BF16", &[1, 2, 3, 6], bytes.clone())])).unwrap();
    let [group] = file.geometry().groups() else { panic!("equal layers") };
    assert_eq!((group.repeat, group.key, group.value), (2, None, None));
    assert_eq!(group.latent, Some(Shape { heads: 1, head_dim: 6, dtype: Dtype::Bf16 }));
    assert_eq!(group.rope.map(|rope| (rope.start, rope.dims)), Some((4, 2)));
    assert_eq!((file.tokens(), file.view().plane_bytes(1)), (3, &bytes[36..]));
}

#[test]
fn more_tokens_than_a_block_are_brought_into_order() {
    let shape = Shape { heads: 3, head_dim: 2, dtype: Dtype::F32 };
    let group = LayerGroup { repeat: 1, key: Some(shape), value: None, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    let tokens = 2_500;
    let bytes: Vec<u8> = (0..tokens * 6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = KvView::new(geometry, tokens, 0, Order::TokenMajor, vec![&bytes]).unwrap();
    let again = read(written(&view, &BTreeMap::new())).unwrap();
    assert_eq!(load(&again.view(), 0), load(&view, 0));
}

#[test]
fn bytes_are_fp8_where_metadata_says_so() {
    let tensors: [Entry<'_>; 1] = [("kv", "U8", &[2, 1, 2, 4], numbers(Dtype::F8E4m3, 16))];
    for (text, dtype) in [
        ("float8_e4m3fn", Dtype::F8E4m3),
        ("torch.float8_e4m3fn", Dtype::F8E4m3),
        ("fp8_e4m3", Dtype::F8E4m3),
        ("E4M3", Dtype::F8E4m3),
        ("float8_e5m2", Dtype::F8E5m2),
        ("e5m2", Dtype::F8E5m2),
    ] {
        let file = read(file(&[("dtype", text)], &tensors)).unwrap();
        assert_eq!(file.geometry().groups()[0].key.unwrap().dtype, dtype, "{text}");
    }
    for pairs in [&[][..], &[("dtype", "uint8")], &[("dtype", "float8_e4m3fnuz")]] {
        let (kind, text) = refused(file(pairs, &tensors));
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(text.contains("U8") && text.contains("float8_e4m3fn"), "{text}");
    }
}

#[test]
fn other_element_types_are_not_supported() {
    for (name, size) in [("I32", 4), ("F64", 8), ("F8_E4M3FNUZ", 1), ("F4", 1)] {
        let (kind, text) = refused(file(&[], &[("layers.0.key", name, &[1, 1, 1], vec![0; size])]));
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains(name) && text.contains("layers.0.key"), "{text}");
    }
}

#[test]
fn zero_tokens() {
    let tensors: [Entry<'_>; 2] =
        [("layers.0.key", "F16", &[2, 0, 4], vec![]), ("layers.0.value", "F16", &[1, 2, 0, 4], vec![])];
    let layered = read(file(&[("rope_theta", "1e4")], &tensors)).unwrap();
    let stacked = read(file(&[], &[("kv", "F16", &[2, 3, 0, 8], vec![])])).unwrap();
    for (file, planes) in [(layered, 2), (stacked, 6)] {
        assert_eq!((file.tokens(), file.view().planes().len()), (0, planes));
        let again = read(written(&file.view(), file.metadata())).unwrap();
        assert_eq!((again.tokens(), again.geometry()), (0, file.geometry()));
    }
}

#[test]
fn tensors_that_do_not_fit_together() {
    let key = |name, tokens| -> Entry<'_> {
        let shape: &[u64] = if tokens == 3 { &[1, 3, 2] } else { &[1, 2, 2] };
        (name, "F16", shape, vec![0; shape.iter().product::<u64>() as usize * 2])
    };
    let (kind, text) = refused(file(&[], &[key("layers.0.key", 3), key("layers.1.key", 2)]));
    assert_eq!(kind, ErrorKind::InvalidData);
    assert!(text.contains("layers.0.key has 3 tokens, layers.1.key has 2"), "{text}");

    let (kind, text) = refused(file(&[], &[key("layers.0.key", 3), key("layers.2.key", 3)]));
    assert_eq!(kind, ErrorKind::InvalidData);
    assert!(text.contains("layers.2.key, but nothing of layer 1"), "{text}");
    let (_, text) = refused(file(&[], &[key("layers.1.key", 3)]));
    assert!(text.contains("nothing of layer 0"), "{text}");

    for name in ["layers.x.key", "layers.01.key", "layers.+1.key", "layers..key", "layers.4294967296.key"] {
        let (kind, text) = refused(file(&[], &[key("layers.0.key", 3), key(name, 3)]));
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(text.contains(name), "{text}");
    }

    let (kind, text) = refused(file(&[], &[key("layers.0.key", 3), ("kv", "F16", &[2, 1, 0, 1], vec![])]));
    assert_eq!(kind, ErrorKind::InvalidData);
    assert!(text.contains("which is meant"), "{text}");

    let (kind, text) = refused(file(&[], &[key("model.embed", 3), key("past\u{1b}[2J", 3)]));
    assert_eq!(kind, ErrorKind::InvalidData);
    assert!(text.contains("model.embed") && text.contains("layers.0.key"), "{text}");
    assert!(!text.contains('\u{1b}'), "control characters reach the terminal: {text}");
    let (_, text) = refused(file(&[], &[]));
    assert!(text.contains("no tensors"), "{text}");
}

#[test]
fn wrong_ranks_and_sizes() {
    let check = |name: &str, shape: &[u64], expected: ErrorKind| {
        let bytes = vec![0; shape.iter().product::<u64>() as usize * 2];
        let (kind, text) = refused(file(&[], &[(name, "F16", shape, bytes)]));
        assert_eq!(kind, expected, "{name} {shape:?}: {text}");
    };
    let by_layer: [(&[u64], ErrorKind); 7] = [
        (&[4], ErrorKind::InvalidData),
        (&[2, 2], ErrorKind::InvalidData),
        (&[1, 1, 1, 2, 2], ErrorKind::InvalidData),
        (&[2, 1, 1, 2], ErrorKind::Unsupported),
        (&[0, 4, 4], ErrorKind::InvalidData),
        (&[1, 0, 1 << 40], ErrorKind::Limit),
        (&[1 << 16, 0, 1 << 16], ErrorKind::Limit),
    ];
    for (shape, expected) in by_layer {
        check("layers.0.key", shape, expected);
    }
    let stacked: [(&[u64], ErrorKind); 6] = [
        (&[2, 2], ErrorKind::InvalidData),
        (&[3, 1, 1, 1], ErrorKind::InvalidData),
        (&[1, 3, 1, 1, 1], ErrorKind::InvalidData),
        (&[2, 0, 1, 1], ErrorKind::InvalidData),
        (&[2, 1 << 40, 0, 1], ErrorKind::Limit),
        (&[1 << 40, 2, 0, 1, 1], ErrorKind::Limit),
    ];
    for (shape, expected) in stacked {
        check("kv", shape, expected);
    }
}

#[test]
fn limits_hold() {
    let check = |bytes: Vec<u8>, set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        let error = KvFile::from_bytes(bytes, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    };
    let one = file(&[], &[("layers.0.key", "F16", &[2, 3, 4], vec![0; 48])]);
    check(one.clone(), |limits| limits.max_channels = 7);
    check(one.clone(), |limits| limits.max_tokens = 2);
    check(one.clone(), |limits| limits.max_header = 10);
    check(one, |limits| limits.max_output = 47);
    let two: [Entry<'_>; 2] =
        [("layers.0.key", "F16", &[1, 1, 1], vec![0; 2]), ("layers.1.key", "F16", &[1, 1, 1], vec![0; 2])];
    check(file(&[], &two), |limits| limits.max_layers = 1);
}

#[test]
fn rope_variants() {
    let plain = Rope { theta: 1e5, dims: 8, start: 0, pairing: Pairing::Half, scaling: None };
    let interleaved = Rope { pairing: Pairing::Interleaved, ..plain };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let llama3_text = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
    let scaled = |scaling| Some(Rope { scaling: Some(scaling), ..plain });
    let theta = ("rope_theta", "100000.0");
    let cases: &[(Pairs<'_>, Option<Rope>)] = &[
        (&[], None),
        (&[theta], Some(plain)),
        (&[("rope_theta", "null")], None),
        (&[("rope_theta", "[1e5]")], Some(plain)),
        (&[("rope_theta", "[null]")], None),
        (&[theta, ("keys", "post-RoPE")], Some(plain)),
        (&[theta, ("keys", "pre-RoPE")], None),
        (&[theta, ("rope_layout", "rotate_half (HF); channel c pairs with c+32")], Some(plain)),
        (&[theta, ("rope_layout", "NeoX, halves")], Some(plain)),
        (&[theta, ("rope_layout", "interleaved")], Some(interleaved)),
        (&[theta, ("rope_layout", "rotate_every_two")], Some(interleaved)),
        (&[theta, ("rope_layout", "GPTJ")], Some(interleaved)),
        (&[theta, ("rope_dims", "4")], Some(Rope { dims: 4, ..plain })),
        (&[theta, ("partial_rotary_factor", "0.25")], Some(Rope { dims: 2, ..plain })),
        (&[theta, ("rope_start", "2")], Some(Rope { dims: 6, start: 2, ..plain })),
        (&[theta, ("rope_start", "2"), ("rope_dims", "4")], Some(Rope { dims: 4, start: 2, ..plain })),
        (&[theta, ("rope_scaling", "null")], Some(plain)),
        (&[theta, ("rope_scaling", "None")], Some(plain)),
        (&[theta, ("rope_scaling", r#"{"rope_type": "default"}"#)], Some(plain)),
        (
            &[theta, ("rope_scaling", r#"{"type": "linear", "factor": 4}"#)],
            scaled(RopeScaling::Linear { factor: 4.0 }),
        ),
        (&[theta, ("rope_scaling", llama3_text)], scaled(llama3)),
        // Not known, but the file is of use to pipelines that leave RoPE alone.
        (&[theta, ("rope_scaling", r#"{"rope_type": "yarn", "factor": 4.0}"#)], None),
        (&[theta, ("rope_layout", "spiral")], None),
    ];
    for (pairs, expected) in cases {
        assert_eq!(rope_of(pairs).unwrap(), *expected, "{pairs:?}");
    }
}

#[test]
fn rope_by_layer() {
    let pairs = [
        ("rope_theta", "[10000.0, null, 1000000.0]"),
        ("rope_scaling", r#"[null, null, {"rope_type": "linear", "factor": 8.0}]"#),
        ("rope_dims", "4"),
    ];
    let local = Rope { theta: 1e4, dims: 4, start: 0, pairing: Pairing::Half, scaling: None };
    let global = Rope { theta: 1e6, scaling: Some(RopeScaling::Linear { factor: 8.0 }), ..local };
    assert_eq!(ropes_of(&pairs, 3).unwrap(), [Some(local), None, Some(global)]);

    let error = ropes_of(&pairs, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("3 values for 2 layers"), "{error}");
}

#[test]
fn nonsense_in_metadata_is_refused() {
    let theta = ("rope_theta", "1e4");
    let cases: &[Pairs<'_>] = &[
        &[("rope_theta", "big")],
        &[("rope_theta", "0")],
        &[("rope_theta", "-1")],
        &[("rope_theta", "NaN")],
        &[("rope_theta", "1e999")],
        &[("rope_theta", "[[1]]")],
        &[("keys", "rotated")],
        &[theta, ("rope_layout", "3")],
        &[theta, ("rope_dims", "0")],
        &[theta, ("rope_dims", "3")],
        &[theta, ("rope_dims", "10")],
        &[theta, ("rope_dims", "-2")],
        &[theta, ("rope_dims", "4294967298")],
        &[theta, ("rope_start", "8")],
        &[theta, ("rope_start", "4294967295"), ("rope_dims", "4")],
        &[theta, ("partial_rotary_factor", "1.5")],
        &[theta, ("rope_scaling", "linear")],
        &[theta, ("rope_scaling", "{}")],
        &[theta, ("rope_scaling", r#"{"rope_type": "linear"}"#)],
        &[theta, ("rope_scaling", r#"{"rope_type": "linear", "factor": 0}"#)],
        &[theta, ("rope_scaling", r#"{"rope_type": "llama3", "factor": 8.0}"#)],
        &[("position_offset", "-1")],
        &[("position_offset", "1.5")],
        &[("position_offset", "18446744073709551615")],
    ];
    for pairs in cases {
        let error = rope_of(pairs).expect_err(&format!("{pairs:?}"));
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{pairs:?}: {error}");
    }
}

#[test]
fn latents_say_which_part_is_rotated() {
    let latent: [Entry<'_>; 1] = [("layers.0.latent", "BF16", &[1, 2, 12], numbers(Dtype::Bf16, 24))];
    let pairs = [("rope_theta", "10000"), ("rope_start", "8"), ("rope_dims", "4")];
    let rope = |pairs| read(file(pairs, &latent)).unwrap().geometry().groups()[0].rope;
    assert_eq!(rope(&pairs).map(|rope| (rope.start, rope.dims)), Some((8, 4)));
    assert_eq!(rope(&pairs[..1]), None);

    // The rotated part apart from the latent, as some engines keep it: the latent itself is not rotated.
    let apart: [Entry<'_>; 2] = [
        ("layers.0.latent", "BF16", &[1, 2, 2], numbers(Dtype::Bf16, 4)),
        ("layers.0.key", "BF16", &[1, 2, 4], numbers(Dtype::Bf16, 8)),
    ];
    let planes = read(file(&pairs[..1], &apart)).unwrap().geometry().planes();
    assert_eq!(planes[0].rope.map(|rope| rope.dims), Some(4));
    assert_eq!((planes[1].kind, planes[1].rope), (Kind::Latent, None));
}

#[test]
fn position_and_metadata_are_kept() {
    let pairs = [
        ("position_offset", "4096"),
        ("token_ids", "[1, 2]"),
        ("note", "quoted \" and\n\u{1f980}"),
        ("", ""),
    ];
    let tensors: [Entry<'_>; 1] = [("layers.0.key", "F16", &[1, 2, 4], numbers(Dtype::F16, 8))];
    let file = read(file(&pairs, &tensors)).unwrap();
    assert_eq!(file.first_position(), 4096);
    assert_eq!(file.view().first_position(), 4096);
    assert_eq!(file.metadata(), &metadata(&pairs));
    let again = read(written(&file.view(), file.metadata())).unwrap();
    assert_eq!(again.metadata(), file.metadata());
}

/// Any geometry survives a file whose metadata is only what `kv_metadata` says.
#[test]
fn a_geometry_goes_through_metadata() {
    let shape = Shape { heads: 2, head_dim: 8, dtype: Dtype::Bf16 };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let rope = Rope { theta: 5e5, dims: 8, start: 0, pairing: Pairing::Half, scaling: Some(llama3) };
    let layer =
        LayerGroup { repeat: 2, key: Some(shape), value: Some(shape), latent: None, rope: Some(rope) };
    let other = Rope { theta: 1e4, dims: 4, start: 2, pairing: Pairing::Interleaved, scaling: None };
    let mla = LayerGroup { key: None, value: None, latent: Some(shape), rope: Some(other), ..layer };
    for layers in [
        vec![layer],
        vec![layer, LayerGroup { rope: None, ..layer }],
        vec![mla, layer, LayerGroup { key: None, rope: None, ..layer }],
        vec![LayerGroup { rope: None, ..layer }],
    ] {
        let geometry = Geometry::new(layers).unwrap();
        let cache = KvCache::zeros(&geometry, 3, 77);
        let file = read(written(&cache.view(), &kv_metadata(&cache.view()))).unwrap();
        assert_eq!(file.geometry(), &geometry);
        assert_eq!(file.first_position(), 77);
    }
}

/// What is written is what the `safetensors` crate understands, and its tensors are aligned.
#[test]
fn written_files_are_safetensors_files() {
    let shape = |dtype| Some(Shape { heads: 1, head_dim: 3, dtype });
    let group = |key, value| LayerGroup { repeat: 1, key, value, latent: None, rope: None };
    let geometry = Geometry::new([
        group(shape(Dtype::F8E4m3), shape(Dtype::F16)),
        group(shape(Dtype::F8E5m2), shape(Dtype::F32)),
        group(shape(Dtype::Bf16), None),
    ])
    .unwrap();
    let cache = KvCache::from_fn(&geometry, 3, |plane, token, channel| {
        (plane.index + token * 3 + channel) as f32 - 6.0
    });
    let bytes = written(&cache.view(), &metadata(&[("a", "b")]));
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(parsed.len(), 5);
    let expected = [StDtype::F8_E4M3, StDtype::F16, StDtype::F8_E5M2, StDtype::F32, StDtype::BF16];
    for (plane, dtype) in geometry.planes().iter().zip(expected) {
        let tensor = parsed.tensor(&plane.name()).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[1, 3, 3][..]));
        assert_eq!(tensor.data(), cache.plane_bytes(plane.index));
        let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset % plane.shape.dtype.size(), 0, "{}", plane.name());
    }
    assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
    let again = read(bytes).unwrap();
    assert_eq!(KvCache::copy_of(&again.view(), 0, 3), cache);
}

#[test]
fn other_tensors_travel_along() {
    let file = KvFile::open(Path::new(SAMPLE), &Limits::default()).unwrap();
    let values: Vec<f32> = (0..3_000).map(|i| i as f32 * 0.5).collect();
    let tensor = |name, shape| ExtraTensor { name, shape, values: &values };
    let mut bytes = Vec::new();
    let extra = [tensor("layers.0.queries", &[3, 10, 100]), tensor("layers.0.attention_sum", &[3_000])];
    write_kv_with(&mut bytes, &file.view(), file.metadata(), &extra).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let found = tensors.tensor("layers.0.queries").unwrap();
    assert_eq!((found.dtype(), found.shape()), (StDtype::F32, &[3, 10, 100][..]));
    assert!(found.data().chunks(4).zip(&values).all(|(bytes, value)| *bytes == value.to_le_bytes()));
    let again = KvFile::from_bytes(bytes, &Limits::default()).unwrap();
    assert_eq!(again.geometry(), file.geometry());
    let copy = |view: &KvView<'_>| KvCache::copy_of(view, 0, view.tokens());
    assert_eq!(copy(&again.view()), copy(&file.view()));

    let refused = |extra: &[ExtraTensor<'_>]| {
        write_kv_with(Vec::new(), &file.view(), file.metadata(), extra).unwrap_err().to_string()
    };
    assert!(refused(&[tensor("x", &[3, 100])]).contains("3000 values"));
    assert!(refused(&[tensor("x", &[usize::MAX, 2])]).contains("3000 values"));
    for name in ["kv", "layers.1.key", "__metadata__"] {
        assert!(refused(&[tensor(name, &[3_000])]).contains("taken"), "{name}");
    }
    assert!(refused(&[tensor("x", &[3_000]), tensor("x", &[3_000])]).contains("taken"));
}

#[test]
fn a_writer_that_fails_is_an_io_error() {
    let mut small = [0; 40];
    let file = KvFile::open(Path::new(SAMPLE), &Limits::default()).unwrap();
    let error = write_kv(&mut small[..], &file.view(), file.metadata()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn the_sample() {
    let file = KvFile::open(Path::new(SAMPLE), &Limits::default()).unwrap();
    let shape = Some(Shape { heads: 3, head_dim: 64, dtype: Dtype::F16 });
    let rope = Rope { theta: 1e5, dims: 64, start: 0, pairing: Pairing::Half, scaling: None };
    let expected = LayerGroup { repeat: 30, key: shape, value: shape, latent: None, rope: Some(rope) };
    assert_eq!(file.geometry().groups(), [expected]);
    assert_eq!((file.tokens(), file.first_position()), (168, 0));
    let ids = |key: &str| serde_json::from_str::<Vec<u32>>(&file.metadata()[key]).unwrap().len();
    assert_eq!((ids("token_ids"), ids("continuation_ids")), (168, 32));
    assert!((0..60).all(|plane| load(&file.view(), plane).iter().all(|value| value.is_finite())));

    let again = read(written(&file.view(), file.metadata())).unwrap();
    assert_eq!(again.metadata(), file.metadata());
    assert_eq!(again.geometry(), file.geometry());
    for plane in 0..60 {
        assert_eq!(again.view().plane_bytes(plane), file.view().plane_bytes(plane));
    }
}

#[test]
fn files_that_cannot_be_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| KvFile::open(path, &Limits::default()).unwrap_err();
    let missing = open(&dir.path().join("missing"));
    assert_eq!(missing.kind(), ErrorKind::Io);
    assert!(missing.to_string().contains("missing"), "{missing}");
    let empty = dir.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    let error = open(&empty);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("the file is empty"), "{error}");
    // Where a directory cannot even be opened, the system says so first.
    assert!(matches!(open(dir.path()).kind(), ErrorKind::Unsupported | ErrorKind::Io));
    let text = dir.path().join("text");
    std::fs::write(&text, "This is not a safetensors file at all.").unwrap();
    assert_eq!(open(&text).kind(), ErrorKind::Corrupt);
    let nothing: &'static [u8; 0] = b"";
    assert!(KvFile::from_bytes(nothing, &Limits::default()).is_err());
}

#[test]
fn cut_off_anywhere_and_too_long() {
    let tensors: [Entry<'_>; 2] = [
        ("layers.0.key", "F16", &[1, 2, 2], numbers(Dtype::F16, 4)),
        ("layers.0.value", "F16", &[1, 2, 2], numbers(Dtype::F16, 4)),
    ];
    let whole = file(&[("rope_theta", "1e4")], &tensors);
    assert!(read(whole.clone()).is_ok());
    for length in 0..whole.len() {
        let (kind, text) = refused(whole[..length].to_vec());
        assert_eq!(kind, ErrorKind::Corrupt, "{length} bytes: {text}");
    }
    let mut longer = whole;
    longer.push(0);
    assert_eq!(refused(longer).0, ErrorKind::Corrupt);
}

/// Whatever byte is changed, reading ends in an error or in a view that can be loaded.
#[test]
fn any_byte_changed() {
    let tensors: [Entry<'_>; 2] = [
        ("layers.0.key", "U8", &[1, 2, 2], numbers(Dtype::F8E5m2, 4)),
        ("kv_", "F16", &[1, 2, 2], numbers(Dtype::F16, 4)),
    ];
    let whole = file(&[("rope_theta", "[1e4]"), ("dtype", "e5m2"), ("rope_scaling", "[null]")], &tensors);
    assert!(read(whole.clone()).is_ok());
    for at in 0..whole.len() {
        for value in [0, b'"', b'0', b'1', b'9', b',', b'{', b']', b'k', 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            if let Ok(file) = read(changed) {
                load(&file.view(), 0);
            }
        }
    }
}

#[test]
fn headers_that_lie() {
    let corrupt = |header: &str, data: usize| {
        let (kind, text) = refused(raw(header, &vec![0; data]));
        assert_eq!(kind, ErrorKind::Corrupt, "{text}");
        text
    };
    let key = |shape: &str, offsets: &str| {
        format!(r#"{{"layers.0.key": {{"dtype": "F16", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    // Outside, backwards, not as long as the shape, with a hole before or behind.
    for offsets in ["[0, 18]", "[8, 0]", "[0, 6]", "[2, 10]", "[0, 8]"] {
        corrupt(&key("[1, 2, 2]", offsets), 10);
    }
    for offsets in ["[0, 18446744073709551615]", "[18446744073709551607, 18446744073709551615]"] {
        corrupt(&key("[1, 2, 2]", offsets), 8);
    }
    for offsets in ["[0, 18446744073709551616]", "[-8, 0]", "[0]", "[0, 8, 9]", "[0.0, 8.0]", "null"] {
        corrupt(&key("[1, 2, 2]", offsets), 8);
    }
    // Products that would wrap around to 8 bytes.
    for shape in ["[4294967296, 4294967296, 4]", "[9223372036854775810, 1, 2]", "[18446744073709551615]"] {
        corrupt(&key(shape, "[0, 8]"), 8);
    }
    // Tensor after tensor, up to where the end of the file would wrap around.
    let size = 1u64 << 60;
    let many: Vec<String> = (0..16)
        .map(|i| {
            let (from, to) = (i * size, i * size + (size - 1) + u64::from(i < 15));
            format!(r#""t{i}": {{"dtype": "U8", "shape": [{}], "data_offsets": [{from}, {to}]}}"#, to - from)
        })
        .collect();
    corrupt(&format!("{{{}}}", many.join(", ")), 0);

    let one = r#""layers.0.key": {"dtype": "F16", "shape": [1, 1, 1], "data_offsets": [0, 2]}"#;
    let text = corrupt(&format!("{{{one}, {one}}}"), 2);
    assert!(text.contains("twice"), "{text}");
    let empty = r#""layers.0.key": {"dtype": "F16", "shape": [1, 0, 1], "data_offsets": [0, 0]}"#;
    corrupt(&format!("{{{empty}, {empty}}}"), 0);
    let text = corrupt(&format!("{{{one}, {}}}", one.replace("key", "value")), 2);
    assert!(text.contains("overlaps"), "{text}");
    corrupt(&format!(r#"{{"__metadata__": {{"a": "1", "a": "2"}}, {one}}}"#), 2);
    corrupt(&format!(r#"{{"__metadata__": {{}}, "__metadata__": {{}}, {one}}}"#), 2);
    corrupt(&format!(r#"{{"__metadata__": {{"a": 1}}, {one}}}"#), 2);
    for header in ["", "[]", "null", "{", " {}", "{}x", "{\"layers.0.key\": {}}"] {
        corrupt(header, 0);
    }
    corrupt(&format!("{{\"x\": {}", "[".repeat(100_000)), 0);
    assert_eq!(refused(raw("{}", &[])).0, ErrorKind::InvalidData);

    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(b"{}");
        assert_eq!(refused(file).0, ErrorKind::Corrupt);
    }
}

/// Fields in another order, unknown ones, spaces behind, no metadata or null.
#[test]
fn headers_as_other_writers_make_them() {
    let one = r#""layers.0.key": {"data_offsets": [0, 2], "dtype": "F16", "shape": [1, 1, 1], "extra": 0}"#;
    for header in [format!("{{{one}}}   "), format!("{{{one}, \"__metadata__\": null}}")] {
        let file = read(raw(&header, &[0, 0x3c])).unwrap();
        assert!(file.metadata().is_empty());
        assert_eq!(load(&file.view(), 0), [1.0]);
    }
}
