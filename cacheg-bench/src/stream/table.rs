//! From runs to rows.

use cacheg::report::{Column, Report};
use serde_json::{Value, json};

use super::oracle::Bound;
use super::run::Outcome;

/// The name of the artifact's own model among the kinds of link.
pub(crate) const OWN: &str = "per-chunk";

/// What a case counts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) kind: &'static str,
    /// Milliseconds.
    pub(crate) slo: u64,
}

/// One policy on all cases.
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Run {
    /// The oracle as if it were a policy.
    pub(crate) fn oracle(bounds: &[Bound]) -> Self {
        let outcome = |bound: &Bound| Outcome {
            missed: !bound.met,
            distortion: bound.distortion,
            ..Outcome::default()
        };
        Self { name: "oracle".into(), outcomes: bounds.iter().map(outcome).collect() }
    }
}

/// Rows of all policies: over all links with a rate over time, over the artifact's own model, by kind of link, by
/// deadline.
pub(crate) fn rows(groups: &[Group], bounds: &[Bound], runs: &[Run]) -> Vec<Value> {
    let mut kinds: Vec<&str> = Vec::new();
    let mut slos: Vec<u64> = Vec::new();
    for group in groups {
        if !kinds.contains(&group.kind) {
            kinds.push(group.kind);
        }
        if group.kind != OWN && !slos.contains(&group.slo) {
            slos.push(group.slo);
        }
    }
    let mut rows = Vec::new();
    let mut add = |set: &str, kind: &str, slo: Option<u64>, picks: &dyn Fn(&Group) -> bool| {
        let picked: Vec<usize> = (0..groups.len()).filter(|index| picks(&groups[*index])).collect();
        if !picked.is_empty() {
            rows.extend(runs.iter().map(|run| row(set, kind, slo, run, bounds, &picked)));
        }
    };
    add("all", "all", None, &|group| group.kind != OWN);
    add(OWN, OWN, None, &|group| group.kind == OWN);
    for kind in kinds.iter().filter(|kind| **kind != OWN) {
        add("kind", kind, None, &|group| group.kind == *kind);
    }
    for slo in slos {
        add("slo", "all", Some(slo), &|group| group.kind != OWN && group.slo == slo);
    }
    rows
}

fn row(set: &str, kind: &str, slo: Option<u64>, run: &Run, bounds: &[Bound], picked: &[usize]) -> Value {
    let count = picked.len() as f64;
    let outcomes = || picked.iter().map(|index| &run.outcomes[*index]);
    let mean = |value: &dyn Fn(&Outcome) -> f64| outcomes().map(value).sum::<f64>() / count;
    let missed = |index: &&usize| run.outcomes[**index].missed;
    let avoidable = picked.iter().filter(missed).filter(|index| bounds[**index].met).count();
    let feasible: Vec<f64> = picked
        .iter()
        .filter(|index| bounds[**index].met)
        .map(|index| run.outcomes[*index].distortion)
        .collect();
    json!({
        "name": run.name,
        "policy": run.name,
        "set": set,
        "links": kind,
        "slo_s": slo.map(|slo| slo as f64 / 1e3),
        "runs": picked.len(),
        "slo_miss_percent": 100.0 * picked.iter().filter(missed).count() as f64 / count,
        "avoidable_miss_percent": 100.0 * avoidable as f64 / count,
        "kl": mean(&|outcome| outcome.distortion),
        "feasible_kl": feasible.iter().sum::<f64>() / feasible.len().max(1) as f64,
        "mb": mean(&|outcome| outcome.bytes as f64 / 1e6),
        "texts": mean(&|outcome| outcome.texts as f64),
        "abandoned": mean(&|outcome| outcome.abandoned as f64),
        "upgrades": mean(&|outcome| outcome.upgrades as f64),
    })
}

const COLUMNS: &[Column] = &[
    ("name", "policy", 0),
    ("slo_miss_percent", "misses %", 1),
    ("avoidable_miss_percent", "avoidable %", 2),
    ("kl", "KL", 4),
    ("feasible_kl", "KL, feasible", 4),
    ("mb", "MB", 0),
    ("texts", "texts", 1),
    ("abandoned", "abandoned", 2),
    ("upgrades", "upgrades", 2),
];

/// For people.
pub(crate) fn text(rows: &[Value]) -> String {
    let set = |name: &str| {
        let mut report = Report::new("");
        rows.iter().filter(|row| row["set"] == name).for_each(|row| report.row(row.clone()));
        report
    };
    let has = |name: &str| rows.iter().any(|row| row["set"] == name);
    let mut texts = Vec::new();
    texts.push(format!(
        "Links with a rate over time, all kinds and deadlines:\n\n{}",
        set("all").table(COLUMNS)
    ));
    if has(OWN) {
        texts.push(format!(
            "The artifact's own model, one bandwidth per chunk, deadlines 1.0 and 1.5 s:\n\n{}",
            set(OWN).table(COLUMNS)
        ));
    }
    texts.push(format!("Avoidable misses, % / KL, by kind of link:\n\n{}", across(rows, "kind", "links")));
    texts.push(format!(
        "Avoidable misses, % / KL, by deadline in seconds:\n\n{}",
        across(rows, "slo", "slo_s")
    ));
    texts.push(
        "avoidable: missed though the oracle, which knows the future, meets the deadline; % of all runs.\n\
         KL: mean over chunks and runs; feasible: only runs whose deadline the oracle meets. texts, abandoned, upgrades: per run."
            .into(),
    );
    texts.join("\n\n")
}

/// Policies down, values of a key across.
fn across(rows: &[Value], set: &str, key: &str) -> String {
    let label = |row: &Value| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
    let picked: Vec<&Value> = rows.iter().filter(|row| row["set"] == set).collect();
    let mut columns: Vec<String> = Vec::new();
    for row in &picked {
        if !columns.contains(&label(row)) {
            columns.push(label(row));
        }
    }
    let mut report = Report::new("");
    let mut names: Vec<&Value> = Vec::new();
    for row in &picked {
        if !names.contains(&&row["name"]) {
            names.push(&row["name"]);
        }
    }
    for name in names {
        let mut cells = serde_json::Map::from_iter([("name".to_owned(), name.clone())]);
        for row in picked.iter().filter(|row| &row["name"] == name) {
            let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
            let cell = format!("{:.1} / {:.3}", number("avoidable_miss_percent"), number("kl"));
            cells.insert(label(row), cell.into());
        }
        report.row(Value::Object(cells));
    }
    // The report wants static titles; these are a handful of names of links and deadlines.
    let titles: Vec<(&str, &str, usize)> = std::iter::once(("name", "policy", 0))
        .chain(columns.iter().map(|c| (c.as_str(), c.as_str(), 0)))
        .collect();
    table(&report, &titles)
}

fn table(report: &Report, titles: &[(&str, &str, usize)]) -> String {
    let width = |key: &str, title: &str| {
        let cells = report.rows().iter().map(|row| row[key].as_str().map_or(0, |text| text.chars().count()));
        cells.chain([title.chars().count()]).max().unwrap_or(0)
    };
    let line = |cell: &dyn Fn(&str, &str) -> String| {
        let cells =
            titles.iter().map(|(key, title, _)| format!("{:<1$}", cell(key, title), width(key, title)));
        format!(" {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let header = line(&|_, title| title.to_owned());
    let rows =
        report.rows().iter().map(|row| line(&|key, _| row[key].as_str().unwrap_or_default().to_owned()));
    std::iter::once(header).chain(rows).collect::<Vec<_>>().join("\n")
}
