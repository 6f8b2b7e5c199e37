//! First-topic retrieval as in LongChat: records of conversations about several topics, and the question for the first.
//!
//! A line of its test files (<https://github.com/DachengLi1/LongChat>, `longeval`) is a JSON object: `label` lists the
//! topics; `prompt` has a preamble, `Now the record start.`, the conversations, each of which names its topic in its first
//! turn, `Now the record ends.`, and the question. Everything before that sentence is the context.
//!
//! Models that know ChatML are given all of it as one turn of the user: SmolLM2-135M-Instruct finds the first topic of 6
//! of 12 such records; of none as the prompt stands in the file; of 2 with the conversations as turns of their own, or
//! with the preamble's first sentences as the system's.

use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::{Error, Result};
use cacheg_bench::llm::Tokenizer;
use serde_json::Value;

use super::answer::{names, words};
use super::contexts::{Context, LONGCHAT, Line, load};

/// Records that are part of the program.
const RECORDS: &str = include_str!("../../texts/test/topics.jsonl");

/// What `--contexts` calls them.
pub(crate) const NAME: &str = "topics";

const START: &str = "Now the record start.";
const END: &str = "Now the record ends.";
/// In front of what the user says: where a record may be cut.
const TURN: &str = "USER:";
const ASSISTANT: &str = "ASSISTANT:";

/// What is asked behind a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Tokens of the question, up to where the answer begins.
    pub(crate) ids: Vec<u32>,
    /// The first topic.
    pub(crate) label: String,
    /// Its tokens, as an answer.
    pub(crate) label_ids: Vec<u32>,
}

/// How a record is put before a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it stands in the file, where the answer follows `ASSISTANT:`.
    Plain,
    /// A turn of the user, and the beginning of the assistant's.
    ChatMl,
}

#[derive(Debug, PartialEq, Eq)]
struct Record {
    context: String,
    question: String,
    label: String,
}

/// Contexts with questions of what the command line names: `default`, `topics`, `longchat:FILE` if it has labels. They
/// are cut between turns, to at most so many tokens.
pub(crate) fn read(wanted: &[String], tokenizer: &Tokenizer, tokens: usize) -> Result<Vec<Context>> {
    let form = Form::of(tokenizer)?;
    let mut contexts = Vec::new();
    for name in wanted {
        let (prefix, source, lines) = match name.strip_prefix(LONGCHAT) {
            Some(path) => ("longchat-topics", path, load(Path::new(path))?),
            None if name == "default" || name == NAME => (NAME, NAME, RECORDS.to_owned()),
            None => continue,
        };
        for (index, record) in records(source, &lines)?.into_iter().enumerate() {
            let name = format!("{prefix}-{index}");
            contexts.push(record.cut(&name, (tokenizer, form), tokens).at(|| &name)?);
        }
    }
    Ok(contexts)
}

/// Either all lines have labels or none has: then they are texts like others.
fn records(source: &str, lines: &str) -> Result<Vec<Record>> {
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let at = |index: usize| format!("{source}, line {}", index + 1);
    let mut records = Vec::new();
    let mut without = None;
    for (index, line) in lines {
        match Record::parse(line).map_err(|e| e.at(at(index)))? {
            Some(record) => records.push(record),
            None => without = without.or(Some(index)),
        }
    }
    match without {
        Some(index) if !records.is_empty() => Err(Error::data(
            "no `label`, and other lines have one: give all of them the list of their topics",
        )
        .at(at(index))),
        _ => Ok(records),
    }
}

impl Form {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        // Where it is no token of its own, it means nothing.
        let known = tokenizer.encode_more("<|im_start|>")?.len() == 1;
        Ok(if known { Self::ChatMl } else { Self::Plain })
    }

    /// What stands before the context, behind the question, and before the answer.
    fn around(self) -> [&'static str; 3] {
        match self {
            Self::Plain => ["", " ASSISTANT:", " "],
            Self::ChatMl => ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", ""],
        }
    }
}

impl Record {
    /// None without a label.
    fn parse(line: &str) -> Result<Option<Self>> {
        let Line { prompt, label } = Line::parse(line)?;
        let label = match &label {
            Value::Null => return Ok(None),
            Value::Array(topics) => topics
                .first()
                .ok_or_else(|| Error::data("`label` is an empty list: there is no first topic to ask for"))?,
            _ => return Err(Error::data("`label` is no list of topics")),
        };
        let label = label
            .as_str()
            .filter(|label| !words(label).is_empty())
            .ok_or_else(|| Error::data("the first topic of `label` has no words"))?;
        let (context, question) = prompt.rsplit_once(END).ok_or_else(|| {
            Error::data(format!(
                "no question in the `prompt`: it comes behind the sentence “{END}”; without `label` it is a text like \
                 others"
            ))
        })?;
        if !names(context, label) {
            return Err(Error::data(format!("the first topic, “{label}”, is not in the `prompt`")));
        }
        let question = format!(" {END}{}", question.trim_end().trim_end_matches(ASSISTANT).trim_end());
        Ok(Some(Self { context: context.trim_end().to_owned(), question, label: label.to_owned() }))
    }

    /// As many whole turns as fit.
    fn cut(&self, name: &str, (tokenizer, form): (&Tokenizer, Form), tokens: usize) -> Result<Context> {
        let start = self.context.find(START).map_or(0, |at| at + START.len());
        let turns = self.context[start..].match_indices(TURN).map(|(at, _)| start + at);
        // Behind at least one turn.
        let mut ends: Vec<usize> = turns.skip(1).collect();
        ends.push(self.context.len());
        let [before, behind, space] = form.around();
        let upto = |end: usize| tokenizer.encode(&format!("{before}{}", self.context[..end].trim_end()));
        // By halves, as tokens grow with turns: all ends before `low` fit, those from `high` on do not.
        let (mut low, mut high, mut longest) = (0, ends.len(), None);
        while low < high {
            let middle = (low + high) / 2;
            let ids = upto(ends[middle])?;
            if ids.len() <= tokens {
                (low, longest) = (middle + 1, Some((ends[middle], ids)));
            } else {
                high = middle;
            }
        }
        let kept = longest.filter(|(end, _)| names(&self.context[..*end], &self.label));
        let (_, ids) = kept.ok_or_else(|| {
            Error::data(format!(
                "its first topic, “{}”, is lost in a context of {tokens} tokens: give more --tokens, or other \
                 --contexts",
                self.label
            ))
        })?;
        let question = Question {
            ids: tokenizer.encode_more(&format!("{}{behind}", self.question))?,
            label_ids: tokenizer.encode_more(&format!("{space}{}", self.label))?,
            label: self.label.clone(),
        };
        if question.ids.is_empty() || question.label_ids.is_empty() {
            return Err(Error::data("the tokenizer makes no tokens of its question, or of its first topic"));
        }
        Ok(Context { name: name.to_owned(), ids, question: Some(question) })
    }
}

#[cfg(test)]
mod tests;
