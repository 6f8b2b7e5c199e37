//! Spec strings: `anchor-delta(group=10) | bins(k=32,16,16;v=32,16) | rans(tables=channel)`.
//!
//! ```text
//! pipeline := stage ('|' stage)*
//! stage    := name [ '(' [ key '=' value { (','|';') key '=' value } ] ')' ]
//! value    := item { ',' item }        one item is a scalar, several are a list
//! item     := number | true | false | word
//! ```
//!
//! The string is for people; containers store the canonical JSON, a list of [`StageSpec`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::{Error, Result};

/// One stage by name, with settings and the version of its format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// Registered name.
    pub name: String,
    /// Format version; `None` in specs that people write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Settings, an object.
    #[serde(default)]
    pub config: Value,
}

/// Whether this is a well-formed stage name: lower-case letters, digits, `-` and `.`, beginning with a letter.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

/// Reads a spec string, or JSON if it begins with `[`.
///
/// # Errors
/// Syntax errors, with the piece of text they are in.
pub fn parse(text: &str) -> Result<Vec<StageSpec>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|e| Error::setting(format!("pipeline JSON: {e}")));
    }
    text.split('|').map(|stage| parse_stage(stage.trim())).collect()
}

/// Writes a spec string; versions are left out.
pub fn format(stages: &[StageSpec]) -> String {
    stages.iter().map(format_stage).collect::<Vec<_>>().join("|")
}

fn parse_stage(text: &str) -> Result<StageSpec> {
    let bad = |why: &str| Error::setting(format!("{why} in `{text}`"));
    let (name, settings) = match text.split_once('(') {
        None => (text, ""),
        Some((name, rest)) => (name, rest.strip_suffix(')').ok_or_else(|| bad("no closing `)`"))?),
    };
    let name = name.trim_end();
    if !is_name(name) {
        return Err(bad(if name.is_empty() { "a stage without a name" } else { "malformed stage name" }));
    }
    let mut lists: Vec<(&str, Vec<&str>)> = Vec::new();
    for run in settings.split(';').filter(|run| !run.trim().is_empty()) {
        let mut open = false;
        for item in run.split(',') {
            match (item.split_once('='), lists.last_mut()) {
                (Some((key, value)), _) => {
                    lists.push((key.trim(), vec![value.trim()]));
                    open = true;
                }
                (None, Some((_, list))) if open => list.push(item.trim()),
                (None, _) => return Err(bad("a value without `key=`")),
            }
        }
    }
    let mut config = Map::new();
    for (key, items) in lists {
        if key.is_empty() || items.iter().any(|item| !is_item(item)) {
            return Err(bad("a malformed setting"));
        }
        let mut values: Vec<Value> = items.into_iter().map(parse_item).collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        if config.insert(key.to_owned(), value).is_some() {
            return Err(bad(&format!("`{key}` is given twice")));
        }
    }
    Ok(StageSpec { name: name.to_owned(), version: None, config: Value::Object(config) })
}

fn is_item(item: &str) -> bool {
    !item.is_empty() && !item.contains(|c: char| c.is_whitespace() || "()=[]{}\"".contains(c))
}

fn parse_item(item: &str) -> Value {
    if let Ok(integer) = item.parse::<i64>() {
        return integer.into();
    }
    match (item, item.parse::<f64>().ok().and_then(Number::from_f64)) {
        ("true", _) => true.into(),
        ("false", _) => false.into(),
        (_, Some(number)) => Value::Number(number),
        _ => item.into(),
    }
}

fn format_stage(stage: &StageSpec) -> String {
    let Some(config) = stage.config.as_object().filter(|config| !config.is_empty()) else {
        return stage.name.clone();
    };
    let settings = config.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
        let value = match value {
            Value::Array(items) => items.iter().map(format_item).collect::<Vec<_>>().join(","),
            item => format_item(item),
        };
        format!("{key}={value}")
    });
    format!("{}({})", stage.name, settings.collect::<Vec<_>>().join(";"))
}

fn format_item(item: &Value) -> String {
    item.as_str().map_or_else(|| item.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn design_examples_parse() {
        let stages =
            parse("anchor-delta(group=10) | bins(k=32,16,16;v=32,16) | range(tables=channel)").unwrap();
        let json = serde_json::to_string(&stages).unwrap();
        assert_eq!(
            json,
            r#"[{"name":"anchor-delta","config":{"group":10}},{"name":"bins","config":{"k":[32,16,16],"v":[32,16]}},{"name":"range","config":{"tables":"channel"}}]"#
        );
        assert_eq!(parse(&json).unwrap(), stages);
        assert_eq!(parse(&format(&stages)).unwrap(), stages);
        let mixed = parse("klt(scope=layers:5, metric=identity) | steps(budget=1.0)|rans").unwrap();
        assert_eq!(mixed[0].config["scope"], "layers:5");
        assert_eq!(mixed[0].config["metric"], "identity");
        assert_eq!(mixed[1].config["budget"], 1.0);
        assert_eq!(mixed[2].config, Value::Object(Map::new()));
    }

    #[test]
    fn syntax_errors_show_the_place() {
        for bad in [
            "",
            "a||b",
            "a(",
            "a)",
            "a(k)",
            "a(=1)",
            "a(k=)",
            "A",
            "a(k=1;k=2)",
            "a(k=1,,2)",
            "a(1,k=2)",
            "a(k=(1))",
            "[1]",
            "[{}]",
            "9a",
            "a b",
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidSetting, "{bad}: {error}");
        }
        assert!(parse("ok|a(k=1;k=2)").unwrap_err().to_string().contains("a(k=1;k=2)"));
    }
}
