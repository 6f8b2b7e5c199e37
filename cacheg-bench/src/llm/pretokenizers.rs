//! How text is cut before byte pairs are merged; GGUF files name the way (`tokenizer.ggml.pre`), llama.cpp's names.

use cacheg::{Error, Result};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizer of this name.
pub(super) fn named(name: &str) -> Result<PreTokenizerWrapper> {
    // GPT-2's pattern is built into `ByteLevel`.
    let gpt2 = ByteLevel::new(false, true, true);
    Ok(match name {
        "default" | "gpt-2" => gpt2.into(),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()
        }
        "llama-bpe" | "llama3" | "llama-v3" => pattern(LLAMA3)?,
        "qwen2" | "deepseek-r1-qwen" => pattern(QWEN2)?,
        other => {
            return Err(Error::unsupported(format!(
                "pre-tokenizer `{other}`; put the model's tokenizer.json beside the file"
            )));
        }
    })
}

fn pattern(pattern: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    let split = split.map_err(|e| Error::setting(e.to_string()))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
}
