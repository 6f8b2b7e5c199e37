//! Models in GGUF files, as llama.cpp has them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use cacheg::core::{Pairing, ResultExt, Rope, RopeScaling};
use cacheg::{Error, Result};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};

use super::candle::{first_line, reading};
use super::weights::{Name, Part, Weights};
use super::{Block, Hyper, Local};

/// Per-channel divisors of RoPE's frequencies, the only trace of Llama 3.1's scaling in GGUF files.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The architecture of Gemma 3.
const GEMMA3: &str = "gemma3";

/// Layers of Gemma 3 27B, whose queries are divided by another number than the root of a head's width; its files do not
/// say so.
const GEMMA3_27B: usize = 62;

/// An open GGUF file.
pub(super) struct Gguf {
    file: BufReader<File>,
    content: Content,
    taken: BTreeSet<String>,
    /// Read early, as the hyper-parameters depend on it.
    rope_factors: Option<Vec<f32>>,
}

impl Gguf {
    /// Reads the metadata and the directory, and checks that the tensors' bytes are all there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("cannot open", path, e))?;
        let length = file.metadata().map_err(|e| Error::io("cannot look at", path, e))?.len();
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file).map_err(not_readable)?;
        check_lengths(&content, length)?;
        let mut gguf = Self { file, content, taken: BTreeSet::new(), rope_factors: None };
        gguf.rope_factors = match gguf.tensor(ROPE_FACTORS)? {
            Some(factors) => Some(factors.to_vec1().map_err(reading).at(|| ROPE_FACTORS)?),
            None => None,
        };
        Ok(gguf)
    }

    /// A metadata value.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A metadata text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key)
            .map(|value| value.to_string().map(String::as_str))
            .transpose()
            .map_err(reading)
            .at(|| key)
    }

    fn architecture(&self) -> Result<&str> {
        self.text("general.architecture")?
            .ok_or_else(|| Error::data("no `general.architecture` in the metadata: not a language model"))
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let read = |value: &Value| match value {
            Value::Array(_) => Err(Error::unsupported("a value for each layer; all layers must be equal")),
            Value::I32(n) => u64::try_from(*n).map_err(|_| Error::data(format!("{n}"))),
            value => value.to_u64().map_err(reading),
        };
        self.value(key).map(read).transpose().at(|| key)
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let read = |value: &Value| match value {
            Value::F64(x) => Ok(*x),
            value => value.to_f32().map(f64::from).map_err(reading),
        };
        self.value(key).map(read).transpose().at(|| key)
    }

    /// A tensor as f32, and that it is taken.
    fn tensor(&mut self, name: &str) -> Result<Option<Tensor>> {
        if !self.content.tensor_infos.contains_key(name) {
            return Ok(None);
        }
        self.taken.insert(name.to_owned());
        let device = Device::Cpu;
        let tensor =
            self.content.tensor(&mut self.file, name, &device).and_then(|tensor| tensor.dequantize(&device));
        tensor
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .map(Some)
            .map_err(reading)
            .at(|| name.to_owned())
    }

    fn rope(&self, architecture: &str, head_dim: usize) -> Result<Rope> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let dims = self.number(&key("dimension_count"))?.unwrap_or(head_dim as u64);
        let mut rope = Rope {
            theta: self.float(&key("freq_base"))?.unwrap_or(10_000.0),
            dims: u32::try_from(dims).map_err(|_| Error::limit(format!("RoPE on {dims} channels")))?,
            start: 0,
            pairing: Pairing::Half,
            scaling: None,
        };
        if rope.dims as usize != head_dim && architecture == "llama" {
            return Err(Error::unsupported(format!("RoPE on {dims} of {head_dim} channels of a head")));
        }
        let factor = match self.float(&key("scaling.factor"))? {
            Some(factor) => Some(factor),
            None => self.float(&key("scale_linear"))?,
        };
        let default = if factor.is_some() { "linear" } else { "none" };
        match (self.text(&key("scaling.type"))?.unwrap_or(default), factor) {
            ("none", _) | (_, Some(1.0)) => {}
            ("linear", Some(factor)) => rope.scaling = Some(RopeScaling::Linear { factor }),
            (other, _) => return Err(Error::unsupported(format!("RoPE scaling `{other}`"))),
        }
        if let Some(factors) = &self.rope_factors {
            if rope.scaling.is_some() {
                return Err(Error::unsupported("RoPE scaling both linear and by channel"));
            }
            rope.scaling = llama3(&rope, factors).at(|| ROPE_FACTORS)?;
        }
        Ok(rope)
    }

    /// How converters of this architecture ordered the query and key channels of a head.
    fn pairing(architecture: &str) -> Result<Pairing> {
        match architecture {
            "llama" => Ok(Pairing::Interleaved),
            "qwen2" | GEMMA3 => Ok(Pairing::Half),
            other => Err(Error::unsupported(format!(
                "architecture `{other}`; Llama-type models can run: `llama` (Llama, Mistral, SmolLM …), `qwen2`, and \
                 `gemma3`"
            ))),
        }
    }

    /// Gemma 3's local layers. Files name their window and, if they are new, what else converters used to leave out.
    fn local(&self, rope: &Rope) -> Result<Local> {
        let key = |name: &str| format!("{GEMMA3}.{name}");
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.float(&key(name))?.is_some_and(|cap| cap != 0.0) {
                return Err(Error::unsupported(format!("`{}`", key(name))));
            }
        }
        let number = |name: &str| -> Result<Option<usize>> {
            let found = self.number(&key(name))?;
            found.map(|n| usize::try_from(n).map_err(|_| Error::limit(format!("`{name}`: {n}")))).transpose()
        };
        let window = "attention.sliding_window";
        let theta = self.float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
        Ok(Local {
            window: number(window)?
                .ok_or_else(|| Error::data(format!("no `{}` in the metadata", key(window))))?,
            period: number("attention.sliding_window_pattern")?.unwrap_or(6),
            // Scaling is for long distances: global layers alone have it.
            rope: Rope { theta, scaling: None, ..*rope },
        })
    }
}

impl Weights for Gguf {
    fn hyper(&self) -> Result<Hyper> {
        let architecture = self.architecture()?.to_owned();
        Self::pairing(&architecture)?;
        let need = |name: &str| {
            let key = format!("{architecture}.{name}");
            let found =
                self.number(&key)?.ok_or_else(|| Error::data(format!("no `{key}` in the metadata")))?;
            usize::try_from(found).map_err(|_| Error::limit(format!("`{key}`: {found}")))
        };
        let maybe = |name: &str| -> Result<Option<usize>> {
            Ok(self.number(&format!("{architecture}.{name}"))?.and_then(|n| usize::try_from(n).ok()))
        };
        if let Some(experts) = maybe("expert_count")?.filter(|experts| *experts > 0) {
            return Err(Error::unsupported(format!("a mixture of {experts} experts")));
        }
        let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
        let default = hidden.checked_div(heads).unwrap_or(0);
        let head_dim = maybe("attention.key_length")?.unwrap_or(default);
        let value_dim = maybe("attention.value_length")?.unwrap_or(default);
        if head_dim != value_dim {
            return Err(Error::unsupported(format!(
                "keys of {head_dim} and values of {value_dim} channels a head"
            )));
        }
        let tokens = match self.value("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Some(tokens.len()),
            _ => None,
        };
        let embedding =
            self.content.tensor_infos.get("token_embd.weight").and_then(|t| t.shape.dims().first().copied());
        let epsilon = format!("{architecture}.attention.layer_norm_rms_epsilon");
        let rope = self.rope(&architecture, head_dim)?;
        let layers = need("block_count")?;
        let gemma = architecture == GEMMA3;
        if gemma && layers == GEMMA3_27B {
            return Err(Error::unsupported("Gemma 3 27B, which scales its queries otherwise"));
        }
        let hyper = Hyper {
            vocabulary: maybe("vocab_size")?.or(embedding).or(tokens).unwrap_or(0),
            context: need("context_length")?,
            layers,
            hidden,
            feed_forward: need("feed_forward_length")?,
            heads,
            kv_heads: maybe("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norm_epsilon: self
                .float(&epsilon)?
                .ok_or_else(|| Error::data(format!("no `{epsilon}` in the metadata")))?,
            local: gemma.then(|| self.local(&rope)).transpose()?,
            rope,
            block: if gemma { Block::Gemma3 } else { Block::Llama },
            architecture,
        };
        hyper.checked()
    }

    fn take(&mut self, name: &Name, hyper: &Hyper) -> Result<Option<Tensor>> {
        let Some(tensor) = self.tensor(&name.gguf())? else { return Ok(None) };
        let rotated = matches!(name.part, Part::Query | Part::Key);
        if rotated && Self::pairing(self.architecture()?)? == Pairing::Interleaved {
            return apart(&tensor, hyper.head_dim).map(Some).map_err(reading).at(|| name.gguf());
        }
        Ok(Some(tensor))
    }

    fn left(&self) -> Vec<String> {
        let names = self.content.tensor_infos.keys().filter(|name| !self.taken.contains(*name));
        let mut names: Vec<String> = names.cloned().collect();
        names.sort();
        names
    }

    fn types(&self) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for info in self.content.tensor_infos.values() {
            *counts.entry(format!("{:?}", info.ggml_dtype)).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}

/// Rows of pairs (2i, 2i + 1) of each head brought to (i, i + half), which is how Hugging Face and the KV caches of
/// engines have them; the converter did the opposite.
fn apart(tensor: &Tensor, head_dim: usize) -> candle_core::Result<Tensor> {
    let dims = tensor.dims().to_vec();
    let rest: usize = dims[1..].iter().product();
    tensor.reshape((dims[0] / head_dim, head_dim / 2, 2, rest))?.transpose(1, 2)?.contiguous()?.reshape(dims)
}

/// Every tensor's bytes must be in the file: found out now, not after minutes of loading.
fn check_lengths(content: &Content, length: u64) -> Result<()> {
    for (name, info) in &content.tensor_infos {
        let blocks = info.shape.elem_count().div_ceil(info.ggml_dtype.block_size());
        let end = (blocks as u64)
            .checked_mul(info.ggml_dtype.type_size() as u64)
            .and_then(|bytes| bytes.checked_add(info.offset)?.checked_add(content.tensor_data_offset));
        if end.is_none_or(|end| end > length) {
            return Err(Error::corrupt(format!(
                "the file has {length} bytes and ends before the tensor's last; is the download complete?"
            ))
            .at(name));
        }
    }
    Ok(())
}

/// The parameters of Llama 3.1's scaling that give these divisors, which GGUF files hold instead of them.
///
/// Of `low_freq_factor`, `high_freq_factor` and `original_context` only ratios matter; the first is set to 1.
fn llama3(rope: &Rope, divisors: &[f32]) -> Result<Option<RopeScaling>> {
    let plain = rope.frequencies();
    if divisors.len() != plain.len() || divisors.iter().any(|d| !d.is_finite() || *d < 0.999) {
        return Err(Error::data("expected one divisor of at least 1 for each pair of channels"));
    }
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    if factor < 1.0001 {
        return Ok(None);
    }
    // On the ramp 1/divisor is linear in the frequency.
    let share = |d: f32| (1.0 / f64::from(d) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let ramp: Vec<(f64, f64)> = plain
        .iter()
        .zip(divisors)
        .map(|(frequency, d)| (*frequency, share(*d)))
        .filter(|(_, share)| (0.001..0.999).contains(share))
        .collect();
    let unknown = || Error::unsupported("RoPE divisors that are not those of Llama 3.1's scaling");
    let (Some((high, low)), 2..) = (ramp.first().zip(ramp.last()), ramp.len()) else { return Err(unknown()) };
    let slope = (high.1 - low.1) / (high.0 - low.0);
    let at_zero = low.1 - slope * low.0;
    // at_zero = -low / (high - low), slope = context / (2π (high - low)), with low = 1.
    let span = -1.0 / at_zero;
    let context = (slope * std::f64::consts::TAU * span).round();
    if !(span > 0.0 && context >= 1.0 && context < f64::from(u32::MAX)) {
        return Err(unknown());
    }
    let scaling = RopeScaling::Llama3 {
        // f32 files hold these as whole numbers, as a rule.
        factor: tidy(factor),
        low_freq_factor: 1.0,
        high_freq_factor: tidy(1.0 + span),
        original_context: context as u32,
    };
    let scaled = Rope { scaling: Some(scaling), ..*rope }.frequencies();
    let fits =
        |((plain, scaled), d): ((&f64, &f64), &f32)| (plain / f64::from(*d) / scaled - 1.0).abs() < 2e-3;
    if plain.iter().zip(&scaled).zip(divisors).all(fits) { Ok(Some(scaling)) } else { Err(unknown()) }
}

/// The whole number next to it, if it is one but for rounding.
fn tidy(x: f64) -> f64 {
    if (x / x.round() - 1.0).abs() < 1e-4 { x.round() } else { x }
}

/// What candle says of a file that it cannot read; element types by name.
fn not_readable(error: candle_core::Error) -> Error {
    let text = first_line(&error);
    if text.contains("unknown magic") || text.contains("unsupported magic") {
        return Error::unsupported(format!("not a GGUF file of version 1 to 3 ({text})"));
    }
    match text.split_once("unknown dtype for tensor ").map(|(_, id)| id.trim()) {
        Some(id) => Error::unsupported(format!("quantisation {}", quantisation(id))),
        None => reading(error),
    }
}

/// Names of the element types of GGUF that candle does not know.
fn quantisation(id: &str) -> String {
    let name = match id {
        "16" => "IQ2_XXS",
        "17" => "IQ2_XS",
        "18" => "IQ3_XXS",
        "19" => "IQ1_S",
        "20" => "IQ4_NL",
        "21" => "IQ3_S",
        "22" => "IQ2_S",
        "23" => "IQ4_XS",
        "24" => "I8",
        "25" => "I16",
        "26" => "I32",
        "27" => "I64",
        "28" => "F64",
        "29" => "IQ1_M",
        "34" => "TQ1_0",
        "35" => "TQ2_0",
        "39" => "MXFP4",
        _ => return format!("number {id}"),
    };
    format!("{name} (number {id})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_is_found_again_from_its_divisors() {
        let plain = Rope { theta: 500_000.0, dims: 128, start: 0, pairing: Pairing::Half, scaling: None };
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let scaled = Rope { scaling: Some(scaling), ..plain };
        let divisors: Vec<f32> =
            plain.frequencies().iter().zip(scaled.frequencies()).map(|(a, b)| (a / b) as f32).collect();
        assert_eq!(llama3(&plain, &divisors).unwrap(), Some(scaling));
        assert_eq!(llama3(&plain, &[1.0; 64]).unwrap(), None);
        let odd: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
        assert!(llama3(&plain, &odd).unwrap_err().to_string().contains("Llama 3.1"));
        assert!(llama3(&plain, &[8.0; 3]).is_err());
    }
}
