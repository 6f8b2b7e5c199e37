//! Texts, cut into contexts and what follows them.

use std::collections::HashSet;
use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::{Error, Result};
use cacheg_bench::llm::Tokenizer;
use serde_json::Value;

use super::topics::Question;

/// Name and content of texts that are part of the program.
pub(crate) type Texts = &'static [(&'static str, &'static str)];

macro_rules! texts {
    ($folder:literal: $($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../texts/", $folder, "/", $name, ".txt")))),*]
    };
}

/// What codecs are judged by.
pub(crate) const TEST: Texts = texts!("test": "novel-1", "novel-2", "prose-1", "prose-2", "code-1", "code-2",
    "licence-1", "licence-2", "chat-1", "chat-2");

/// What profiles are calibrated on.
pub(crate) const CALIBRATION: Texts = texts!("calibration": "novel-1", "novel-2", "prose-1", "prose-2", "code-1",
    "code-2", "licence-1", "licence-2", "chat-1", "novel-3", "novel-4", "novel-5", "novel-6", "prose-3", "prose-4",
    "prose-5", "prose-6", "code-3", "code-4", "code-5", "code-6", "licence-3", "licence-4", "chat-2", "chat-3", "chat-4",
    "table-1");

/// Of kinds that no calibration text has.
pub(crate) const FOREIGN: Texts = texts!("test": "foreign-french", "foreign-german", "foreign-spanish", "foreign-c",
    "foreign-perl", "foreign-shell", "foreign-html", "foreign-json");

/// What [`FOREIGN`] is called on the command line.
pub(crate) const FOREIGN_NAME: &str = "foreign";

/// In front of a file of JSON lines, as LongChat has them.
pub(super) const LONGCHAT: &str = "longchat:";

/// A text as tokens.
pub(crate) struct Context {
    pub(crate) name: String,
    pub(crate) ids: Vec<u32>,
    /// What is asked behind it; without, the text is read on.
    pub(crate) question: Option<Question>,
}

/// A line of LongChat's files.
pub(super) struct Line {
    pub(super) prompt: String,
    /// Null if there is none.
    pub(super) label: Value,
}

/// Reads what the command line names: `default`, `foreign`, `longchat:FILE`, or a text file.
pub(crate) fn read(wanted: &[String], default: Texts, tokenizer: &Tokenizer) -> Result<Vec<Context>> {
    let mut contexts = Vec::new();
    let mut add = |name: String, text: &str| -> Result<()> {
        let ids = tokenizer.encode(text).at(|| &name)?;
        contexts.push(Context { name, ids, question: None });
        Ok(())
    };
    for name in wanted {
        let texts = match &name[..] {
            "default" => Some(default),
            FOREIGN_NAME => Some(FOREIGN),
            _ => None,
        };
        if let Some(texts) = texts {
            texts.iter().try_for_each(|(name, text)| add((*name).to_owned(), text))?;
        } else if let Some(path) = name.strip_prefix(LONGCHAT) {
            let lines = load(Path::new(path))?;
            for (index, line) in lines.lines().filter(|line| !line.trim().is_empty()).enumerate() {
                let line = Line::parse(line).at(|| format!("{path}, line {}", index + 1))?;
                add(format!("longchat-{index}"), &line.prompt)?;
            }
        } else {
            let path = Path::new(name);
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            add(stem.to_string_lossy().into_owned(), &load(path)?)?;
        }
    }
    Ok(contexts)
}

pub(super) fn load(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))
}

impl Line {
    pub(super) fn parse(line: &str) -> Result<Self> {
        match serde_json::from_str(line) {
            Ok(Value::Object(mut fields)) => match (fields.remove("prompt"), fields.remove("label")) {
                (Some(Value::String(prompt)), label) => {
                    Some(Self { prompt, label: label.unwrap_or_default() })
                }
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| Error::data("not a JSON object with a text `prompt`"))
    }
}

/// Leaves so many tokens of each.
pub(crate) fn cut(contexts: &mut [Context], tokens: usize) -> Result<()> {
    for context in contexts {
        if context.ids.len() < tokens {
            return Err(Error::data(format!(
                "the text has {} tokens, and {tokens} of context and continuation were asked for",
                context.ids.len()
            ))
            .at(&context.name));
        }
        context.ids.truncate(tokens);
    }
    Ok(())
}

/// Tokens of the runs that calibration and test are compared by.
const GRAM: usize = 12;

/// A larger share of a test text's runs must not be in the calibration texts. Some are: phrases of a trade.
const MOST: f64 = 0.01;

/// Refuses test texts whose runs of 12 tokens occur in a calibration text.
pub(crate) fn check_disjoint(calibration: &[Context], test: &[Context]) -> Result<()> {
    let known: Vec<(&str, HashSet<&[u32]>)> =
        calibration.iter().map(|c| (&c.name[..], c.ids.windows(GRAM).collect())).collect();
    for context in test {
        let runs = context.ids.len().saturating_sub(GRAM - 1);
        let common =
            |set: &HashSet<&[u32]>| context.ids.windows(GRAM).filter(|run| set.contains(run)).count();
        let all =
            context.ids.windows(GRAM).filter(|run| known.iter().any(|(_, set)| set.contains(run))).count();
        if all as f64 > MOST * runs as f64 {
            let worst = known.iter().max_by_key(|(_, set)| common(set)).map_or("", |(name, _)| name);
            return Err(Error::data(format!(
                "{:.1} % of its {GRAM}-token runs are in the calibration texts, most in `{worst}`; at most {:.0} % may \
                 be: give other texts to --contexts or --calibration",
                all as f64 * 100.0 / runs as f64,
                MOST * 100.0
            ))
            .at(format!("test text `{}`", context.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(name: &str, ids: impl Iterator<Item = u32>) -> Context {
        Context { name: name.into(), ids: ids.collect(), question: None }
    }

    #[test]
    fn shared_runs_are_refused() {
        let calibration = [context("a", 0..500), context("b", 1_000..1_500)];
        assert!(check_disjoint(&calibration, &[context("x", 2_000..2_500)]).is_ok());
        // 489 runs; 15 common tokens are 4 common runs, within 1 %; 16 are 5, beyond it.
        let mixed = |n: u32| [context("x", (0..n).chain(3_000..3_500 - n))];
        assert!(check_disjoint(&calibration, &mixed(15)).is_ok());
        let error = check_disjoint(&calibration, &mixed(16)).unwrap_err().to_string();
        assert!(error.contains("`x`") && error.contains("1.0 %") && error.contains("`a`"), "{error}");
        let error = check_disjoint(&calibration, &[context("y", 1_000..1_200)]).unwrap_err().to_string();
        assert!(error.contains("100.0 %") && error.contains("`b`"), "{error}");
        // Shorter than a run: nothing to compare.
        assert!(check_disjoint(&calibration, &[context("z", 0..5)]).is_ok());
    }

    #[test]
    fn texts_that_are_too_short_are_named() {
        let mut contexts = [context("a", 0..20)];
        cut(&mut contexts, 8).unwrap();
        assert_eq!(contexts[0].ids.len(), 8);
        let error = cut(&mut contexts, 9).unwrap_err().to_string();
        assert!(error.contains("a: ") && error.contains("has 8 tokens, and 9"), "{error}");
    }

    #[test]
    fn prompts_come_from_json_lines() {
        let line = Line::parse(r#"{"test_id": 0, "prompt": "a\nb", "label": ["x"]}"#).unwrap();
        assert_eq!((&line.prompt[..], &line.label[0]), ("a\nb", &Value::from("x")));
        assert!(Line::parse(r#"{"prompt": "a"}"#).unwrap().label.is_null());
        for bad in [r#"{"text": "a"}"#, r#"{"prompt": 1}"#, r#"["prompt"]"#, "a", ""] {
            assert!(Line::parse(bad).err().unwrap().to_string().contains("`prompt`"), "{bad}");
        }
    }
}
