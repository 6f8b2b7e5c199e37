//! What a file says of its tokens beside keys and values: how much attention they got, and which ones are left.

use std::collections::BTreeMap;

use super::metadata;
use crate::importance::kv_heads;
use crate::tensor_file::{Header, Shown, Tensor, quoted};
use crate::{Error, Geometry, Importance, Kept, Result, ResultExt};

/// Metadata: tokens of the context, dropped ones too.
pub(super) const CONTEXT_TOKENS: &str = "context_tokens";
/// Metadata: position of the token that comes after the context.
pub(super) const NEXT_POSITION: &str = "next_position";

/// The name of a tensor that holds the positions of a layer's rows.
pub(super) fn positions_name(layer: usize) -> String {
    format!("layers.{layer}.positions")
}

/// Reads attention sums, if there are any.
pub(super) fn importance(
    file: &[u8],
    header: &Header,
    geometry: &Geometry,
    tokens: usize,
) -> Result<Option<Importance>> {
    let names =
        |layer: usize| ["attention_sum", "attention_recent"].map(|what| format!("layers.{layer}.{what}"));
    let known = |layer| names(layer).iter().any(|name| header.tensors.contains_key(name));
    if !(0..geometry.layers() as usize).any(known) {
        return Ok(None);
    }
    let recent_queries = match header.tensors.get("layers.0.queries").map(|queries| &queries.shape[..]) {
        Some([_, queries, _]) => Some(*queries),
        _ => None,
    };
    let mut importance = Importance::new(tokens, recent_queries);
    for (layer, heads) in kv_heads(geometry).enumerate() {
        let [accumulated, recent] = names(layer).map(|name| {
            let tensor = header.tensors.get(&name);
            let tensor = tensor.ok_or_else(|| Error::data("not there, but other attention sums are"));
            tensor.and_then(|tensor| sums(file, tensor, heads, tokens)).at(|| name)
        });
        importance.push_layer(heads as usize, &accumulated?, &recent?).at(|| format!("layer {layer}"))?;
    }
    Ok(Some(importance))
}

/// A tensor `[query_heads, tokens]`.
fn sums(file: &[u8], tensor: &Tensor, kv_heads: u32, tokens: usize) -> Result<Vec<f32>> {
    if tensor.dtype != "F32" {
        return Err(Error::unsupported(format!("attention sums of type {}, not F32", quoted(&tensor.dtype))));
    }
    match tensor.shape[..] {
        [heads, count] if count == tokens as u64 && heads > 0 && heads % u64::from(kv_heads.max(1)) == 0 => {}
        _ => {
            return Err(Error::data(format!(
                "shape {:?}, but [query_heads, {tokens}] is expected, query heads being a multiple of {kv_heads}",
                Shown(&tensor.shape)
            )));
        }
    }
    let bytes = file[tensor.range.clone()].as_chunks().0;
    Ok(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Reads which tokens are left, if the file says that some were dropped.
pub(super) fn kept(
    file: &[u8],
    header: &Header,
    geometry: &Geometry,
    tokens: usize,
    first_position: u64,
) -> Result<Option<Kept>> {
    let missing = |what: &str| {
        Error::data(format!(
            "no {what}: which tokens are left of a context is said by tensors `{}` … and metadata `{CONTEXT_TOKENS}` and \
             `{NEXT_POSITION}` together",
            positions_name(0)
        ))
    };
    let context_tokens = metadata::number(&header.metadata, CONTEXT_TOKENS);
    if !(0..geometry.layers() as usize).any(|layer| header.tensors.contains_key(&positions_name(layer))) {
        // Who says that the context is what is here says nothing of dropped tokens.
        return match context_tokens {
            Some(count) if count != tokens as u64 => Err(missing("positions")),
            _ => Ok(None),
        };
    }
    let context_tokens = context_tokens.ok_or_else(|| missing("number of tokens"))?;
    let next_position = metadata::number(&header.metadata, NEXT_POSITION);
    let next_position = next_position.ok_or_else(|| missing("next position"))?;
    if first_position.checked_add(context_tokens) != Some(next_position) {
        return Err(Error::data(format!(
            "{context_tokens} tokens from position {first_position} do not end before position {next_position}"
        )));
    }
    let mut sets = Vec::new();
    for (layer, heads) in kv_heads(geometry).enumerate() {
        let name = positions_name(layer);
        let tensor = header.tensors.get(&name).ok_or_else(|| Error::data("not there").at(&name))?;
        let shape = [u64::from(heads), tokens as u64];
        if tensor.dtype != "I64" || tensor.shape != shape {
            return Err(Error::data(format!(
                "{} {:?}, but I64 {shape:?} is expected",
                quoted(&tensor.dtype),
                Shown(&tensor.shape)
            ))
            .at(&name));
        }
        let all: Result<Vec<u32>> = file[tensor.range.clone()]
            .as_chunks()
            .0
            .iter()
            .map(|bytes| {
                let position = i64::from_le_bytes(*bytes);
                let token =
                    u64::try_from(position).ok().and_then(|position| position.checked_sub(first_position));
                token.and_then(|token| u32::try_from(token).ok()).ok_or_else(|| {
                    Error::data(format!("position {position} is outside of the context")).at(&name)
                })
            })
            .collect();
        let all = all?;
        sets.extend((0..heads as usize).map(|head| all[head * tokens..(head + 1) * tokens].to_vec()));
    }
    Kept::new(geometry, first_position, context_tokens, sets).map(Some)
}

/// What a file must say of a KV cache with dropped tokens, for [`kept`] to read it again.
pub(super) fn metadata_of(kept: &Kept) -> BTreeMap<String, String> {
    BTreeMap::from([
        (CONTEXT_TOKENS.to_owned(), kept.context_tokens().to_string()),
        (NEXT_POSITION.to_owned(), kept.next_position().to_string()),
    ])
}
