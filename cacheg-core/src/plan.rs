//! A plan: a pipeline bound to a model, with all sizes known and all tables built.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::elements::{Bounds, Elements};
use crate::front::Front;
use crate::spec::StageSpec;
use crate::tile::{Layout, Scratch};
use crate::{
    BindCx, BoundCoder, Error, ExactTokens, Geometry, Kernels, Pipeline, Plane, Profile, Result, ResultExt,
    Source, StageData,
};

/// Tokens of a chunk that is worth tables of its own: sixteen times the symbols of a table.
const TABULATED: usize = 512;

/// A bound pipeline. Cheap to share between threads; chunks of one model reuse it.
pub struct Plan {
    pub(crate) geometry: Geometry,
    pub(crate) front: Front,
    pub(crate) coder: Box<dyn BoundCoder>,
    pub(crate) specs: Vec<StageSpec>,
    /// What the chunk has to carry for each stage; empty when a profile has it.
    pub(crate) carried: Vec<Vec<u8>>,
    /// The stage that carries exact tokens, and which those are.
    pub(crate) exact: Option<(usize, ExactTokens)>,
    /// Hash of the profile that the stages' data came from.
    pub(crate) profile: Option<String>,
    /// Tables for coders that give elements; made when first asked for, as encoders need none.
    elements: OnceLock<Option<Elements>>,
    /// The same for coders that take elements.
    bounds: OnceLock<Option<Bounds>>,
    /// Working memory of threads that are between tiles.
    scratch: Mutex<Vec<Scratch>>,
}

/// A stage that needs data, while a pipeline is being bound.
pub(crate) enum Wanted<'a> {
    Transform(&'a dyn crate::Transform),
    Quantizer(&'a dyn crate::Quantizer),
    Coder(&'a dyn crate::Coder),
}

impl Wanted<'_> {
    pub(crate) fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn crate::Calibrator>> {
        match self {
            Self::Transform(stage) => stage.calibrator(cx),
            Self::Quantizer(stage) => stage.calibrator(cx),
            Self::Coder(stage) => stage.calibrator(cx),
        }
    }

    pub(crate) fn pack(&self, cx: &BindCx<'_>, data: &StageData) -> Result<Vec<u8>> {
        match self {
            Self::Coder(stage) => stage.pack(cx, data),
            Self::Transform(_) | Self::Quantizer(_) => data.to_bytes(),
        }
    }

    pub(crate) fn unpack(&self, cx: &BindCx<'_>, bytes: &[u8]) -> Result<StageData> {
        match self {
            Self::Coder(stage) => stage.unpack(cx, bytes),
            Self::Transform(_) | Self::Quantizer(_) => StageData::from_bytes(bytes),
        }
    }
}

/// Gives a stage its data: number of the stage, the stage, what it binds to, the stages before it.
pub(crate) type Supply<'s> = dyn FnMut(usize, &Wanted<'_>, &BindCx<'_>, &Front) -> Result<StageData> + 's;

impl Plan {
    /// Binds a pipeline to a model whose profile is at hand. Pipelines that need no data bind without one.
    ///
    /// # Errors
    /// If the profile is of another model or lacks this pipeline, or if a stage needs data and there is none.
    pub fn bind(pipeline: &Pipeline, geometry: &Geometry, profile: Option<&Profile>) -> Result<Arc<Self>> {
        if let Some(profile) = profile {
            profile.check_geometry(geometry)?;
        }
        let mut used = false;
        let mut supply = |stage: usize, _: &Wanted<'_>, _: &BindCx<'_>, _: &Front| {
            used = true;
            let profile = profile.ok_or_else(|| Error::profile("this pipeline needs a profile"))?;
            profile.section(&pipeline.specs()[..=stage]).cloned()
        };
        let mut plan = Self::bind_with(pipeline, geometry, Source::Profile, &mut supply)?;
        plan.profile = profile.filter(|_| used).map(|profile| profile.hash().to_owned());
        Ok(Arc::new(plan))
    }

    /// Binds stage by stage, asking `supply` for the data of each stage that has a calibrator.
    pub(crate) fn bind_with(
        pipeline: &Pipeline,
        geometry: &Geometry,
        source: Source,
        supply: &mut Supply<'_>,
    ) -> Result<Self> {
        geometry.validate(&crate::Limits::default())?;
        let mut front = Front::new(geometry, !pipeline.selects());
        // A selection is not bound here: it is for the encoder alone.
        let mut number = usize::from(pipeline.selects());
        let mut data_of = |wanted: &Wanted<'_>, front: &Front| -> Result<Option<StageData>> {
            let cx = front.bind_cx(None, source);
            let needed = wanted.calibrator(&cx).is_some();
            let place = || format!("stage `{}`", pipeline.specs()[number].name);
            let data = if needed { Some(supply(number, wanted, &cx, front).at(place)?) } else { None };
            number += 1;
            Ok(data)
        };
        let place = |name: &str| format!("stage `{name}`");
        for transform in pipeline.transforms() {
            front.check_can_follow().at(|| place(transform.name()))?;
            let data = data_of(&Wanted::Transform(&**transform), &front)?;
            let bound = transform.bind(&front.bind_cx(data.as_ref(), source));
            front.push_transform(bound.at(|| place(transform.name()))?).at(|| place(transform.name()))?;
        }
        front.split_parts()?;
        let data = data_of(&Wanted::Quantizer(pipeline.quantizer()), &front)?;
        let bound = pipeline.quantizer().bind(&front.bind_cx(data.as_ref(), source));
        front
            .set_quantizer(bound.at(|| place(pipeline.quantizer().name()))?)
            .at(|| place(pipeline.quantizer().name()))?;
        let data = data_of(&Wanted::Coder(pipeline.coder()), &front)?;
        let bound = pipeline.coder().bind(&front.bind_cx(data.as_ref(), source));
        let coder = bound.at(|| place(pipeline.coder().name()))?;
        Ok(Self {
            geometry: geometry.clone(),
            front,
            coder,
            specs: pipeline.specs().to_vec(),
            carried: Vec::new(),
            exact: pipeline.exact(),
            profile: None,
            elements: OnceLock::new(),
            bounds: OnceLock::new(),
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The planes of the geometry.
    pub fn planes(&self) -> &[Plane] {
        self.front.planes()
    }

    /// The stages, as containers store them.
    pub fn specs(&self) -> &[StageSpec] {
        &self.specs
    }

    /// The quantizer's place among the stages.
    pub(crate) fn quantizer_stage(&self) -> usize {
        self.specs.len().saturating_sub(2)
    }

    /// The place among the stages of the one that predicts planes from others.
    pub(crate) fn predictor_stage(&self) -> Option<usize> {
        let first = self.specs.len().saturating_sub(self.front.stages().0.len() + 2);
        self.front.predictor().map(|transform| first + transform)
    }

    /// Hash of the profile this plan depends on.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// The stages as WGSL.
    ///
    /// # Errors
    /// If a stage has none; the message names it.
    pub fn kernels(&self) -> Result<Kernels> {
        fn named<K>(spec: Option<&StageSpec>, kernel: Option<K>) -> Result<(String, K)> {
            let name = spec.map(|spec| spec.name.clone()).unwrap_or_default();
            let kernel = kernel.ok_or_else(|| Error::unsupported(format!("stage `{name}` has no WGSL")))?;
            Ok((name, kernel))
        }
        let (transforms, quantizer) = self.front.stages();
        // A selection, which would be in front of them, undoes nothing.
        let mut specs = self.specs.iter().skip(self.specs.len().saturating_sub(transforms.len() + 2));
        let planes = self.planes();
        let transforms = transforms.iter().map(|stage| named(specs.next(), stage.kernel(planes)));
        let transforms = transforms.collect::<Result<Vec<_>>>()?;
        let quantizer = named(specs.next(), quantizer.and_then(|stage| stage.kernel(planes)))?;
        let coder = named(specs.next(), self.coder.kernel())?;
        let (exact, graded) = (self.front.exact(), self.front.grader().is_some());
        Ok(Kernels { transforms, quantizer, coder, exact, graded, references: self.front.references() })
    }

    /// Whether planes are predicted from others: then none can be decoded without those before it.
    pub fn predicts(&self) -> bool {
        self.front.predicts()
    }

    /// How a chunk of that many tokens is cut into tiles.
    pub fn layout(&self, tokens: usize) -> Layout {
        Layout::choose(&self.front, tokens)
    }

    /// The tables, if this pipeline and this coder do without the other stages, and if it is worth it for so many
    /// tokens: a plan of one chunk is used only once.
    pub(crate) fn elements(&self, tokens: usize) -> Option<&Elements> {
        if self.profile.is_none() && tokens < TABULATED {
            return None;
        }
        self.elements
            .get_or_init(|| if self.coder.has_elements() { Elements::new(&self.front) } else { None })
            .as_ref()
    }

    /// The same for encoding. They take so long to find that only the plans of profiles are worth it.
    pub(crate) fn bounds(&self) -> Option<&Bounds> {
        self.profile.as_ref()?;
        let find = || self.elements(0).and_then(|elements| Bounds::new(&self.front, elements));
        self.bounds.get_or_init(find).as_ref()
    }

    /// Runs `work` with working memory for this layout, which outlives the call for the next one.
    pub(crate) fn with_scratch<T>(&self, layout: &Layout, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let taken = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = taken.unwrap_or_else(|| Scratch::new(self));
        scratch.reserve(self, layout);
        let result = work(&mut scratch);
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        result
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("specs", &self.specs)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}
