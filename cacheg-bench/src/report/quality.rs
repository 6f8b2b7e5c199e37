//! Sections on what codecs do at what size: curves, everything in a table, bits at equal KL, kinds of text.

use cacheg::Result;
use maud::{Markup, html};
use serde_json::Value;

use super::chart::{Chart, Dot, Series};
use super::entries::{Entry, SETTING, Task, kind_of};
use super::page::{Head, cell, figure, head, interval_below, mean_cell, none, table, words};
use super::text::{digits, short};

/// KL at which codecs are compared.
const EQUAL: [f64; 3] = [0.002, 0.005, 0.02];

/// Key and title of what is measured, in the order of the table.
const MEASURES: &[(&str, &str)] = &[
    ("bits_per_value", "bits/value"),
    ("kl", "KL, nats"),
    ("delta_ppl_percent", "Δppl, %"),
    ("perplexity", "perplexity"),
    ("top1_percent", "top-1, %"),
    ("retrieval_percent", "found, %"),
    ("reference_retrieval_percent", "reference, %"),
    ("answer_equal_percent", "same answer, %"),
    ("label_nll", "NLL of the topic, nats"),
    ("delta_label_nll", "Δ NLL, nats"),
    ("accuracy_percent", "accuracy, %"),
    ("score_percent", "score, %"),
    ("greedy_percent", "alone: equal, %"),
    ("greedy_first", "first equal"),
];

/// Keys that are no measures of damage, or have a section of their own.
const ELSEWHERE: &[&str] = &[
    "name",
    "codec",
    "level",
    "spec",
    "task",
    "context",
    "contexts",
    "profile_bytes",
    "profile",
    "chunk_tokens",
    "encode_s",
    "decode_s",
    "header_bits_per_value",
    "carried_bits_per_value",
    "side_bits_per_value",
    "stream_bits_per_value",
];

/// A title for people.
pub(crate) fn title(task: &str) -> String {
    match task {
        "continuation" => "Reading on".to_owned(),
        "reread" => "Re-reading the middle of the context".to_owned(),
        "retrieval" => "Finding the first topic".to_owned(),
        other => {
            let mut letters = other.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

/// What the model has to do in it.
pub(crate) fn about(task: &str) -> &'static str {
    match task {
        "continuation" => {
            "The model reads the text that follows the context on each reconstruction of its KV cache."
        }
        "reread" => {
            "Instead of reading on, the model reads the middle of the context once more: every token of it matters, and \
             codecs that lose some are found out."
        }
        "retrieval" => {
            "The context is a record of conversations about several topics, as LongChat has them; the model is asked for the \
             first. Found: the answer has it, by string match. NLL: negative log-likelihood of the topic as the answer, per \
             token; Δ is against the model's own KV cache, and shows damage long before an answer changes."
        }
        _ => "",
    }
}

/// Damage against size.
pub(crate) fn curves(task: &Task) -> Result<Markup> {
    let log = task.has_kl();
    let key = if log { Some("kl") } else { task.score() };
    let Some(key) = key else { return Ok(html! {}) };
    let mut apart = Vec::new();
    let mut series = Vec::new();
    for family in task.families() {
        let mut dots = Vec::new();
        for entry in &family.entries {
            let (Some(bits), Some(damage)) = (entry.mean("bits_per_value"), entry.mean(key)) else {
                continue;
            };
            if log && damage.mean <= 0.0 {
                apart.push(format!("{} ({} bits)", entry.name, short(bits.mean)));
                continue;
            }
            dots.push(Dot {
                at: (bits.mean, damage.mean),
                x_interval: bits.interval,
                y_interval: damage.interval,
            });
        }
        series.push(Series { name: family.name.to_owned(), dots });
    }
    let title_of = || MEASURES.iter().find(|(known, _)| *known == key).map_or(key, |(_, title)| title);
    let y = if log { "KL(reference ‖ codec), nats per token" } else { title_of() };
    let Some(svg) = (Chart { x: "bits per value", y, log, series }).svg()? else { return Ok(html! {}) };
    let caption = html! {
        @if log { "Lower and further left is better. " } @else { "Higher and further left is better. " }
        "Lines go through the levels of one codec; hollow marks are codecs with a single level. Bars: 90 % intervals \
         over contexts. "
        @if !apart.is_empty() { "Without any damage, so not in the picture: " (apart.join(", ")) "." }
    };
    Ok(figure(svg, &format!("{}: damage against bits per value, by codec", title(&task.name)), &caption))
}

/// All that was measured.
pub(crate) fn everything(task: &Task) -> Markup {
    let any = |key: &str| task.entries.iter().any(|entry| entry.number(key).is_some());
    let settings = settings(task);
    let measures: Vec<(&str, &str)> = MEASURES.iter().copied().filter(|(key, _)| any(key)).collect();
    let more: Vec<String> = task
        .entries
        .iter()
        .flat_map(Entry::numeric_keys)
        .filter(|key| {
            !key.ends_with("_low")
                && !key.ends_with("_high")
                && !ELSEWHERE.contains(&&key[..])
                && !key.starts_with(SETTING)
                && !MEASURES.iter().any(|(known, _)| known == key)
        })
        .fold(Vec::new(), |mut all, key| {
            if !all.contains(&key) {
                all.push(key);
            }
            all
        });
    let mut heads = vec![words("codec")];
    heads.extend(settings.iter().map(|key| words(key)));
    heads.extend(measures.iter().map(|(_, title)| head(title)));
    heads.extend(more.iter().map(|key| head(key)));
    let profiles = any("profile_bytes");
    if profiles {
        heads.push(head("profile, MB"));
    }
    let rows = task.entries.iter().map(|entry| {
        let mut row = vec![html! { span title=(entry.spec) { (entry.name) } }];
        row.extend(settings.iter().map(|key| setting(entry, key)));
        let keys = measures.iter().map(|(key, _)| *key).chain(more.iter().map(|key| &key[..]));
        row.extend(keys.map(|key| mean_cell(entry.mean(key))));
        if profiles {
            let bytes = entry.number("profile_bytes").filter(|bytes| *bytes > 0.0);
            row.push(cell(bytes.map(|bytes| bytes / 1e6)));
        }
        row
    });
    table(&heads, &rows.collect::<Vec<_>>())
}

/// What varies in a grid: settings that are part of every row's spec.
fn settings(task: &Task) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for key in task.entries.iter().flat_map(Entry::settings) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn setting(entry: &Entry, key: &str) -> Markup {
    match entry.any(&format!("{SETTING}{key}")) {
        None | Some(Value::Null) => none(),
        Some(Value::String(text)) => html! { (text) },
        Some(value) => html! { (value.to_string()) },
    }
}

/// Bits at equal KL, of codecs with several levels.
pub(crate) fn equal(tasks: &[Task]) -> Option<Markup> {
    let mut parts = Vec::new();
    for task in tasks {
        let families = task.families();
        let paper = families.iter().find(|family| family.name == "cachegen-paper");
        let single = |name: &str| task.entries.iter().find(|entry| entry.name == name);
        let fixed: Vec<&Entry> = ["q8", "q4"].into_iter().filter_map(single).collect();
        let rows: Vec<Vec<Markup>> = families
            .iter()
            .filter(|family| EQUAL.iter().any(|kl| family.bits_at(*kl).is_some()))
            .map(|family| {
                let mut row = vec![html! { (family.name) }];
                for kl in EQUAL {
                    row.push(family.bits_at(kl).map_or_else(none, |at| {
                        html! {
                            (digits(at.bits)) @if at.extrapolated { "*" }
                            (interval_below(family.bits_interval(kl)))
                        }
                    }));
                }
                if let Some(paper) = paper {
                    let ratios = EQUAL.map(|kl| match (family.bits_at(kl), paper.bits_at(kl)) {
                        (Some(own), Some(paper)) => {
                            let star = if own.extrapolated || paper.extrapolated { "*" } else { "" };
                            format!("{:.2}{star}", own.bits / paper.bits)
                        }
                        _ => "–".to_owned(),
                    });
                    row.push(html! { (ratios.join(" · ")) });
                }
                row.extend(fixed.iter().map(|entry| match family.ratio(entry) {
                    None => none(),
                    Some((ratio, interval, extrapolated)) => html! {
                        (digits(ratio)) @if extrapolated { "*" } (interval_below(interval))
                    },
                }));
                row
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let mut heads = vec![words("codec")];
        heads.extend(EQUAL.map(|kl| head(&format!("KL {}", short(kl)))));
        heads.extend(paper.map(|_| head("÷ cachegen-paper at these")));
        heads.extend(
            fixed.iter().map(|entry| head(&format!("{} ÷ it, at the KL of {}", entry.name, entry.name))),
        );
        parts.push(html! { h3 { (title(&task.name)) } (table(&heads, &rows)) });
    }
    (!parts.is_empty()).then(|| {
        html! {
            p {
                "Bits per value at which a codec reaches a KL, between its levels on a straight line in log KL; below, \
                 the 90 % interval over contexts; and how many times as many bits q8 and q4 take for the damage they do. * beyond its levels, by at most a factor of "
                (short(super::equal::BEYOND)) " of KL; further out nothing is said. Codecs with a single level have \
                 no line: they are under “Against the paper”, or in the pictures."
            }
            @for part in &parts { (part) }
        }
    })
}

/// KL by kind of text.
pub(crate) fn kinds(task: &Task) -> Option<Markup> {
    let mut kinds: Vec<&str> = Vec::new();
    for context in task.entries.iter().flat_map(Entry::contexts) {
        let kind = kind_of(context);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.len() < 2 || !task.has_kl() {
        return None;
    }
    let damaged = task.entries.iter().filter(|entry| entry.number("kl").is_some_and(|kl| kl > 0.0));
    let rows: Vec<Vec<Markup>> = damaged
        .map(|entry| {
            let overall = entry.number("kl").unwrap_or(f64::NAN);
            let each: Vec<Option<f64>> = kinds.iter().map(|kind| entry.mean_of_kind(kind, "kl")).collect();
            let known = || each.iter().flatten().copied();
            let spread = known().fold(0.0, f64::max) / known().fold(f64::INFINITY, f64::min);
            let mut row = vec![html! { (entry.name) }, cell(entry.number("bits_per_value"))];
            row.extend(each.iter().map(|kl| match kl {
                None => none(),
                Some(kl) => html! { span class=(shade(kl / overall)) { (digits(*kl)) } },
            }));
            row.push(cell(Some(spread)));
            row
        })
        .collect();
    let mut heads: Vec<Head> = vec![words("codec"), head("bits/value")];
    heads.extend(kinds.iter().map(|kind| head(kind)));
    heads.push(head("worst / best"));
    Some(html! {
        p {
            (title(&task.name)) ": mean KL over the contexts of each kind. "
            span.worse { "Shaded" } " are kinds with more than 1.25 times the codec’s mean, "
            span.better { "outlined" } " those with less than 0.8 times."
        }
        (table(&heads, &rows))
    })
}

fn shade(ratio: f64) -> &'static str {
    match ratio {
        r if r > 1.25 => "worse",
        r if r < 0.8 => "better",
        _ => "",
    }
}
