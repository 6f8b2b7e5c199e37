//! What reports are made from: the JSON of other commands, tables of `ablate` and `quality --csv`.

use std::path::Path;

use cacheg::core::ResultExt;
use cacheg::{Error, Result};
use serde_json::{Map, Value};

use crate::comma;

/// A report of another command.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// The file.
    pub(crate) source: String,
    /// What stands beside the rows: command, date, machine, …
    pub(crate) fields: Map<String, Value>,
    pub(crate) rows: Vec<Map<String, Value>>,
}

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A codec's damage to predictions: `quality`, `ablate`.
    Quality,
    /// Speed of a coder on symbols: `throughput`.
    Coder,
    /// Speed of whole encodes and decodes: `throughput`.
    EndToEnd,
    /// How much a layer's noise matters: `calibrate`.
    Sensitivity,
    /// Whether it matters as much as predicted: `calibrate --check`.
    Check,
    Unknown,
}

pub(crate) fn kind(row: &Map<String, Value>) -> Kind {
    let has = |key: &str| row.contains_key(key);
    if has("layer") && ["sensitivity", "key_sensitivity", "value_sensitivity"].into_iter().any(has) {
        Kind::Sensitivity
    } else if has("predicted") && has("kl") {
        Kind::Check
    } else if has("decode_gsym_s") {
        Kind::Coder
    } else if has("decode_mb_s") {
        Kind::EndToEnd
    } else if has("task") && has("context") && has("bits_per_value") {
        Kind::Quality
    } else {
        Kind::Unknown
    }
}

impl Document {
    /// Reads JSON, or comma-separated values if the file does not begin with `{`; beside a table of `ablate` its
    /// settings are read, too.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
        let source = path.display().to_string();
        if text.trim_start().starts_with('{') {
            return Self::from_json(&source, &text).at(|| &source);
        }
        let mut document = Self::from_csv(&source, &text).at(|| &source)?;
        let beside = settings_path(path);
        if let Ok(text) = std::fs::read_to_string(&beside) {
            document.fields = object(&text).at(|| beside.display())?;
        }
        Ok(document)
    }

    /// Of a report that was just made.
    #[cfg(any(feature = "llm", test))]
    pub(crate) fn of_rows(source: &str, fields: Map<String, Value>, rows: Vec<Value>) -> Self {
        let rows = rows.into_iter().filter_map(|row| match row {
            Value::Object(row) => Some(row),
            _ => None,
        });
        Self { source: source.to_owned(), fields, rows: rows.collect() }
    }

    pub(crate) fn from_json(source: &str, text: &str) -> Result<Self> {
        let mut fields = object(text)?;
        let Some(Value::Array(rows)) = fields.remove("rows") else {
            return Err(Error::data("no list `rows` in it: not what a command prints with --json"));
        };
        let rows = rows.into_iter().enumerate().map(|(index, row)| match row {
            Value::Object(row) => Ok(row),
            _ => Err(Error::data(format!("row {index} is no object"))),
        });
        Ok(Self { source: source.to_owned(), rows: rows.collect::<Result<_>>()?, fields })
    }

    pub(crate) fn from_csv(source: &str, text: &str) -> Result<Self> {
        let (_, rows) = comma::read(text)?;
        Ok(Self { source: source.to_owned(), fields: Map::new(), rows })
    }
}

/// Where `ablate` keeps what a table was measured with.
pub(crate) fn settings_path(table: &Path) -> std::path::PathBuf {
    let mut path = table.as_os_str().to_owned();
    path.push(".settings.json");
    path.into()
}

fn object(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text).map_err(|e| Error::data(format!("not JSON: {e}")))? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::data("no JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_the_same_rows() {
        let json = r#"{"machine": "m", "rows": [{"name": "a,b", "task": "t", "context": "c", "bits_per_value": 1.5,
            "level": 2, "profile": true}]}"#;
        let from_json = Document::from_json("x", json).unwrap();
        assert_eq!((from_json.fields.len(), kind(&from_json.rows[0])), (1, Kind::Quality));
        let csv = "name,task,context,bits_per_value,level,profile,kl\n\"a,b\",t,c,1.5,2,true,\n";
        assert_eq!(Document::from_csv("x", csv).unwrap().rows, from_json.rows);
        for (bad, why) in [("{", "not JSON"), ("{}", "`rows`"), (r#"{"rows":[1]}"#, "row 0")] {
            let error = Document::from_json("x", bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn settings_are_read_from_beside_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        std::fs::write(&path, "layer,kind,sensitivity\n0,k,2.5\n").unwrap();
        let document = Document::open(&path).unwrap();
        assert_eq!((kind(&document.rows[0]), document.fields.len()), (Kind::Sensitivity, 0));
        std::fs::write(settings_path(&path), r#"{"tokens": 9}"#).unwrap();
        assert_eq!(Document::open(&path).unwrap().fields["tokens"], 9);
        assert!(Document::open(&folder.path().join("no")).unwrap_err().to_string().contains("cannot read"));
    }
}
