//! Writing a KV cache as a safetensors file.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};

use super::companions::{metadata_of, positions_name};
use crate::{Dtype, Error, Kept, KvView, Order, Plane, Result};

/// What our reader takes; others of the ecosystem take a little more.
const MAX_HEADER: usize = 64 << 20;

/// Tokens that are brought into order at a time.
const BLOCK: usize = 1024;

/// Writes `layers.{i}.key`, `.value` and `.latent`, each `[heads, tokens, head_dim]`, whatever the order of
/// the view, and the metadata as it is. Nothing is copied but blocks of token-major planes; the writer gets
/// many small writes from those and should be buffered.
///
/// The metadata is not compared with the view; [`kv_metadata`](crate::kv_metadata) says what a reader needs. Only what
/// it says of [dropped tokens](KvView::kept) is the view's word, and their positions are written along.
///
/// # Errors
/// If the writer fails, or the metadata is too long for a header.
pub fn write_kv(writer: impl Write, kv: &KvView<'_>, metadata: &BTreeMap<String, String>) -> Result<()> {
    write_kv_with(writer, kv, metadata, &[])
}

/// A tensor of f32 that a KV cache's file carries along; readers of KV caches pass over it.
#[derive(Debug, Clone, Copy)]
pub struct ExtraTensor<'a> {
    /// Any that is not a plane's: not `kv`, nor `layers.{i}.key`, `.value` or `.latent`.
    pub name: &'a str,
    /// Its axes.
    pub shape: &'a [usize],
    /// Row-major.
    pub values: &'a [f32],
}

/// As [`write_kv`], with other tensors beside the planes, such as queries and attention statistics.
///
/// # Errors
/// As [`write_kv`]; if a tensor's values do not fit its shape, or its name is taken.
pub fn write_kv_with(
    mut writer: impl Write,
    kv: &KvView<'_>,
    metadata: &BTreeMap<String, String>,
    extra: &[ExtraTensor<'_>],
) -> Result<()> {
    // Wide elements first, so that all tensors are aligned (the sort is stable: layers stay in order).
    let planes = in_file_order(kv.planes());
    let header = header(&planes, kv.tokens(), kv.kept(), metadata, extra)?;
    let length = header.len() as u64;
    let mut write = |bytes: &[u8]| writer.write_all(bytes);
    let written = write(&length.to_le_bytes())
        .and_then(|()| write(&header))
        .and_then(|()| kv.kept().map_or(Ok(()), |kept| write_positions(&mut write, kept)))
        .and_then(|()| extra.iter().try_for_each(|tensor| write_extra(&mut write, tensor)))
        .and_then(|()| planes.iter().try_for_each(|plane| write_plane(&mut write, kv, plane)))
        .and_then(|()| writer.flush());
    written.map_err(|source| Error::Io { context: "writing the KV cache".into(), source })
}

/// The planes as a file holds them.
pub(super) fn in_file_order(planes: &[Plane]) -> Vec<&Plane> {
    let mut planes: Vec<&Plane> = planes.iter().collect();
    planes.sort_by_key(|plane| std::cmp::Reverse(plane.shape.dtype.size()));
    planes
}

/// The header of a file with these planes, in this order, each head-major, after everything else.
pub(super) fn header(
    planes: &[&Plane],
    tokens: usize,
    kept: Option<&Kept>,
    metadata: &BTreeMap<String, String>,
    extra: &[ExtraTensor<'_>],
) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    let said = kept.map(metadata_of).unwrap_or_default();
    if !metadata.is_empty() || !said.is_empty() {
        let texts =
            metadata.iter().chain(&said).map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        entries.insert("__metadata__".into(), Value::Object(texts.collect()));
    }
    if kept.is_some_and(|kept| i64::try_from(kept.next_position()).is_err()) {
        return Err(Error::limit("positions beyond 63 bits"));
    }
    let mut start = 0;
    // The widest first, so that all tensors are aligned.
    for (layer, heads) in kept.iter().flat_map(|kept| (0..kept.layers()).map(|l| (l, kept.heads(l)))) {
        let end = start + heads * tokens * size_of::<i64>();
        let info = json!({ "dtype": "I64", "shape": [heads, tokens], "data_offsets": [start, end] });
        entries.insert(positions_name(layer), info);
        start = end;
    }
    // Before the planes: none of them is wider than f32.
    for tensor in extra {
        if tensor.shape.iter().try_fold(1, |n: usize, axis| n.checked_mul(*axis)) != Some(tensor.values.len())
        {
            let count = tensor.values.len();
            return Err(Error::data(format!("{count} values for shape {:?}", tensor.shape)).at(tensor.name));
        }
        let end = start + size_of_val(tensor.values);
        let info = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] });
        let taken = tensor.name == "kv" || planes.iter().any(|plane| plane.name() == tensor.name);
        if taken || entries.insert(tensor.name.into(), info).is_some() {
            return Err(Error::data("the name is taken").at(tensor.name));
        }
        start = end;
    }
    for plane in planes {
        let end = start + plane.channels() * plane.shape.dtype.size() * tokens;
        let info = json!({
            "dtype": dtype_name(plane.shape.dtype),
            "shape": [plane.shape.heads as usize, tokens, plane.shape.head_dim as usize],
            "data_offsets": [start, end],
        });
        entries.insert(plane.name(), info);
        start = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    // Spaces, so that the data begins on a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() > MAX_HEADER {
        return Err(Error::limit(format!("metadata that makes a header of {} bytes", header.len())));
    }
    Ok(header)
}

fn write_positions(mut write: impl FnMut(&[u8]) -> std::io::Result<()>, kept: &Kept) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(8 * kept.tokens());
    for (layer, head) in (0..kept.layers()).flat_map(|l| (0..kept.heads(l)).map(move |head| (l, head))) {
        bytes.clear();
        bytes.extend(kept.positions(layer, head).flat_map(u64::to_le_bytes));
        write(&bytes)?;
    }
    Ok(())
}

fn write_extra(
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    tensor: &ExtraTensor<'_>,
) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * BLOCK.min(tensor.values.len()));
    for values in tensor.values.chunks(BLOCK) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        write(&bytes)?;
    }
    Ok(())
}

fn write_plane(
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    kv: &KvView<'_>,
    plane: &Plane,
) -> std::io::Result<()> {
    let bytes = kv.plane_bytes(plane.index);
    match kv.order() {
        Order::HeadMajor => write(bytes),
        Order::TokenMajor => {
            let width = plane.shape.head_dim as usize * plane.shape.dtype.size();
            let row = plane.shape.heads as usize * width;
            let mut block = Vec::with_capacity(BLOCK.min(kv.tokens()) * width);
            for head in 0..plane.shape.heads as usize {
                for rows in bytes.chunks(BLOCK * row) {
                    block.clear();
                    for token in rows.chunks_exact(row) {
                        block.extend_from_slice(&token[head * width..(head + 1) * width]);
                    }
                    write(&block)?;
                }
            }
            Ok(())
        }
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::F32 => "F32",
        Dtype::F8E4m3 => "F8_E4M3",
        Dtype::F8E5m2 => "F8_E5M2",
    }
}
