//! The header of a safetensors file.
//!
//! Parsed here rather than by the `safetensors` crate, as that adds offsets unchecked and lets the last of
//! several tensors of one name win; a file from anywhere must meet neither.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::{Error, Limits, Result, ResultExt};

/// Bytes of the header's length.
const LENGTH: usize = 8;

/// What a file says of itself.
#[derive(Debug)]
pub(crate) struct Header {
    /// `__metadata__`.
    pub(crate) metadata: BTreeMap<String, String>,
    /// By name.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

/// One tensor; its bytes are inside the file.
#[derive(Debug)]
pub(crate) struct Tensor {
    /// As the file names it.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    /// Bytes of the file. Their number is that of the shape if the element type is a known one.
    pub(crate) range: Range<usize>,
}

impl Header {
    /// Parses the header and checks every offset and shape.
    pub(crate) fn parse(file: &[u8], limits: &Limits) -> Result<Self> {
        let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
            return Err(Error::corrupt(format!("{} bytes are too few for a safetensors file", file.len())));
        };
        let length = u64::from_le_bytes(*length);
        let Some((json, data)) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)) else {
            return Err(Error::corrupt(format!(
                "not a safetensors file, or cut off: a header of {length} bytes in a file of {}",
                file.len()
            )));
        };
        if length > u64::from(limits.max_header) {
            return Err(Error::limit(format!("a header of {length} bytes")));
        }
        if json.first() != Some(&b'{') {
            return Err(Error::corrupt("not a safetensors file: the header is no JSON object"));
        }
        let raw: RawHeader =
            serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("safetensors header: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw.tensors {
            let tensor = raw.check(LENGTH + json.len(), data.len()).at(|| quoted(&name))?;
            tensors.insert(name, tensor);
        }
        check_cover(&tensors, LENGTH + json.len(), file.len())?;
        Ok(Self { metadata: raw.metadata, tensors })
    }
}

/// The tensors must cover the data without holes and overlaps, as the format demands: a hole is where a
/// damaged or a doctored file shows.
fn check_cover(tensors: &BTreeMap<String, Tensor>, start: usize, end: usize) -> Result<()> {
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_by_key(|(_, tensor)| (tensor.range.start, tensor.range.end));
    let mut at = start;
    for (name, tensor) in by_place {
        if tensor.range.start != at {
            let what = if tensor.range.start < at { "overlaps the tensor" } else { "leaves a hole" };
            return Err(Error::corrupt(format!("{what} before it")).at(quoted(name)));
        }
        at = tensor.range.end;
    }
    if at != end {
        return Err(Error::corrupt(format!("{} bytes after the last tensor", end - at)));
    }
    Ok(())
}

/// Length and header of a file of f64 tensors that lie one after the other: name, shape, values.
pub(crate) fn header_f64(
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, &[usize], &[f64])],
) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::from_iter([("__metadata__".to_owned(), serde_json::json!(metadata))]);
    let mut start = 0;
    for (name, shape, values) in tensors {
        let end = start + size_of_val(*values);
        let entry = serde_json::json!({ "dtype": "F64", "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.clone(), entry);
        start = end;
    }
    let mut json = crate::json::canonical(&entries)?;
    // Spaces, so that the data begins on a multiple of 8 bytes.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// A name from a file, for messages: short, and without control characters.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 60;
    match name.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{:?}…", &name[..cut]),
        None => format!("{name:?}"),
    }
}

/// A shape in a message, whose rank may be anything.
pub(crate) struct Shown<'a>(pub(crate) &'a [u64]);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let mut list = f.debug_list();
        list.entries(self.0.iter().take(SHOWN));
        if self.0.len() > SHOWN { list.finish_non_exhaustive() } else { list.finish() }
    }
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, RawTensor>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    /// Places the tensor in a file whose data begins at `start`.
    fn check(self, start: usize, data: usize) -> Result<Tensor> {
        let Self { dtype, shape, data_offsets: (first, end) } = self;
        if first > end || end > data as u64 {
            return Err(Error::corrupt(format!("bytes {first}..{end} of {data} bytes of data")));
        }
        if let Some(size) = element_size(&dtype) {
            let bytes = shape.iter().try_fold(size, |product, n| product.checked_mul(*n));
            if bytes != Some(end - first) {
                return Err(Error::corrupt(format!("{} bytes for {dtype} {:?}", end - first, Shown(&shape))));
            }
        }
        // Both are at most `data`, which is a length in memory.
        Ok(Tensor { dtype, shape, range: start + first as usize..start + end as usize })
    }
}

/// Bytes of an element, of the types with whole bytes.
fn element_size(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 1,
        "I16" | "U16" | "F16" | "BF16" => 2,
        "I32" | "U32" | "F32" => 4,
        "I64" | "U64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.is_some() {
                    return Err(de::Error::custom("`__metadata__` twice"));
                }
                metadata = map.next_value::<Option<Texts>>()?;
            } else {
                insert_once(&mut tensors, name, map.next_value()?)?;
            }
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default().0, tensors })
    }
}

/// An object of strings, no key twice.
#[derive(Default)]
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            insert_once(&mut texts, key, value)?;
        }
        Ok(Texts(texts))
    }
}

fn insert_once<V, E: de::Error>(
    map: &mut BTreeMap<String, V>,
    key: String,
    value: V,
) -> std::result::Result<(), E> {
    match map.entry(key) {
        Entry::Vacant(place) => {
            place.insert(value);
            Ok(())
        }
        Entry::Occupied(place) => Err(E::custom(format_args!("{} twice", quoted(place.key())))),
    }
}
