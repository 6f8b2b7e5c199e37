//! What the rows of a table were measured with, kept beside it: they must not be mixed with others.

use std::io::Write as _;
use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::output::OutputFile;
use cacheg::{Error, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::quality::contexts::Context;

/// Fields that have to stay the same.
const FIXED: &[&str] = &[
    "model_sha256",
    "tokens",
    "continuation_tokens",
    "greedy_tokens",
    "version",
    "calibration",
    "statistics_sha256",
];

/// JSON: the fields of a report, and hashes of the texts' tokens by name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings(Map<String, Value>);

impl Settings {
    pub(crate) fn new(fields: &Map<String, Value>, test: &[Context], calibration: &[Context]) -> Self {
        let mut fields = fields.clone();
        fields.insert("calibration".into(), hashes(calibration));
        fields.insert("contexts".into(), hashes(test));
        Self(fields)
    }

    /// These settings, if the rows of a table with the settings in a file may be gone on with. Its contexts stay.
    pub(crate) fn continued(&self, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
        let known: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| Error::data(e.to_string())).at(|| path.display())?;
        self.merged(&known).at(|| path.display())
    }

    fn merged(&self, known: &Map<String, Value>) -> Result<Self> {
        for key in FIXED {
            let (then, now) = (known.get(*key), self.0.get(*key));
            if then != now {
                let show = |value: Option<&Value>| match value {
                    Some(Value::Object(_)) => "other texts".to_owned(),
                    Some(value) => value.to_string(),
                    None => "nothing".to_owned(),
                };
                return Err(Error::data(format!(
                    "there are results with `{key}`: {}, now it is {}; give --force to begin anew, or another --output",
                    show(then),
                    show(now)
                )));
            }
        }
        let mut merged = self.clone();
        let contexts = known.get("contexts").and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(Value::Object(now)) = merged.0.get_mut("contexts") {
            for (name, hash) in contexts {
                match now.get(&name) {
                    Some(other) if *other != hash => {
                        return Err(Error::data(format!(
                            "there are results on another text called `{name}`; rename it, give --force to begin anew, \
                             or another --output"
                        )));
                    }
                    _ => now.insert(name, hash),
                };
            }
        }
        Ok(merged)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.0).map_err(|e| Error::data(e.to_string()))?;
        let mut out = OutputFile::create(path, true)?;
        out.write_all(text.as_bytes()).map_err(|e| Error::io("cannot write", path, e))?;
        out.commit()
    }
}

fn hashes(contexts: &[Context]) -> Value {
    let hash = |context: &Context| {
        let mut hash = Sha256::new();
        let question =
            context.question.iter().flat_map(|question| question.ids.iter().chain(&question.label_ids));
        context.ids.iter().chain(question).for_each(|id| hash.update(id.to_le_bytes()));
        let short: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        (context.name.clone(), Value::from(short))
    };
    Value::Object(contexts.iter().map(hash).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(tokens: u32, contexts: &[(&str, u32)]) -> Settings {
        let context =
            |(name, id): &(&str, u32)| Context { name: (*name).into(), ids: vec![*id; 5], question: None };
        let contexts: Vec<Context> = contexts.iter().map(context).collect();
        let fields = json!({"tokens": tokens, "date": format!("{tokens}")});
        Settings::new(fields.as_object().unwrap(), &contexts, &[])
    }

    #[test]
    fn only_the_same_is_gone_on_with() {
        let old = settings(5, &[("a", 1), ("b", 2)]);
        let merged = settings(5, &[("b", 2), ("c", 3)]).merged(&old.0).unwrap();
        assert_eq!(merged.0["contexts"].as_object().unwrap().len(), 3);
        let error = settings(6, &[]).merged(&old.0).unwrap_err().to_string();
        assert!(error.contains("`tokens`: 5, now it is 6"), "{error}");
        let error = settings(5, &[("a", 9)]).merged(&old.0).unwrap_err().to_string();
        assert!(error.contains("another text called `a`"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        old.write(&path).unwrap();
        assert_eq!(old.continued(&path).unwrap(), old);
        std::fs::write(&path, "{").unwrap();
        assert!(old.continued(&path).unwrap_err().to_string().contains("s.json"));
    }
}
