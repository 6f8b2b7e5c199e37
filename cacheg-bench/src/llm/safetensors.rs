//! Models in Hugging Face's form: a folder with `config.json` and safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use cacheg::core::{Pairing, ResultExt, Rope, RopeScaling};
use cacheg::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::candle::reading;
use super::weights::{Name, Weights};
use super::{Block, Hyper};

/// An open model.
pub(super) struct Safetensors {
    config: Value,
    tensors: HashMap<String, Tensor>,
}

impl Safetensors {
    /// Reads a folder.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("cannot read", &path, e))?;
        let config =
            serde_json::from_str(&text).map_err(|e| Error::corrupt(e.to_string()).at("config.json"))?;
        let weights = Self { config, tensors: HashMap::new() };
        // A model that cannot run is refused before gigabytes are read.
        weights.hyper()?;
        Ok(Self { tensors: read_all(folder)?, ..weights })
    }

    fn number(&self, key: &str) -> Result<Option<usize>> {
        let wrong = || Error::data(format!("`{key}` in config.json is no number of things"));
        match &self.config[key] {
            Value::Null => Ok(None),
            value => value.as_u64().and_then(|n| usize::try_from(n).ok()).map(Some).ok_or_else(wrong),
        }
    }

    fn need(&self, key: &str) -> Result<usize> {
        self.number(key)?.ok_or_else(|| Error::data(format!("no `{key}` in config.json")))
    }

    fn rope(&self, head_dim: usize) -> Result<Rope> {
        // Newer files hold base and scaling together.
        let parameters = &self.config["rope_parameters"];
        let theta =
            self.config["rope_theta"].as_f64().or(parameters["rope_theta"].as_f64()).unwrap_or(10_000.0);
        let scaling = match &self.config["rope_scaling"] {
            Value::Null => parameters,
            scaling => scaling,
        };
        let share = self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        Ok(Rope {
            theta,
            dims: (head_dim as f64 * share) as u32,
            start: 0,
            pairing: Pairing::Half,
            scaling: rope_scaling(scaling)?,
        })
    }
}

fn rope_scaling(scaling: &Value) -> Result<Option<RopeScaling>> {
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let number = |key: &str| {
        scaling[key]
            .as_f64()
            .ok_or_else(|| Error::data(format!("no `{key}` in the RoPE scaling of config.json")))
    };
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")? as u32,
        }),
        other => return Err(Error::unsupported(format!("RoPE scaling `{other}`"))),
    })
}

fn read_all(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("cannot list", folder, e))?;
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Error::data("no safetensors files in the folder"));
    }
    let mut tensors = HashMap::new();
    for path in paths {
        for (name, tensor) in
            candle_core::safetensors::load(&path, &Device::Cpu).map_err(reading).at(|| path.display())?
        {
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::data("the tensor is in two files").at(name));
            }
        }
    }
    Ok(tensors)
}

impl Weights for Safetensors {
    fn hyper(&self) -> Result<Hyper> {
        let architecture = self.config["model_type"].as_str().unwrap_or_default().to_owned();
        if !["llama", "mistral", "qwen2"].contains(&architecture.as_str()) {
            return Err(Error::unsupported(format!(
                "architecture `{architecture}`; Llama-type models can run: `llama`, `mistral`, `qwen2`"
            )));
        }
        if self.config["use_sliding_window"].as_bool().unwrap_or(architecture == "mistral")
            && !self.config["sliding_window"].is_null()
        {
            return Err(Error::unsupported("sliding-window attention"));
        }
        if let Some(act) = self.config["hidden_act"].as_str().filter(|act| *act != "silu") {
            return Err(Error::unsupported(format!("activation `{act}`")));
        }
        let (hidden, heads) = (self.need("hidden_size")?, self.need("num_attention_heads")?);
        let head_dim = self.number("head_dim")?.unwrap_or(hidden.checked_div(heads).unwrap_or(0));
        let epsilon = self.config["rms_norm_eps"].as_f64();
        let hyper = Hyper {
            architecture,
            vocabulary: self.need("vocab_size")?,
            context: self.number("max_position_embeddings")?.unwrap_or(0),
            layers: self.need("num_hidden_layers")?,
            hidden,
            feed_forward: self.need("intermediate_size")?,
            heads,
            kv_heads: self.number("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            norm_epsilon: epsilon.ok_or_else(|| Error::data("no `rms_norm_eps` in config.json"))?,
            rope: self.rope(head_dim)?,
            local: None,
            block: Block::Llama,
        };
        hyper.checked().at(|| "config.json")
    }

    fn take(&mut self, name: &Name, _: &Hyper) -> Result<Option<Tensor>> {
        let name = name.hugging_face();
        let tensor = self.tensors.remove(&name).map(|tensor| tensor.to_dtype(DType::F32));
        tensor.transpose().map_err(reading).at(|| name)
    }

    fn left(&self) -> Vec<String> {
        // Old files carry RoPE's frequencies, which follow from the configuration.
        let mut names: Vec<String> =
            self.tensors.keys().filter(|name| !name.ends_with("rotary_emb.inv_freq")).cloned().collect();
        names.sort();
        names
    }

    fn types(&self) -> Vec<(String, usize)> {
        let mut counts = BTreeMap::new();
        for tensor in self.tensors.values() {
            *counts.entry(tensor.dtype().as_str().to_uppercase()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}
