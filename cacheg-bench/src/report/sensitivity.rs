//! How much noise in a layer's keys and values matters.

use std::collections::BTreeMap;

use cacheg::Result;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::chart::{Chart, Dot, Series};
use super::document::{Document, Kind, kind};
use super::page::{cell, figure, head, table, words};

/// By layer, the sum and number of its rows: one for each KV head, perhaps.
type Layers = BTreeMap<u64, (f64, f64)>;

/// From rows of `calibrate` and `calibrate --check`.
pub(crate) fn section(documents: &[Document]) -> Result<Option<Markup>> {
    let rows = |wanted: Kind| -> Vec<&Map<String, Value>> {
        documents.iter().flat_map(|document| &document.rows).filter(|row| kind(row) == wanted).collect()
    };
    let layers = layers(&rows(Kind::Sensitivity))?;
    let check = check(&rows(Kind::Check));
    Ok((layers.is_some() || check.is_some())
        .then(|| html! { (layers.unwrap_or_default()) (check.unwrap_or_default()) }))
}

/// What a row says: of keys, of values, or of what its `kind` names.
fn values(row: &Map<String, Value>) -> impl Iterator<Item = (&str, f64)> {
    let named = row.get("kind").and_then(Value::as_str).unwrap_or("all");
    let named = match named {
        "k" | "key" => "keys",
        "v" | "value" => "values",
        other => other,
    };
    let keys = [("sensitivity", named), ("key_sensitivity", "keys"), ("value_sensitivity", "values")];
    keys.into_iter().filter_map(|(key, name)| Some((name, row.get(key)?.as_f64()?)))
}

fn layers(rows: &[&Map<String, Value>]) -> Result<Option<Markup>> {
    let mut kinds: Vec<(&str, Layers)> = Vec::new();
    for row in rows {
        let Some(layer) = row.get("layer").and_then(Value::as_u64) else { continue };
        for (name, value) in values(row) {
            let at = kinds.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                kinds.push((name, Layers::new()));
                kinds.len() - 1
            });
            let (sum, count) = kinds[at].1.entry(layer).or_insert((0.0, 0.0));
            *sum += value;
            *count += 1.0;
        }
    }
    let series = kinds.iter().map(|(name, layers)| Series {
        name: (*name).to_owned(),
        dots: layers.iter().map(|(layer, (sum, count))| Dot::exact((*layer as f64, sum / count))).collect(),
    });
    let chart = Chart { x: "layer", y: "sensitivity", log: true, series: series.collect() };
    let Some(svg) = chart.svg()? else { return Ok(None) };
    let caption = html! {
        "By how much noise of a given size in a channel of a layer’s keys or values raises KL; means over channels and \
         KV heads. Where it is high, steps should be small."
    };
    let mut heads = vec![words("layer")];
    heads.extend(kinds.iter().map(|(name, _)| head(name)));
    let mut all: Vec<u64> = kinds.iter().flat_map(|(_, layers)| layers.keys().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let of = |layer: &u64| {
        let means = kinds.iter().map(|(_, layers)| cell(layers.get(layer).map(|(sum, count)| sum / count)));
        std::iter::once(html! { (layer) }).chain(means).collect()
    };
    let rows: Vec<Vec<Markup>> = all.iter().map(of).collect();
    Ok(Some(html! {
        (figure(svg, "Sensitivity by layer, keys and values", &caption))
        details { summary { "As a table" } (table(&heads, &rows)) }
    }))
}

/// What noise did, beside what was predicted.
fn check(rows: &[&Map<String, Value>]) -> Option<Markup> {
    let number = |row: &Map<String, Value>, key: &str| row.get(key).and_then(Value::as_f64);
    let cells = |row: &&Map<String, Value>| {
        let name = row.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let head = row.get("head").map(|head| format!(", head {head}")).unwrap_or_default();
        let numbers = ["kl", "predicted", "ratio"].map(|key| cell(number(row, key)));
        std::iter::once(html! { (name) (head) }).chain(numbers).collect()
    };
    let lines: Vec<Vec<Markup>> = rows.iter().map(cells).collect();
    let heads =
        [words("noise in"), head("KL, measured"), head("KL, predicted"), head("measured ÷ predicted")];
    (!rows.is_empty()).then(|| html! { h3 { "Noise of known size" } (table(&heads, &lines)) })
}
