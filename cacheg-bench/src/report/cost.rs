//! What bytes are for, and what time things take.

use maud::{Markup, html};
use serde_json::{Map, Value};

use super::document::{Document, Kind, kind};
use super::entries::{Entry, Task};
use super::page::{Head, cell, head, none, table, words};
use super::text::digits;

/// Keys of what a container's bytes are for, with a class of the style sheet.
const PARTS: [(&str, &str, &str); 4] = [
    ("stream_bits_per_value", "streams", "p0"),
    ("side_bits_per_value", "side information", "p1"),
    ("carried_bits_per_value", "carried tables", "p2"),
    ("header_bits_per_value", "headers", "p3"),
];

/// What the bits of each codec are for.
pub(crate) fn side(tasks: &[Task]) -> Option<Markup> {
    let parts =
        |entry: &Entry| -> Option<Vec<f64>> { PARTS.iter().map(|(key, ..)| entry.number(key)).collect() };
    let entries: Vec<(&Entry, Vec<f64>)> = tasks
        .iter()
        .map(|task| task.entries.iter().filter_map(|entry| Some((entry, parts(entry)?))).collect::<Vec<_>>())
        .find(|entries| !entries.is_empty())?;
    let most = entries.iter().map(|(_, parts)| parts.iter().sum::<f64>()).fold(0.0, f64::max);
    let mut heads = vec![words("codec"), words(""), head("bits/value")];
    heads.extend(PARTS.iter().map(|(_, title, _)| head(title)));
    heads.push(head("profile, MB"));
    let rows: Vec<Vec<Markup>> = entries
        .iter()
        .map(|(entry, parts)| {
            let all: f64 = parts.iter().sum();
            let bar = html! {
                div.bar aria-hidden="true" {
                    @for (part, (_, _, class)) in parts.iter().zip(PARTS) {
                        @if *part > 0.0 {
                            span class=(class) style={ "width:" (format!("{:.2}", part * 100.0 / most)) "%" } {}
                        }
                    }
                }
            };
            let mut row = vec![html! { (entry.name) }, bar, cell(Some(all))];
            row.extend(parts.iter().map(|part| {
                html! { (digits(*part)) @if *part > 0.0 { span.interval { (format!("{:.1} %", part * 100.0 / all)) } } }
            }));
            let profile = entry.number("profile_bytes").filter(|bytes| *bytes > 0.0);
            row.push(cell(profile.map(|bytes| bytes / 1e6)));
            row
        })
        .collect();
    Some(html! {
        p {
            "Bits per value of the whole container, by what they are for. A profile is shared by all contexts of a model \
             and counted in none; without one, its data is among the carried tables of every chunk."
        }
        p { @for (_, title, class) in PARTS { span.key { span class={ "swatch " (class) } {} (title) } } }
        (table(&heads, &rows))
    })
}

/// Time: what `quality` saw in passing, and what `throughput` measured.
pub(crate) fn speed(tasks: &[Task], documents: &[Document]) -> Option<Markup> {
    let mut parts = Vec::new();
    let rows = |wanted: Kind| -> Vec<&Map<String, Value>> {
        documents.iter().flat_map(|document| &document.rows).filter(|row| kind(row) == wanted).collect()
    };
    let whole = [
        ("name", "preset"),
        ("tables", "tables"),
        ("threads", "threads"),
        ("bits_per_value", "bits/value"),
        ("encode_mb_s", "encode, MB/s"),
        ("decode_mb_s", "decode, MB/s"),
        ("decode_vs_memcpy", "decode ÷ memcpy"),
    ];
    let coders = [
        ("name", "coder"),
        ("encode_gsym_s", "encode, Gsymbols/s"),
        ("decode_gsym_s", "decode, Gsymbols/s"),
        ("decode_f16_gb_s", "GB/s of f16"),
        ("size_over_entropy", "size ÷ entropy"),
        ("decode_vs_memcpy", "decode ÷ memcpy"),
    ];
    for (title, wanted, columns) in [
        ("Whole KV caches (throughput)", Kind::EndToEnd, &whole[..]),
        ("Entropy coders on symbols, one core (throughput)", Kind::Coder, &coders[..]),
    ] {
        let rows = rows(wanted);
        if !rows.is_empty() {
            parts.push(html! { h3 { (title) } (plain(&rows, columns)) });
        }
    }
    let tokens = documents.iter().find_map(|document| document.fields.get("tokens")?.as_f64());
    let bytes = documents.iter().find_map(|document| document.fields.get("kv_bytes_per_token")?.as_f64());
    parts.extend(in_passing(tasks, tokens, bytes));
    (!parts.is_empty()).then(|| html! { @for part in &parts { (part) } })
}

fn plain(rows: &[&Map<String, Value>], columns: &[(&str, &str)]) -> Markup {
    let number = |key: &str| rows.iter().any(|row| row.get(key).is_some_and(Value::is_number));
    let heads: Vec<Head> = columns.iter().map(|(key, title)| ((*title).to_owned(), number(key))).collect();
    let cells = |row: &Map<String, Value>| -> Vec<Markup> {
        columns
            .iter()
            .map(|(key, _)| match row.get(*key) {
                None | Some(Value::Null) => none(),
                Some(Value::String(text)) => html! { (text) },
                Some(Value::Number(number)) if number.is_u64() => html! { (number.to_string()) },
                Some(value) => cell(value.as_f64()),
            })
            .collect()
    };
    table(&heads, &rows.iter().map(|row| cells(row)).collect::<Vec<_>>())
}

fn in_passing(tasks: &[Task], tokens: Option<f64>, bytes: Option<f64>) -> Option<Markup> {
    let timed = |task: &&Task| task.entries.iter().any(|entry| entry.number("encode_s").is_some());
    let task = tasks.iter().find(timed)?;
    let size = tokens.zip(bytes).map(|(tokens, bytes)| tokens * bytes / 1e6);
    let mut heads = vec![words("codec"), head("encode, s"), head("decode, s")];
    if size.is_some() {
        heads.extend([head("encode, MB/s"), head("decode, MB/s")]);
    }
    let rows: Vec<Vec<Markup>> = task
        .entries
        .iter()
        .filter(|entry| entry.number("encode_s").is_some())
        .map(|entry| {
            let seconds = ["encode_s", "decode_s"].map(|key| entry.number(key));
            let mut row = vec![html! { (entry.name) }];
            row.extend(seconds.map(cell));
            if let Some(size) = size {
                row.extend(seconds.map(|seconds| cell(seconds.map(|seconds| size / seconds))));
            }
            row
        })
        .collect();
    Some(html! {
        h3 { "In passing (quality)" }
        p {
            "One encode and one decode of each context"
            @if let Some(tokens) = tokens { ", " (digits(tokens)) " tokens" }
            @if let Some(size) = size { ", " (digits(size)) " MB" }
            ", between runs of the model, with cold caches and whatever else the machine was doing: an order of \
             magnitude, no benchmark. Encoding without a profile includes calibration. "
            code { "cacheg-bench throughput" } " measures speed."
        }
        (table(&heads, &rows))
    })
}
