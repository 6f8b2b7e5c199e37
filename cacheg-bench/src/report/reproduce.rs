//! Where the numbers come from.

use maud::{Markup, html};
use serde_json::{Map, Value};

use super::document::Document;
use super::entries::Task;
use super::page::{table, words};

/// Fields that come first, and how they are called.
const FIELDS: &[(&str, &str)] = &[
    ("command", "command"),
    ("version", "cacheg"),
    ("date", "date"),
    ("machine", "machine"),
    ("model", "model"),
    ("model_sha256", "model, SHA-256"),
];

pub(crate) fn section(documents: &[Document], tasks: &[Task]) -> Markup {
    let mut specs: Vec<(&str, &str)> = Vec::new();
    for entry in tasks.iter().flat_map(|task| &task.entries) {
        if !entry.spec.is_empty() && !specs.contains(&(&entry.name, &entry.spec)) {
            specs.push((&entry.name, &entry.spec));
        }
    }
    let rows: Vec<Vec<Markup>> =
        specs.iter().map(|(name, spec)| vec![html! { (name) }, html! { code { (spec) } }]).collect();
    html! {
        @for document in documents {
            h3 { (document.source) ", " (document.rows.len()) " rows" }
            (fields(&document.fields))
        }
        p {
            "The model: " code { "cacheg-bench model get smollm2" } " (or " code { "--model PATH" }
            "). Texts, calibration and what every number means: " code { "cacheg-bench/README.md" } ", "
            code { "docs/quality.md" } ". Intervals are from 1,000 resamples of the contexts with a fixed seed: the same \
             rows give the same page."
        }
        @if !rows.is_empty() { h3 { "Codecs" } (table(&[words("name"), words("pipeline")], &rows)) }
    }
}

fn fields(fields: &Map<String, Value>) -> Markup {
    let known = FIELDS.iter().filter_map(|(key, title)| Some((*title, fields.get(*key)?)));
    let others = fields.iter().filter(|(key, _)| !FIELDS.iter().any(|(known, _)| known == key));
    let all = known.chain(others.map(|(key, value)| (&key[..], value)));
    html! {
        @if fields.is_empty() { p { "Nothing is known of how they were measured." } }
        dl { @for (title, value) in all.filter(|(_, value)| !value.is_null()) {
            dt { (title.replace('_', " ")) }
            dd { @if title == "command" { code { (words_of(value)) } } @else { (words_of(value)) } }
        } }
    }
}

fn words_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(words_of).collect::<Vec<_>>().join(", "),
        Value::Object(items) => items
            .iter()
            .map(|(key, value)| format!("{key} ({})", words_of(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}
