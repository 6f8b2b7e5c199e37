//! How much noise in a layer's keys and values matters.

use cacheg::Result;
use maud::{Markup, html};

use super::chart::{Chart, Dot, Series};
use super::document::{Document, Kind, kind};
use super::page::{cell, figure, head, table, words};

/// Kind (keys or values), and by layer the sum and number of its rows: one for each KV head, perhaps.
type Layers = Vec<(String, std::collections::BTreeMap<u64, (f64, f64)>)>;

fn title(kind: &str) -> &str {
    match kind {
        "k" | "key" => "keys",
        "v" | "value" => "values",
        other => other,
    }
}

/// From rows with `layer`, `kind` and `sensitivity`.
pub(crate) fn section(documents: &[Document]) -> Result<Option<Markup>> {
    let mut kinds: Layers = Vec::new();
    for row in
        documents.iter().flat_map(|document| &document.rows).filter(|row| kind(row) == Kind::Sensitivity)
    {
        let (Some(layer), Some(value)) = (row["layer"].as_u64(), row["sensitivity"].as_f64()) else {
            continue;
        };
        let name = row.get("kind").and_then(|kind| kind.as_str()).unwrap_or("all").to_owned();
        let at = kinds.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            kinds.push((name, std::collections::BTreeMap::new()));
            kinds.len() - 1
        });
        let cell = kinds[at].1.entry(layer).or_insert((0.0, 0.0));
        *cell = (cell.0 + value, cell.1 + 1.0);
    }
    let series = kinds.iter().map(|(name, layers)| Series {
        name: title(name).to_owned(),
        dots: layers.iter().map(|(layer, (sum, count))| Dot::exact((*layer as f64, sum / count))).collect(),
    });
    let chart = Chart { x: "layer", y: "sensitivity", log: true, series: series.collect() };
    let Some(svg) = chart.svg()? else { return Ok(None) };
    let caption = html! {
        "By how much noise of a given size in a layer’s keys or values raises KL; means over KV heads where there are \
         several. Where it is high, steps should be small."
    };
    let mut heads = vec![words("layer")];
    heads.extend(kinds.iter().map(|(name, _)| head(title(name))));
    let mut layers: Vec<u64> = kinds.iter().flat_map(|(_, layers)| layers.keys().copied()).collect();
    layers.sort_unstable();
    layers.dedup();
    let rows: Vec<Vec<Markup>> = layers
        .iter()
        .map(|layer| {
            let of = |(_, layers): &(String, std::collections::BTreeMap<u64, (f64, f64)>)| {
                cell(layers.get(layer).map(|(sum, count)| sum / count))
            };
            std::iter::once(html! { (layer) }).chain(kinds.iter().map(of)).collect()
        })
        .collect();
    Ok(Some(html! {
        (figure(svg, "Sensitivity by layer, keys and values", &caption))
        details { summary { "As a table" } (table(&heads, &rows)) }
    }))
}
