//! The file, `.cgstat`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Counts, Origin, Statistics, Sums, Tensor, layout};
use crate::tensor_file::{self, Header, Shown, quoted};
use crate::{Error, Geometry, Limits, Result, ResultExt, json};

/// Major and minor version of the file.
const VERSION: &str = "0.1";

impl Statistics {
    /// Reads and checks a file; errors name it.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes); if the file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
        Self::from_bytes(&bytes).at(|| path.display())
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// If the bytes are no such file, or of a version that this reader does not know, or what they say cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::corrupt(format!("{what}; is this a .cgstat file?"));
        let header = Header::parse(bytes, &Limits::default())?;
        let field =
            |key: &str| header.metadata.get(key).ok_or_else(|| bad(format!("no `{key}` in its metadata")));
        let version = field("cacheg_statistics")?;
        if version != VERSION {
            return Err(Error::unsupported(format!(
                "statistics version {}; this reader knows {VERSION}",
                quoted(version)
            )));
        }
        let number = |key: &str| field(key)?.parse::<u64>().map_err(|e| bad(format!("{key}: {e}")));
        let small = |key: &str| u32::try_from(number(key)?).map_err(|e| bad(format!("{key}: {e}")));
        let geometry: Geometry =
            serde_json::from_str(field("geometry")?).map_err(|e| bad(format!("geometry: {e}")))?;
        let origins: Vec<Origin> =
            serde_json::from_str(field("sources")?).map_err(|e| bad(format!("sources: {e}")))?;
        let counts = Counts {
            contexts: number("contexts")?,
            tokens: number("tokens")?,
            continuation_tokens: number("continuation_tokens")?,
            pairs: number("pairs")?,
        };
        let (sinks, window) = (small("sinks")?, small("window")?);
        let layouts = layout::layers(&geometry, window)?;
        let mut left = header.tensors;
        let mut take = |name: String, shape: &[usize]| -> Result<Vec<f64>> {
            let tensor = left.remove(&name).ok_or_else(|| bad(format!("no tensor `{name}`")))?;
            values(&tensor, shape, bytes).at(|| format!("tensor `{name}`"))
        };
        let residual = take("residual".into(), &[layouts.len()])?;
        let mut layers = Vec::with_capacity(layouts.len());
        for (index, (layout, residual)) in layouts.into_iter().zip(residual).enumerate() {
            let mut tensors = BTreeMap::new();
            for (name, (shape, rule)) in layout {
                let values = take(format!("layers.{index}.{name}"), &shape)?;
                tensors.insert(name, Tensor { shape, rule, values });
            }
            layers.push(Sums { tensors, residual });
        }
        if let Some(name) = left.keys().next() {
            return Err(bad(format!("a tensor {} too many", quoted(name))));
        }
        let planes = geometry.planes();
        let hash = Some(hex(&Sha256::digest(bytes)));
        let read = Self { geometry, planes, sinks, window, counts, origins, layers, hash };
        read.validate()?;
        Ok(read)
    }

    /// Writes the file; returns its length and its name, the SHA-256 of its bytes.
    ///
    /// # Errors
    /// If they would be refused on reading, or the writer fails.
    pub fn write(&self, writer: &mut dyn Write) -> Result<(u64, String)> {
        self.validate()?;
        let text = |json: Vec<u8>| String::from_utf8_lossy(&json).into_owned();
        let metadata = BTreeMap::from([
            ("cacheg_statistics".to_owned(), VERSION.to_owned()),
            ("geometry".to_owned(), text(json::canonical(&self.geometry)?)),
            ("sources".to_owned(), text(json::canonical(&self.origins)?)),
            ("contexts".to_owned(), self.counts.contexts.to_string()),
            ("tokens".to_owned(), self.counts.tokens.to_string()),
            ("continuation_tokens".to_owned(), self.counts.continuation_tokens.to_string()),
            ("pairs".to_owned(), self.counts.pairs.to_string()),
            ("sinks".to_owned(), self.sinks.to_string()),
            ("window".to_owned(), self.window.to_string()),
        ]);
        let residual: Vec<f64> = self.layers.iter().map(|sums| sums.residual).collect();
        let count = [self.layers.len()];
        let mut tensors: Vec<(String, &[usize], &[f64])> = vec![("residual".to_owned(), &count, &residual)];
        for (index, sums) in self.layers.iter().enumerate() {
            let named = |(name, tensor)| -> (String, &[usize], &[f64]) {
                let (name, tensor): (&String, &Tensor) = (name, tensor);
                (format!("layers.{index}.{name}"), &tensor.shape, &tensor.values)
            };
            tensors.extend(sums.tensors.iter().map(named));
        }
        let mut out = Hashing { writer, hash: Sha256::new(), length: 0 };
        let failed = |source| Error::Io { context: "writing the statistics".into(), source };
        out.put(&tensor_file::header_f64(&metadata, &tensors)?).map_err(failed)?;
        let mut block = Vec::new();
        for values in tensors.iter().flat_map(|(_, _, values)| values.chunks(8_192)) {
            block.clear();
            block.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            out.put(&block).map_err(failed)?;
        }
        out.writer.flush().map_err(failed)?;
        Ok((out.length, hex(&out.hash.finalize())))
    }
}

/// The numbers of a tensor of this shape.
fn values(tensor: &tensor_file::Tensor, shape: &[usize], file: &[u8]) -> Result<Vec<f64>> {
    if tensor.dtype != "F64" {
        return Err(Error::corrupt(format!("element type {}, not F64", quoted(&tensor.dtype))));
    }
    if !tensor.shape.iter().copied().eq(shape.iter().map(|n| *n as u64)) {
        return Err(Error::corrupt(format!("shape {:?}, not {shape:?}", Shown(&tensor.shape))));
    }
    // The header's reader has compared the bytes with the shape.
    Ok(file[tensor.range.clone()].as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

struct Hashing<'a> {
    writer: &'a mut dyn Write,
    hash: Sha256,
    length: u64,
}

impl Hashing<'_> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.writer.write_all(bytes)
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
