//! Where a model's tensors come from: the names of GGUF and of Hugging Face's safetensors side by side.

use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::{Error, Result};
use candle_core::Tensor;

use super::Hyper;
use super::gguf::Gguf;
use super::safetensors::Safetensors;

/// What both kinds of file can tell.
pub(super) trait Weights {
    /// The hyper-parameters.
    fn hyper(&self) -> Result<Hyper>;

    /// A tensor as f32, with queries and keys in the order that [`Hyper::rope`] pairs; `None` if the file has none of
    /// this name.
    fn take(&mut self, name: &Name, hyper: &Hyper) -> Result<Option<Tensor>>;

    /// Names of tensors that nobody has taken.
    fn left(&self) -> Vec<String>;

    /// Element types and how many tensors have them, for people.
    fn types(&self) -> Vec<(String, usize)>;
}

/// A model's file or folder.
pub(super) fn open(path: &Path) -> Result<Box<dyn Weights>> {
    let found = std::fs::metadata(path).map_err(|e| Error::io("cannot open the model", path, e))?;
    if found.is_dir() {
        return Safetensors::open(path)
            .map(|weights| Box::new(weights) as Box<dyn Weights>)
            .at(|| path.display());
    }
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Err(Error::setting(format!(
            "give the folder of the safetensors file, with its config.json: {}",
            folder.display()
        )));
    }
    Gguf::open(path).map(|weights| Box::new(weights) as Box<dyn Weights>).at(|| path.display())
}

/// A weight or bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) layer: Option<usize>,
    pub(super) part: Part,
    pub(super) bias: bool,
}

/// The parts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    OutputNorm,
    Output,
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    /// Of Gemma 3's blocks, like those below.
    QueryNorm,
    KeyNorm,
    AttentionPostNorm,
    FeedForwardPostNorm,
}

impl Part {
    /// In GGUF, in safetensors.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Embedding => ("token_embd", "model.embed_tokens"),
            Self::OutputNorm => ("output_norm", "model.norm"),
            Self::Output => ("output", "lm_head"),
            Self::AttentionNorm => ("attn_norm", "input_layernorm"),
            Self::Query => ("attn_q", "self_attn.q_proj"),
            Self::Key => ("attn_k", "self_attn.k_proj"),
            Self::Value => ("attn_v", "self_attn.v_proj"),
            Self::AttentionOutput => ("attn_output", "self_attn.o_proj"),
            Self::FeedForwardNorm => ("ffn_norm", "post_attention_layernorm"),
            Self::Gate => ("ffn_gate", "mlp.gate_proj"),
            Self::Up => ("ffn_up", "mlp.up_proj"),
            Self::Down => ("ffn_down", "mlp.down_proj"),
            Self::QueryNorm => ("attn_q_norm", "self_attn.q_norm"),
            Self::KeyNorm => ("attn_k_norm", "self_attn.k_norm"),
            Self::AttentionPostNorm => ("post_attention_norm", "post_attention_layernorm"),
            Self::FeedForwardPostNorm => ("post_ffw_norm", "post_feedforward_layernorm"),
        }
    }
}

impl Name {
    fn suffix(self) -> &'static str {
        if self.bias { "bias" } else { "weight" }
    }

    /// As GGUF files have it.
    pub(super) fn gguf(self) -> String {
        let (name, suffix) = (self.part.names().0, self.suffix());
        self.layer.map_or_else(|| format!("{name}.{suffix}"), |layer| format!("blk.{layer}.{name}.{suffix}"))
    }

    /// As Hugging Face has it.
    pub(super) fn hugging_face(self) -> String {
        let (name, suffix) = (self.part.names().1, self.suffix());
        self.layer.map_or_else(
            || format!("{name}.{suffix}"),
            |layer| format!("model.layers.{layer}.{name}.{suffix}"),
        )
    }
}

/// A tensor that must be there, of this shape.
pub(super) fn required(
    weights: &mut dyn Weights,
    hyper: &Hyper,
    layer: Option<usize>,
    part: Part,
    shape: &[usize],
) -> Result<Tensor> {
    let name = Name { layer, part, bias: false };
    let tensor = weights.take(&name, hyper)?;
    let tensor = tensor.ok_or_else(|| Error::data("the tensor is missing").at(name.gguf()))?;
    check(&name, &tensor, shape)
}

/// A bias that may be there.
pub(super) fn bias(
    weights: &mut dyn Weights,
    hyper: &Hyper,
    layer: usize,
    part: Part,
    len: usize,
) -> Result<Option<Tensor>> {
    let name = Name { layer: Some(layer), part, bias: true };
    weights.take(&name, hyper)?.map(|tensor| check(&name, &tensor, &[len])).transpose()
}

/// The tensor, if it has the shape that the hyper-parameters ask for.
pub(super) fn check(name: &Name, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if tensor.dims() != shape {
        let found = tensor.dims();
        return Err(
            Error::data(format!("shape {found:?}, but the hyper-parameters say {shape:?}")).at(name.gguf())
        );
    }
    Ok(tensor.clone())
}
