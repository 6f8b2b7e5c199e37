//! Rows of `quality` and `ablate`, sorted out: by task, by codec, by context.

use serde_json::{Map, Value};

use super::equal::{At, BEYOND, Level, bits_at};
use crate::bootstrap::{bootstrap, interval, resamples};

/// Scores of tasks that have no KL, in order of preference.
const SCORES: &[&str] =
    &["retrieval_percent", "accuracy_percent", "score_percent", "correct_percent", "f1_percent"];

/// In front of the keys of settings that `ablate` varied.
pub(crate) const SETTING: &str = "set.";

/// A mean over contexts, and where it is in 90 % of resamples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    pub(crate) mean: f64,
    pub(crate) interval: Option<[f64; 2]>,
}

/// A codec on a task.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// What levels belong to: a line in pictures.
    pub(crate) family: String,
    pub(crate) spec: String,
    overall: Option<Map<String, Value>>,
    /// By context.
    singles: Vec<(String, Map<String, Value>)>,
}

/// All codecs on a task.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) entries: Vec<Entry>,
}

/// The levels of a codec.
#[derive(Debug, Clone)]
pub(crate) struct Family<'a> {
    pub(crate) name: &'a str,
    pub(crate) entries: Vec<&'a Entry>,
}

fn text<'a>(row: &'a Map<String, Value>, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Sorts rows out. What was measured twice counts as it was measured last.
pub(crate) fn tasks<'a>(rows: impl Iterator<Item = &'a Map<String, Value>>) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for row in rows {
        let (task, name, spec) = (text(row, "task"), text(row, "name"), text(row, "spec"));
        let at = tasks.iter().position(|known| known.name == task).unwrap_or_else(|| {
            tasks.push(Task { name: task.to_owned(), entries: Vec::new() });
            tasks.len() - 1
        });
        let entries = &mut tasks[at].entries;
        let at =
            entries.iter().position(|known| known.name == name && known.spec == spec).unwrap_or_else(|| {
                let family =
                    Some(text(row, "codec")).filter(|codec| !codec.is_empty()).unwrap_or(name).to_owned();
                let (name, spec) = (name.to_owned(), spec.to_owned());
                entries.push(Entry { name, family, spec, overall: None, singles: Vec::new() });
                entries.len() - 1
            });
        let (entry, context) = (&mut entries[at], text(row, "context"));
        if context == "all" {
            entry.overall = Some(row.clone());
        } else {
            entry.singles.retain(|(known, _)| known != context);
            entry.singles.push((context.to_owned(), row.clone()));
        }
    }
    tasks
}

/// What kind of text a context is: its name without the number.
pub(crate) fn kind_of(context: &str) -> &str {
    let kind = context.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_']);
    if kind.is_empty() { context } else { kind }
}

impl Entry {
    /// Over all contexts.
    pub(crate) fn mean(&self, key: &str) -> Option<Mean> {
        let each: Vec<f64> = self.singles.iter().filter_map(|(_, row)| row.get(key)?.as_f64()).collect();
        if !each.is_empty() && each.len() == self.singles.len() {
            let (mean, ends) = bootstrap(&each);
            return Some(Mean { mean, interval: (each.len() > 1).then_some(ends) });
        }
        let row = self.overall.as_ref()?;
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        let interval = number(&format!("{key}_low")).zip(number(&format!("{key}_high")));
        Some(Mean { mean: number(key)?, interval: interval.map(|(low, high)| [low, high]) })
    }

    /// Only its mean.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.mean(key).map(|mean| mean.mean)
    }

    /// Over the contexts of a kind.
    pub(crate) fn mean_of_kind(&self, kind: &str, key: &str) -> Option<f64> {
        let rows = self.singles.iter().filter(|(context, _)| kind_of(context) == kind);
        let each: Vec<f64> = rows.filter_map(|(_, row)| row.get(key)?.as_f64()).collect();
        (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Names of the contexts.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = &str> {
        self.singles.iter().map(|(context, _)| &context[..])
    }

    fn rows(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.overall.iter().chain(self.singles.iter().map(|(_, row)| row))
    }

    /// A field that is the same in all its rows.
    pub(crate) fn any(&self, key: &str) -> Option<&Value> {
        self.rows().find_map(|row| row.get(key))
    }

    /// Keys of numbers.
    pub(crate) fn numeric_keys(&self) -> impl Iterator<Item = String> {
        let rows = self.rows().take(1).flatten();
        rows.filter(|(_, value)| value.is_number()).map(|(key, _)| key.clone())
    }

    /// Keys that `ablate` varied.
    pub(crate) fn settings(&self) -> impl Iterator<Item = String> {
        let rows = self.rows().take(1).flatten();
        rows.filter_map(|(key, _)| Some(key.strip_prefix(SETTING)?.to_owned()))
    }

    fn level(&self) -> Option<Level> {
        Some(Level { bits: self.number("bits_per_value")?, kl: self.number("kl")? })
    }

    /// As if these contexts had been drawn.
    fn level_of(&self, contexts: &[&str], picks: &[usize]) -> Option<Level> {
        let mut sums = Level { bits: 0.0, kl: 0.0 };
        for pick in picks {
            let (_, row) = self.singles.iter().find(|(context, _)| context == contexts[*pick])?;
            sums.bits += row.get("bits_per_value")?.as_f64()?;
            sums.kl += row.get("kl")?.as_f64()?;
        }
        let count = picks.len() as f64;
        Some(Level { bits: sums.bits / count, kl: sums.kl / count })
    }
}

impl Task {
    /// Codecs with their levels, in the order of the rows.
    pub(crate) fn families(&self) -> Vec<Family<'_>> {
        let mut families: Vec<Family<'_>> = Vec::new();
        for entry in &self.entries {
            match families.iter_mut().find(|family| family.name == entry.family) {
                Some(family) => family.entries.push(entry),
                None => families.push(Family { name: &entry.family, entries: vec![entry] }),
            }
        }
        families
    }

    /// Whether damage is measured by KL.
    pub(crate) fn has_kl(&self) -> bool {
        self.entries.iter().any(|entry| entry.number("kl").is_some())
    }

    /// Key of its score, if it has one.
    pub(crate) fn score(&self) -> Option<&'static str> {
        SCORES.iter().copied().find(|key| self.entries.iter().any(|entry| entry.number(key).is_some()))
    }
}

impl Family<'_> {
    /// Bits at a KL.
    pub(crate) fn bits_at(&self, kl: f64) -> Option<At> {
        let levels: Vec<Level> = self.entries.iter().filter_map(|entry| entry.level()).collect();
        bits_at(&levels, kl, BEYOND)
    }

    /// How sure that is: contexts are drawn anew.
    pub(crate) fn bits_interval(&self, kl: f64) -> Option<[f64; 2]> {
        self.bits_at(kl)?;
        self.redrawn(|levels, _, _| Some(bits_at(levels, kl, f64::INFINITY)?.bits))
    }

    /// How many times as many bits another codec takes where this one does the same damage.
    pub(crate) fn ratio(&self, other: &Entry) -> Option<(f64, Option<[f64; 2]>, bool)> {
        let theirs = other.level()?;
        let at = self.bits_at(theirs.kl)?;
        let interval = self.redrawn(|levels, contexts, picks| {
            let theirs = other.level_of(contexts, picks)?;
            Some(theirs.bits / bits_at(levels, theirs.kl, f64::INFINITY)?.bits)
        });
        Some((theirs.bits / at.bits, interval, at.extrapolated))
    }

    /// What comes out in 90 % of resamples of the contexts that all levels have.
    fn redrawn(&self, of: impl Fn(&[Level], &[&str], &[usize]) -> Option<f64>) -> Option<[f64; 2]> {
        let contexts: Vec<&str> = self.entries.first()?.contexts().collect();
        if contexts.len() < 2 {
            return None;
        }
        let mut values = Vec::new();
        for picks in resamples(contexts.len()) {
            let levels: Option<Vec<Level>> =
                self.entries.iter().map(|entry| entry.level_of(&contexts, &picks)).collect();
            values.extend(of(&levels?, &contexts, &picks).filter(|value| value.is_finite()));
        }
        interval(values)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn row(name: &str, context: &str, bits: f64, kl: f64) -> Map<String, Value> {
        let codec = name.split('@').next().unwrap();
        let row = json!({"name": name, "codec": codec, "spec": format!("{name}-spec"), "task": "continuation",
            "context": context, "bits_per_value": bits, "kl": kl});
        row.as_object().unwrap().clone()
    }

    #[test]
    fn rows_become_families() {
        let rows = [
            row("a@0", "novel-1", 3.0, 0.01),
            row("a@0", "novel-2", 3.0, 0.03),
            row("a@1", "novel-1", 2.0, 0.1),
            row("a@1", "novel-2", 2.0, 0.3),
            row("b", "novel-1", 5.0, 0.05),
            row("b", "novel-2", 5.0, 0.07),
            // Measured again.
            row("b", "novel-2", 5.0, 0.05),
        ];
        let tasks = tasks(rows.iter());
        assert_eq!((tasks.len(), tasks[0].has_kl(), tasks[0].score()), (1, true, None));
        let families = tasks[0].families();
        assert_eq!(
            families.iter().map(|f| (f.name, f.entries.len())).collect::<Vec<_>>(),
            [("a", 2), ("b", 1)]
        );
        let mean = families[0].entries[0].mean("kl").unwrap();
        assert!((mean.mean - 0.02).abs() < 1e-12 && mean.interval.is_some());
        assert_eq!(families[1].entries[0].number("kl"), Some(0.05));
        assert_eq!(families[1].entries[0].mean_of_kind("novel", "kl"), Some(0.05));
        assert_eq!(families[1].entries[0].mean_of_kind("code", "kl"), None);

        // b's KL is reached halfway between 0.02 and 0.2, in the logarithm.
        let (ratio, interval, extrapolated) = families[0].ratio(families[1].entries[0]).unwrap();
        let bits = 3.0 - (0.05f64 / 0.02).log10();
        assert!((ratio - 5.0 / bits).abs() < 1e-9 && !extrapolated);
        let [low, high] = interval.unwrap();
        assert!(low < ratio && ratio < high && high - low < 0.6, "{low} {high}");
        assert!(families[1].bits_at(0.05).is_none(), "one level is no line");
        let [low, high] = families[0].bits_interval(0.05).unwrap();
        assert!(low < bits && bits < high);
    }

    #[test]
    fn rows_over_all_contexts_do_where_there_are_no_others() {
        let mut all = row("a", "all", 3.0, 0.5);
        all.insert("kl_low".into(), json!(0.4));
        all.insert("kl_high".into(), json!(0.6));
        let tasks = tasks([all].iter());
        let mean = tasks[0].entries[0].mean("kl").unwrap();
        assert_eq!(mean, Mean { mean: 0.5, interval: Some([0.4, 0.6]) });
        assert_eq!(tasks[0].entries[0].mean("bits_per_value").unwrap().interval, None);
    }

    #[test]
    fn kinds_are_names_without_numbers() {
        assert_eq!(
            ["novel-1", "longchat-12", "a_2", "7", "text"].map(kind_of),
            ["novel", "longchat", "a", "7", "text"]
        );
    }
}
