//! Text to tokens and back.

use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::{Error, Result};
use candle_core::quantized::gguf_file::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, ModelWrapper};

use super::gguf::Gguf;
use super::{pretokenizers, sentencepiece};

/// Types of tokens in GGUF files.
pub(super) const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before every text.
    bos: Option<u32>,
}

impl Tokenizer {
    /// From `tokenizer.json` in or beside the model, or else from a GGUF file's metadata.
    ///
    /// # Errors
    /// If there is none, or one of a kind that is not supported.
    pub fn open(model: &Path) -> Result<Self> {
        let folder = if model.is_dir() { Some(model) } else { model.parent() };
        let json = folder.map(|folder| folder.join("tokenizer.json")).filter(|path| path.is_file());
        if let Some(path) = json {
            let inner = tokenizers::Tokenizer::from_file(&path).map_err(|e| Error::corrupt(e.to_string()));
            return Ok(Self { inner: inner.at(|| path.display())?, bos: None });
        }
        if model.is_dir() {
            return Err(Error::data(format!("no tokenizer.json in {}", model.display())));
        }
        Self::of_gguf(&Gguf::open(model)?).at(|| model.display())
    }

    fn of_gguf(gguf: &Gguf) -> Result<Self> {
        let model = gguf.text("tokenizer.ggml.model")?.ok_or_else(|| {
            Error::data("no tokenizer in the metadata; put a tokenizer.json beside the file")
        })?;
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let types = types(gguf)?;
        let mut inner = match model {
            "gpt2" => byte_level(gguf, &tokens)?,
            "llama" => {
                if flag(gguf, "tokenizer.ggml.add_space_prefix") != Some(false) {
                    return Err(Error::unsupported(
                        "tokenizer `llama` with a blank before every text; put the model's tokenizer.json beside the file",
                    ));
                }
                let unknown = id(gguf, "tokenizer.ggml.unknown_token_id");
                let unknown = unknown.and_then(|id| tokens.get(id as usize).copied());
                sentencepiece::tokenizer(&tokens, &types, &scores(gguf)?, unknown)?
            }
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer `{other}` (read are `gpt2`, byte-level BPE, and `llama`, SentencePiece's BPE); put the \
                     model's tokenizer.json beside the file"
                )));
            }
        };
        let special = |wanted: i64| {
            let all = tokens.iter().zip(&types).filter(move |(_, kind)| **kind == wanted);
            all.map(move |(token, _)| AddedToken::from(*token, wanted == CONTROL).normalized(false))
                .collect::<Vec<_>>()
        };
        inner.add_special_tokens(&special(CONTROL));
        inner.add_tokens(&special(USER_DEFINED));
        let add_bos = flag(gguf, "tokenizer.ggml.add_bos_token") == Some(true);
        let bos = id(gguf, "tokenizer.ggml.bos_token_id").filter(|_| add_bos);
        Ok(Self { inner, bos })
    }

    /// The tokens of a text; with the model's first token before them, if it wants one. Special tokens such as
    /// `<|im_start|>` are recognised.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.ids(text, true)?;
        Ok(self.bos.into_iter().chain(ids).collect())
    }

    /// The tokens of a text that goes on from another: nothing is put before them.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, begins: bool) -> Result<Vec<u32>> {
        let encoded = self.inner.encode_fast(text, begins);
        Ok(encoded.map_err(|e| Error::data(format!("tokenizer: {e}")))?.get_ids().to_vec())
    }

    /// The text of tokens, special ones included. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|e| Error::data(format!("tokenizer: {e}")))
    }
}

fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<tokenizers::Tokenizer> {
    let merges = texts(gguf, "tokenizer.ggml.merges")?;
    let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let merges = merges
        .iter()
        .map(|merge| {
            // A space can only be the one between them: in byte-level BPE spaces are written as another letter.
            let pair = merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
            pair.ok_or_else(|| Error::corrupt(format!("the merge {merge:?} is no pair")))
        })
        .collect::<Result<Vec<_>>>()?;
    let vocabulary: Vocab = tokens.iter().zip(0u32..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges);
    // Llama 3's vocabulary has whole words that its merges do not reach.
    let bpe = bpe.ignore_merges(matches!(pre, "llama-bpe" | "llama3" | "llama-v3")).build();
    let bpe = bpe.map_err(|e| Error::corrupt(format!("tokenizer: {e}")))?;
    let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(bpe));
    inner.with_pre_tokenizer(Some(pretokenizers::named(pre)?));
    inner.with_decoder(Some(ByteLevel::default()));
    Ok(inner)
}

fn flag(gguf: &Gguf, key: &str) -> Option<bool> {
    match gguf.value(key) {
        Some(Value::Bool(flag)) => Some(*flag),
        _ => None,
    }
}

fn id(gguf: &Gguf, key: &str) -> Option<u32> {
    gguf.value(key).and_then(|id| id.to_u64().ok()).and_then(|id| u32::try_from(id).ok())
}

fn scores(gguf: &Gguf) -> Result<Vec<f32>> {
    let Some(Value::Array(values)) = gguf.value("tokenizer.ggml.scores") else {
        return Err(Error::data("no list `tokenizer.ggml.scores` in the metadata"));
    };
    let wrong = |_| Error::data("`tokenizer.ggml.scores` is no list of numbers");
    values.iter().map(|value| value.to_f32().map_err(wrong)).collect()
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>> {
    let Some(Value::Array(values)) = gguf.value(key) else {
        return Err(Error::data(format!("no list `{key}` in the metadata")));
    };
    let text = |value: &'a Value| match value {
        Value::String(text) => Ok(text.as_str()),
        _ => Err(Error::data(format!("`{key}` is no list of texts"))),
    };
    values.iter().map(text).collect()
}

fn types(gguf: &Gguf) -> Result<Vec<i64>> {
    let Some(Value::Array(values)) = gguf.value("tokenizer.ggml.token_type") else { return Ok(Vec::new()) };
    let number = |value: &Value| match value {
        Value::I32(n) => Ok(i64::from(*n)),
        Value::U32(n) => Ok(i64::from(*n)),
        _ => Err(Error::data("`tokenizer.ggml.token_type` is no list of numbers")),
    };
    values.iter().map(number).collect()
}
