//! Building, calibrating and binding stages of any kind.

use std::sync::Arc;

use serde_json::Value;

use super::models::{CODED, Layout, Model, PARTS, PLANES, models};
use super::suite::{Case, Within, ensure, survive};
use super::{Check, Failure, Suite, calibration, coder, quantizer, transform};
use crate::{
    Accumulator, BindCx, BoundCoder, BoundQuantizer, BoundTransform, Build, Calibrator, Coder, Part, PartCx,
    Quantizer, Result, Seen, Select, Source, Stage, StageData, TileCx, Transform,
};

/// What all kinds of stages have in common.
pub(crate) trait Built: Stage {
    const KIND: &'static str;

    /// Builds it if the plug-in is of this kind.
    fn build(build: Build, config: &Value) -> Option<Result<Arc<Self>>>;
}

macro_rules! built {
    ($($stage:ident, $kind:literal;)*) => { $(
        impl Built for dyn $stage {
            const KIND: &'static str = $kind;

            fn build(build: Build, config: &Value) -> Option<Result<Arc<Self>>> {
                if let Build::$stage(build) = build { Some(build(config)) } else { None }
            }
        }
    )* };
}

built! {
    Select, "select stage";
    Transform, "transform";
    Quantizer, "quantizer";
    Coder, "coder";
}

/// What those have in common before they are bound that see values or symbols.
pub(crate) trait Unbound: Built {
    type Bound: ?Sized + Send + Sync;
    /// What earlier stages may have made of the planes.
    const LAYOUTS: &'static [Layout];
    /// Whether binding is told of parts.
    const SEES_PARTS: bool;

    fn bind_to(&self, cx: &BindCx<'_>) -> Result<Box<Self::Bound>>;
    fn calibrator_for(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>>;
    /// What a reader gets of data that travel with a chunk; packing may round.
    fn carried(&self, cx: &BindCx<'_>, data: StageData) -> Result<StageData> {
        let _ = cx;
        Ok(data)
    }
    /// Shows a calibrator one part.
    fn show(to: &mut dyn Accumulator, tile: &TileCx<'_>, cx: &PartCx, part: &Part, seed: u64) -> Result<()>;
    /// Uses a bound stage a little; it may fail but not panic.
    fn exercise(bound: &Self::Bound, model: &Model, parts: &[Vec<Part>]) -> Check;
}

impl Unbound for dyn Transform {
    type Bound = dyn BoundTransform;
    const LAYOUTS: &'static [Layout] = PLANES;
    const SEES_PARTS: bool = false;

    fn bind_to(&self, cx: &BindCx<'_>) -> Result<Box<Self::Bound>> {
        self.bind(cx)
    }

    fn calibrator_for(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        self.calibrator(cx)
    }

    fn show(to: &mut dyn Accumulator, tile: &TileCx<'_>, cx: &PartCx, _: &Part, seed: u64) -> Result<()> {
        show_values(to, tile, cx, seed)
    }

    fn exercise(bound: &Self::Bound, model: &Model, _: &[Vec<Part>]) -> Check {
        transform::exercise(bound, model)
    }
}

impl Unbound for dyn Quantizer {
    type Bound = dyn BoundQuantizer;
    const LAYOUTS: &'static [Layout] = PARTS;
    const SEES_PARTS: bool = true;

    fn bind_to(&self, cx: &BindCx<'_>) -> Result<Box<Self::Bound>> {
        self.bind(cx)
    }

    fn calibrator_for(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        self.calibrator(cx)
    }

    fn show(to: &mut dyn Accumulator, tile: &TileCx<'_>, cx: &PartCx, _: &Part, seed: u64) -> Result<()> {
        show_values(to, tile, cx, seed)
    }

    fn exercise(bound: &Self::Bound, model: &Model, parts: &[Vec<Part>]) -> Check {
        quantizer::exercise(bound, model, parts)
    }
}

impl Unbound for dyn Coder {
    type Bound = dyn BoundCoder;
    const LAYOUTS: &'static [Layout] = CODED;
    const SEES_PARTS: bool = true;

    fn bind_to(&self, cx: &BindCx<'_>) -> Result<Box<Self::Bound>> {
        self.bind(cx)
    }

    fn calibrator_for(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        self.calibrator(cx)
    }

    fn carried(&self, cx: &BindCx<'_>, data: StageData) -> Result<StageData> {
        let packed = self.pack(cx, &data)?;
        self.unpack(cx, &packed)
    }

    fn show(to: &mut dyn Accumulator, tile: &TileCx<'_>, cx: &PartCx, part: &Part, seed: u64) -> Result<()> {
        part.alphabets.iter().enumerate().try_for_each(|(index, alphabet)| {
            let symbols = coder::Spread::Skewed.symbols(alphabet.size, cx.rows * cx.cols, seed);
            to.observe(tile, cx, Seen::Symbols(index, &symbols))
        })
    }

    fn exercise(bound: &Self::Bound, model: &Model, parts: &[Vec<Part>]) -> Check {
        coder::exercise(bound, model, parts)
    }
}

fn show_values(to: &mut dyn Accumulator, tile: &TileCx<'_>, cx: &PartCx, seed: u64) -> Result<()> {
    let values = super::kv_like(tile.plane.shape.dtype, cx.role, cx.rows, cx.cols, seed);
    to.observe(tile, cx, Seen::Values(values.view()))
}

/// Builds a stage of the kind that the suite claims.
pub(crate) fn build<S: Built + ?Sized>(suite: &Suite, config: &Value) -> Result<Arc<S>, Failure> {
    let built = S::build(suite.plugin.build, config);
    let built = built.ok_or_else(|| Failure::new(format!("{} is no {}", suite.plugin, S::KIND)))?;
    Ok(built?)
}

/// A stage, bound.
pub(crate) struct Setup<'a, S: Unbound + ?Sized> {
    pub(crate) suite: &'a Suite,
    pub(crate) case: &'a Case,
    pub(crate) model: &'a Model,
    pub(crate) parts: Vec<Vec<Part>>,
    pub(crate) source: Source,
    pub(crate) stage: Arc<S>,
    pub(crate) data: Option<StageData>,
    pub(crate) bound: Box<S::Bound>,
}

impl<'a, S: Unbound + ?Sized> Setup<'a, S> {
    /// Builds, calibrates and binds.
    pub(crate) fn new(
        suite: &'a Suite,
        case: &'a Case,
        model: &'a Model,
        parts: Vec<Vec<Part>>,
        source: Source,
    ) -> Result<Self, Failure> {
        let stage = build::<S>(suite, &case.config)?;
        let data = calibration::calibrate(&*stage, model, &parts, source)?;
        Self::with_data(suite, case, model, parts, source, data)
    }

    /// Builds and binds.
    pub(crate) fn with_data(
        suite: &'a Suite,
        case: &'a Case,
        model: &'a Model,
        parts: Vec<Vec<Part>>,
        source: Source,
        data: Option<StageData>,
    ) -> Result<Self, Failure> {
        let stage = build::<S>(suite, &case.config)?;
        let bound = bind(&*stage, model, &parts, data.as_ref(), source)?;
        Ok(Self { suite, case, model, parts, source, stage, data, bound })
    }

    /// A second instance that shares nothing with the first.
    pub(crate) fn again(&self) -> Result<Box<S::Bound>, Failure> {
        let stage = build::<S>(self.suite, &self.case.config)?;
        bind(&*stage, self.model, &self.parts, self.data.as_ref(), self.source)
    }

    /// The context that binding was given.
    pub(crate) fn cx<'b>(&'b self, data: Option<&'b StageData>) -> BindCx<'b> {
        bind_cx::<S>(self.model, &self.parts, data, self.source)
    }
}

pub(crate) fn bind_cx<'a, S: Unbound + ?Sized>(
    model: &'a Model,
    parts: &'a [Vec<Part>],
    data: Option<&'a StageData>,
    source: Source,
) -> BindCx<'a> {
    BindCx::new(&model.planes, if S::SEES_PARTS { parts } else { &[] }, data, source)
}

fn bind<S: Unbound + ?Sized>(
    stage: &S,
    model: &Model,
    parts: &[Vec<Part>],
    data: Option<&StageData>,
    source: Source,
) -> Result<Box<S::Bound>, Failure> {
    survive("bind", || stage.bind_to(&bind_cx::<S>(model, parts, data, source)))?.within(|| "bind".to_owned())
}

/// Runs a check for every spec, model, layout and source of data.
pub(crate) fn each<S: Unbound + ?Sized>(
    suite: &Suite,
    mut check: impl FnMut(&Setup<'_, S>) -> Check,
) -> Check {
    let models = models()?;
    let mut checked = 0;
    for case in &suite.cases()? {
        for model in &models {
            for layout in S::LAYOUTS.iter().filter(|layout| suite.tests(layout)) {
                for &source in &suite.sources {
                    let place = || {
                        format!("{} on `{}`, `{}`, data from {source:?}", case.text, model.name, layout.name)
                    };
                    let parts = model.planes.iter().map(layout.parts).collect();
                    let setup = Setup::<S>::new(suite, case, model, parts, source);
                    if suite.refuses_to_bind(model.name, layout) {
                        ensure(setup.is_err(), || "binds, which it should refuse".to_owned())
                            .within(place)?;
                        continue;
                    }
                    setup.and_then(|setup| check(&setup)).within(place)?;
                    checked += 1;
                }
            }
        }
    }
    ensure(checked > 0, || "the stage refuses everything".to_owned())
}

/// Two tiles of that height: the chunk's first, where attention sinks are, and a later one.
pub(crate) fn tiles(plane: &crate::Plane, multiple: usize, rows: usize) -> [TileCx<'_>; 2] {
    [0, 3 * multiple].map(|first| TileCx::new(plane, first, rows, 1000 + first as u64))
}

/// Runs `f` on several threads at once, as the engine does.
pub(crate) fn concurrently<T: Send>(f: impl Fn() -> Result<T, Failure> + Sync) -> Result<Vec<T>, Failure> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(&f)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T, Failure>>| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("panics when used by several threads")))
        };
        threads.into_iter().map(join).collect()
    })
}
