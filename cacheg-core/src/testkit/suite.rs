//! What is tested, and what a check says when it fails.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use super::models::{CODED, Layout, PARTS, PLANES, models};
use crate::{Error, Plugin, Source, spec};

/// Why a stage does not conform. Prints the same with `{:?}`, because that is what a failing test shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

/// The result of a check.
pub type Check = Result<(), Failure>;

impl Failure {
    /// A failure.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Fails unless `condition` holds.
pub(crate) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(Failure(message())) }
}

/// Says where a failure happened.
pub(crate) trait Within<T> {
    fn within(self, place: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Within<T> for Result<T, E> {
    fn within(self, place: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure(format!("{}: {}", place(), e.into())))
    }
}

/// Runs what must not panic.
pub(crate) fn survive<T>(what: &str, f: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        Failure(format!("{what} panics: {message}"))
    })
}

/// One spec string of a suite.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) config: Value,
}

/// A plug-in with the settings to test and what is promised of it.
/// [`conformance!`](crate::conformance) explains the options.
#[derive(Debug, Clone)]
pub struct Suite {
    pub(crate) plugin: Plugin,
    specs: Vec<String>,
    pub(crate) tolerance: f32,
    pub(crate) error_bound: Option<f32>,
    pub(crate) golden_bound: f32,
    pub(crate) sources: Vec<Source>,
    refuses: Vec<String>,
    layouts: Vec<String>,
    rows: Vec<usize>,
}

impl Suite {
    /// Tests `plugin` with each of the `specs`.
    pub fn new(plugin: Plugin, specs: &[&str]) -> Self {
        Self {
            plugin,
            specs: specs.iter().map(|&spec| spec.to_owned()).collect(),
            tolerance: 0.0,
            error_bound: None,
            golden_bound: 0.0,
            sources: vec![Source::Profile, Source::Chunk],
            refuses: Vec::new(),
            layouts: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// How far the inverse of a transform may be off, relative to the tile's largest value. 0 means that
    /// every bit comes back, NaN included.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f32) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// How far a quantizer may be off, relative to the part's largest value.
    #[must_use]
    pub fn error_bound(mut self, bound: f32) -> Self {
        self.error_bound = Some(bound);
        self
    }

    /// How far a transform may differ between machines, relative to the largest value of a part.
    #[must_use]
    pub fn golden_bound(mut self, bound: f32) -> Self {
        self.golden_bound = bound;
        self
    }

    /// Where the stage's data may come from.
    #[must_use]
    pub fn sources(mut self, sources: &[Source]) -> Self {
        self.sources = sources.to_vec();
        self
    }

    /// Names of models and layouts that the stage must refuse to bind to.
    #[must_use]
    pub fn refuses(mut self, names: &[&str]) -> Self {
        self.refuses = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Names of the only layouts of parts to test, for stages that pipelines never give others.
    #[must_use]
    pub fn layouts(mut self, names: &[&str]) -> Self {
        self.layouts = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// More tile heights to test.
    #[must_use]
    pub fn rows(mut self, rows: &[usize]) -> Self {
        self.rows = rows.to_vec();
        self
    }

    /// The stages to build. Everything that could make a suite pass by testing nothing is a failure here.
    pub(crate) fn cases(&self) -> Result<Vec<Case>, Failure> {
        ensure(!self.specs.is_empty() && !self.sources.is_empty(), || "the suite is empty".to_owned())?;
        let mut known: BTreeSet<&str> = models()?.iter().map(|model| model.name).collect();
        known.extend([PLANES, PARTS, CODED].concat().iter().map(|layout| layout.name));
        for name in self.refuses.iter().chain(&self.layouts) {
            ensure(known.contains(name.as_str()), || format!("the kit has no `{name}`, but {known:?}"))?;
        }
        let case = |text: &String| {
            let mut stages = spec::parse(text).within(|| text.clone())?;
            let one = stages.len() == 1 && stages[0].name == self.plugin.name;
            ensure(one, || format!("`{text}` is not one stage `{}`", self.plugin.name))?;
            Ok(Case { text: text.clone(), config: stages.remove(0).config })
        };
        self.specs.iter().map(case).collect()
    }

    pub(crate) fn tests(&self, layout: &Layout) -> bool {
        self.layouts.is_empty() || self.layouts.iter().any(|name| name == layout.name)
    }

    pub(crate) fn refuses_to_bind(&self, model: &str, layout: &Layout) -> bool {
        self.refuses.iter().any(|name| name == model || name == layout.name)
    }

    /// Tile heights: the smallest ones, around powers of two and multiples of `multiple`, and one large one.
    /// Wide planes leave out the tall ones, for time.
    pub(crate) fn tile_rows(&self, multiple: usize, cols: usize) -> Vec<usize> {
        let around = [multiple, 2 * multiple].into_iter().flat_map(|m| [m.saturating_sub(1), m, m + 1]);
        let usual = [0, 1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 33, 1000];
        let rows: BTreeSet<usize> =
            usual.into_iter().chain(around).chain(self.rows.iter().copied()).collect();
        rows.into_iter().filter(|rows| rows * cols <= 1 << 14).collect()
    }

    /// Few tile heights, for checks that repeat themselves often.
    pub(crate) fn few_rows(&self, multiple: usize) -> Vec<usize> {
        let rows: BTreeSet<usize> = [0, 1, 2, 11, multiple, multiple + 1].into_iter().collect();
        rows.into_iter().collect()
    }
}
