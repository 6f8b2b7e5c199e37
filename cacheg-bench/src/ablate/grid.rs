//! The grid of an ablation: a TOML file to codecs, one for each combination of settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cacheg::core::ResultExt;
use cacheg::{Error, Pipeline, Registry, Result, spec};
use serde::Deserialize;
use toml::Value;

use crate::quality::codecs::{self, Codec};
use crate::quality::source::Source;
use crate::quality::{contexts, topics};

/// More combinations than these are a slip.
const MOST: usize = 10_000;

/// What is measured on what.
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) contexts: Vec<String>,
    pub(crate) calibration: Vec<String>,
    pub(crate) tokens: usize,
    pub(crate) continuation: usize,
    pub(crate) greedy: usize,
    pub(crate) statistics: Option<PathBuf>,
    pub(crate) points: Vec<Point>,
}

/// A codec of the grid.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) codec: Codec,
    /// Settings that vary in its entry: name and value.
    pub(crate) settings: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "default")]
    contexts: Vec<String>,
    #[serde(default = "default")]
    calibration: Vec<String>,
    #[serde(default = "tokens")]
    tokens: u32,
    #[serde(default = "continuation")]
    continuation: u32,
    #[serde(default = "greedy")]
    greedy: u32,
    statistics: Option<PathBuf>,
    #[serde(default)]
    codecs: Vec<String>,
    #[serde(default)]
    grid: Vec<Entry>,
}

fn default() -> Vec<String> {
    vec!["default".to_owned()]
}

fn tokens() -> u32 {
    1_024
}

fn continuation() -> u32 {
    256
}

fn greedy() -> u32 {
    64
}

/// Whatever is not one of these keys gives values to a hole of the spec, or is an error.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    spec: Option<String>,
    preset: Option<String>,
    levels: Option<Vec<usize>>,
    name: Option<String>,
    profile: Option<bool>,
    chunk_tokens: Option<u32>,
    curve: Option<String>,
    #[serde(flatten)]
    values: BTreeMap<String, Value>,
}

const KEYS: &str = "spec, preset, levels, name, profile, chunk-tokens, curve";

impl Grid {
    /// Reads it. Paths of texts are relative to its folder.
    pub(crate) fn open(path: &Path, registry: &Registry) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder, registry).at(|| path.display())
    }

    fn parse(text: &str, folder: &Path, registry: &Registry) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|e| Error::setting(e.to_string().trim_end()))?;
        for (key, value, least) in
            [("tokens", file.tokens, 2), ("continuation", file.continuation, 2), ("greedy", file.greedy, 1)]
        {
            if value < least {
                return Err(Error::setting(format!("`{key}` is at least {least}")));
            }
        }
        let mut points = Vec::new();
        for codec in codecs::parse(&file.codecs).at(|| "codecs")? {
            points.push(Point { name: codec.name(), codec, settings: Vec::new() });
        }
        for (index, entry) in file.grid.into_iter().enumerate() {
            let name = entry.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            let place = move || format!("[[grid]] number {}{name}", index + 1);
            points.extend(entry.expand().at(place)?);
        }
        if points.is_empty() {
            return Err(Error::setting("no codecs: give `codecs` or [[grid]] entries"));
        }
        for (index, point) in points.iter().enumerate() {
            if point.codec.source != Source::Text {
                Pipeline::parse(registry, &point.codec.spec).at(|| &point.name)?;
            }
            if point.name.contains(char::is_control) {
                return Err(Error::setting(format!("line breaks or the like in the name {:?}", point.name)));
            }
            if points[..index].iter().any(|other| other.name == point.name) {
                return Err(Error::setting(format!(
                    "two codecs are called `{}`: give their entries a `name`",
                    point.name
                )));
            }
        }
        let texts = |names: Vec<String>| names.into_iter().map(|name| relative(&name, folder)).collect();
        Ok(Self {
            contexts: texts(file.contexts),
            calibration: texts(file.calibration),
            tokens: file.tokens as usize,
            continuation: file.continuation as usize,
            greedy: file.greedy as usize,
            statistics: file.statistics.map(|path| folder.join(path)),
            points,
        })
    }
}

fn relative(name: &str, folder: &Path) -> String {
    let join = |path: &str| folder.join(path).to_string_lossy().into_owned();
    match (name, name.strip_prefix("longchat:")) {
        ("default" | topics::NAME | contexts::FOREIGN_NAME, _) => name.to_owned(),
        (_, Some(path)) => format!("longchat:{}", join(path)),
        (_, None) => join(name),
    }
}

impl Entry {
    fn expand(self) -> Result<Vec<Point>> {
        match (&self.spec, &self.preset) {
            (Some(template), None) => {
                if self.levels.is_some() {
                    return Err(Error::setting("`levels` are of a `preset`; a `spec` has holes"));
                }
                self.combinations(template)
            }
            (None, Some(preset)) => self.levels_of(preset),
            _ => Err(Error::setting("either `spec` or `preset` is needed")),
        }
    }

    fn adapted(&self, mut codec: Codec) -> Codec {
        codec.profile = self.profile.unwrap_or(codec.profile);
        codec.chunk_tokens = self.chunk_tokens.map_or(codec.chunk_tokens, |tokens| tokens as usize).max(1);
        codec
    }

    fn levels_of(&self, preset: &str) -> Result<Vec<Point>> {
        if let Some(key) = self.values.keys().next() {
            return Err(Error::setting(format!(
                "unknown key `{key}`: there are {KEYS}, and a preset has no holes"
            )));
        }
        if self.curve.is_some() {
            return Err(Error::setting("`curve` is for a `spec` with holes"));
        }
        let count = cacheg::preset(preset)?.levels.len();
        let levels = self.levels.clone().unwrap_or_else(|| (0..count).collect());
        let mut points = Vec::new();
        for level in levels {
            for codec in codecs::parse(&[format!("{preset}@{level}")])? {
                let mut codec = self.adapted(codec);
                codec.codec = self.name.clone().unwrap_or(codec.codec);
                points.push(Point { name: codec.name(), codec, settings: Vec::new() });
            }
        }
        Ok(points)
    }

    fn combinations(&self, template: &str) -> Result<Vec<Point>> {
        let pieces = pieces(template)?;
        let mut holes: Vec<(&str, Vec<String>)> = Vec::new();
        for hole in pieces.iter().filter_map(Piece::hole) {
            if holes.iter().any(|(known, _)| *known == hole) {
                continue;
            }
            let values = self.values.get(hole).ok_or_else(|| {
                Error::setting(format!("`{{{hole}}}` in the spec has no values: add `{hole} = [...]`"))
            })?;
            holes.push((hole, texts(hole, values)?));
        }
        if let Some(key) = self.values.keys().find(|key| !holes.iter().any(|(hole, _)| hole == key)) {
            return Err(Error::setting(format!(
                "`{key}` has values, but the spec has no `{{{key}}}`; other keys are {KEYS}"
            )));
        }
        let curve = match &self.curve {
            Some(curve) => Some(holes.iter().position(|(hole, _)| hole == curve).ok_or_else(|| {
                Error::setting(format!("`curve` names `{curve}`, which is no hole of the spec"))
            })?),
            None => holes.iter().position(|(_, values)| values.len() > 1),
        };
        let count = holes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
        let count = count.filter(|count| *count <= MOST);
        let count = count.ok_or_else(|| Error::setting(format!("more than {MOST} combinations")))?;
        let base = self.name.clone().unwrap_or_else(|| stages(template));
        let point = |mut index: usize| -> Result<Point> {
            let mut picks = vec![0; holes.len()];
            // The first hole varies slowest.
            for (pick, (_, values)) in picks.iter_mut().zip(&holes).rev() {
                *pick = index % values.len();
                index /= values.len();
            }
            let value = |hole: &str| -> &str {
                let at = holes.iter().position(|(known, _)| *known == hole);
                at.map_or("", |at| &holes[at].1[picks[at]])
            };
            let filled: String = pieces.iter().map(|piece| piece.fill(&value)).collect();
            // Without blanks and line breaks.
            let spec = spec::format(&spec::parse(&filled)?);
            let named = |but: Option<usize>| {
                let varied =
                    holes.iter().enumerate().filter(|(at, (_, values))| values.len() > 1 && Some(*at) != but);
                let words = varied.map(|(_, (hole, _))| format!(" {hole}={}", value(hole)));
                std::iter::once(base.clone()).chain(words).collect::<String>()
            };
            let level = curve.map(|curve| picks[curve]);
            let settings = holes.iter().map(|(hole, _)| ((*hole).to_owned(), value(hole).to_owned()));
            Ok(Point {
                name: named(None),
                codec: self.adapted(codecs::of_spec(named(curve), level, spec)),
                settings: settings.collect(),
            })
        };
        (0..count).map(point).collect()
    }
}

/// Text of a spec, or a hole in it.
enum Piece<'a> {
    Text(&'a str),
    Hole(&'a str),
}

impl<'a> Piece<'a> {
    fn hole(&self) -> Option<&'a str> {
        match self {
            Self::Text(_) => None,
            Self::Hole(hole) => Some(hole),
        }
    }

    fn fill<'v>(&self, value: &impl Fn(&str) -> &'v str) -> &'v str
    where
        'a: 'v,
    {
        match self {
            Self::Text(text) => text,
            Self::Hole(hole) => value(hole),
        }
    }
}

fn pieces(template: &str) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        let (hole, after) = after
            .split_once('}')
            .ok_or_else(|| Error::setting(format!("no closing `}}` in `{template}`")))?;
        let letters = hole.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if hole.is_empty() || !letters {
            return Err(Error::setting(format!(
                "`{{{hole}}}`: names of holes have letters, digits, `-` and `_`"
            )));
        }
        if KEYS.split(", ").any(|key| key == hole) {
            return Err(Error::setting(format!(
                "`{{{hole}}}`: a hole cannot have the name of a key ({KEYS})"
            )));
        }
        pieces.extend([Piece::Text(text), Piece::Hole(hole)]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// The names of its stages, for a codec without a name.
fn stages(template: &str) -> String {
    let names = template.split('|').map(|stage| stage.split('(').next().unwrap_or_default().trim());
    names.collect::<Vec<_>>().join("|")
}

/// Values of a hole as they are written in a spec; a list among them is a list there.
fn texts(hole: &str, values: &Value) -> Result<Vec<String>> {
    let values = match values {
        Value::Array(values) if values.is_empty() => {
            return Err(Error::setting(format!("`{hole}` has an empty list of values")));
        }
        Value::Array(values) => values.clone(),
        value => vec![value.clone()],
    };
    let bad = |value: &Value| {
        Error::setting(format!(
            "`{hole}`: {} is no number, text, truth value, or list of these",
            value.type_str()
        ))
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        _ => Err(bad(value)),
    };
    let texts: Vec<String> = values
        .iter()
        .map(|value| match value {
            Value::Array(items) => Ok(items.iter().map(scalar).collect::<Result<Vec<_>>>()?.join(",")),
            value => scalar(value),
        })
        .collect::<Result<_>>()?;
    if let Some(twice) = texts.iter().enumerate().find(|(at, text)| texts[..*at].contains(text)) {
        return Err(Error::setting(format!("`{hole}` has the value {} twice", twice.1)));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Grid> {
        Grid::parse(text, Path::new("/g"), &cacheg::builtins().unwrap())
    }

    fn names(grid: &Grid) -> Vec<(&str, &str, Option<usize>)> {
        grid.points.iter().map(|p| (&p.name[..], &p.codec.codec[..], p.codec.level)).collect()
    }

    #[test]
    fn holes_make_all_combinations() {
        let grid = parse(
            r#"
            contexts = ["default", "foreign", "a.txt", "longchat:b.jsonl", "/c.txt"]
            tokens = 512
            codecs = ["q8, fast@2"]
            [[grid]]
            spec = """mean
                | bins(step={step};level={level};reach={reach})
                | rans"""
            name = "mean"
            step = [0.5, [0.5, 1, 1.5]]
            reach = [15, 31]
            level = 2
            curve = "reach"
            profile = false
            chunk-tokens = 256
            [[grid]]
            spec = "bins(step={step})|rans"
            step = [0.25, 1.0]
            [[grid]]
            preset = "cachegen-paper"
            levels = [3, 1]
            [[grid]]
            preset = "q4"
            "#,
        )
        .unwrap();
        assert_eq!(grid.contexts, ["default", "foreign", "/g/a.txt", "longchat:/g/b.jsonl", "/c.txt"]);
        assert_eq!((grid.tokens, grid.continuation, grid.calibration.len()), (512, 256, 1));
        let thirds = "mean step=0.5,1,1.5";
        assert_eq!(
            names(&grid),
            [
                ("q8", "q8", None),
                ("fast@2", "fast", Some(2)),
                ("mean step=0.5 reach=15", "mean step=0.5", Some(0)),
                ("mean step=0.5 reach=31", "mean step=0.5", Some(1)),
                ("mean step=0.5,1,1.5 reach=15", thirds, Some(0)),
                ("mean step=0.5,1,1.5 reach=31", thirds, Some(1)),
                ("bins|rans step=0.25", "bins|rans", Some(0)),
                ("bins|rans step=1", "bins|rans", Some(1)),
                ("cachegen-paper@3", "cachegen-paper", Some(3)),
                ("cachegen-paper@1", "cachegen-paper", Some(1)),
                ("q4", "q4", None),
            ]
        );
        let point = &grid.points[5];
        assert_eq!(point.codec.spec, "mean|bins(level=2;reach=31;step=0.5,1,1.5)|rans");
        assert_eq!((point.codec.profile, point.codec.chunk_tokens), (false, 256));
        let settings = [("step", "0.5,1,1.5"), ("level", "2"), ("reach", "31")];
        assert_eq!(point.settings, settings.map(|(hole, value)| (hole.to_owned(), value.to_owned())));
    }

    #[test]
    fn slips_are_told_with_their_place() {
        let entry = |text: &str| format!("[[grid]]\npreset = \"q8\"\n[[grid]]\nname = \"x\"\n{text}");
        let cases = [
            ("token = 5".to_owned(), "unknown field `token`"),
            ("tokens = 1\ncodecs = [\"q8\"]".to_owned(), "`tokens` is at least 2"),
            ("tokens = \"5\"".to_owned(), "invalid type"),
            (String::new(), "no codecs"),
            ("codecs = [\"q9\"]".to_owned(), "codecs: invalid setting: unknown preset `q9`"),
            (entry("spec = \"bins(step={step})|rans\""), "`{step}` in the spec has no values"),
            (entry("spec = \"bins(step=1)|rans\"\nstep = [1]"), "no `{step}`"),
            (entry("spec = \"bins(step={step})|rans\"\nstep = []"), "empty list"),
            (entry("spec = \"bins(step={step})|rans\"\nstep = [1, 1]"), "1 twice"),
            (entry("spec = \"bins(step={step})|rans\"\nstep = [{a = 1}]"), "is no number"),
            (
                entry("spec = \"bins(step={step})|rans\"\nstep = [1]\ncurve = \"reach\""),
                "`curve` names `reach`",
            ),
            (entry("spec = \"bins(step={step)|rans\"\nstep = [1]"), "no closing `}`"),
            (entry("spec = \"bins(step={a b})|rans\""), "names of holes"),
            (entry("spec = \"bins(step={name})|rans\""), "name of a key"),
            (entry("spec = \"bins|rans\"\npreset = \"q8\""), "either `spec` or `preset`"),
            (entry("preset = \"fast\"\nstep = [1]"), "unknown key `step`"),
            (entry("preset = \"fast\"\nlevels = [9]"), "levels 0 to 3"),
            (entry("spec = \"nosuch|rans\""), "nosuch"),
            (entry("preset = \"q8\"\nprofile = 3"), "profile"),
            ("codecs = [\"q8\"]\n[[grid]]\npreset = \"q8\"".to_owned(), "two codecs are called `q8`"),
        ];
        for (text, why) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}\n{error}\n{why}");
            if text.contains("name = \"x\"") && !why.contains("nosuch") && !why.contains("profile") {
                assert!(error.contains("[[grid]] number 2 (x)"), "{error}");
            }
        }
        let many = (0..101).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let text =
            format!("[[grid]]\nspec = \"bins(step={{a}};reach={{b}})|rans\"\na = [{many}]\nb = [{many}]");
        assert!(parse(&text).unwrap_err().to_string().contains("more than 10000"));
    }
}
