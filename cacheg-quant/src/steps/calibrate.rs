//! One pass over the values gives units, scales and centroids: magnitudes are kept as histograms until steps are known.

use cacheg_core::{
    Accumulator, BindCx, CLASSES, Calibrator, Error, GRADES, Grader, Kind, PartCx, Plane, Result, Seen,
    Source, StageData, TileCx,
};

use super::centroids::Cells;
use super::codebook::{self, CONTEXTS, Codebook, Counts};
use super::grading::{self, Grading, Importance, MIDDLE};
use super::magnitudes::{self, Magnitudes};
use super::octaves::{Steps, meant, quarter_octaves, stored};
use super::{CENTROID, GRADE, SCALE, Settings, Shape, UNIT, Unit, WEIGHT, kind, shapes, units};
use crate::bins::needs_statistics;
use crate::rounding::not_finite;
use crate::rows::check;

#[derive(Debug)]
pub(super) struct StepsCalibrator {
    steps: Steps,
    /// By plane, then part.
    shapes: Vec<Vec<Shape>>,
    kinds: Vec<Kind>,
    source: Source,
    base: Base,
    /// Whether tokens are to be graded.
    graded: bool,
    /// What does, unless what it takes is missing.
    grading: Option<Grading>,
    /// Of the regression of importance.
    weights: Vec<f32>,
    /// Why there is no grading.
    missing: Option<String>,
}

/// What units are made of.
#[derive(Debug)]
enum Base {
    Values,
    /// Units before they are scaled to the values' size, by plane, part and head.
    Costs(Vec<i32>),
    NoStatistics,
    /// Statistics that say that no error costs anything.
    NoCosts,
}

impl StepsCalibrator {
    pub(super) fn new(cx: &BindCx<'_>, steps: Steps, settings: &Settings) -> Self {
        let base = match (settings.unit, cx.statistics) {
            (Unit::Sigma, _) => Base::Values,
            (Unit::Sensitivity, None) => Base::NoStatistics,
            (Unit::Sensitivity, Some(statistics)) => {
                units::of_costs(cx, statistics).map_or(Base::NoCosts, Base::Costs)
            }
        };
        let kinds = cx.planes.iter().map(|plane| plane.kind).collect();
        let mut weights = Vec::new();
        let grading = match (settings.importance, cx.statistics) {
            (Importance::None, _) => Ok(None),
            (Importance::Attention, _) => {
                Codebook::flat().map(|flat| Some(Grading::by_attention(settings.power, flat)))
            }
            (Importance::Key, None) => Err(Error::profile(
                "`importance=key` needs a profile that is made with statistics (`--statistics`)",
            )),
            (Importance::Key, Some(statistics)) => grading::regress(cx.planes, statistics, settings.power)
                .and_then(|found| {
                    weights.clone_from(&found);
                    Grading::by_key(cx, &found, Codebook::flat()?).map(Some)
                }),
        };
        let missing = grading.as_ref().err().map(ToString::to_string);
        Self {
            steps,
            shapes: shapes(cx),
            kinds,
            source: cx.source,
            base,
            graded: settings.importance != Importance::None,
            grading: grading.unwrap_or_default(),
            weights,
            missing,
        }
    }

    /// Units of all heads. `own` are those that follow from the values, `scales` those of the columns, all as tensors hold
    /// them.
    fn units(&self, own: Vec<u8>, scales: &[u8]) -> Result<Vec<u8>> {
        let costs = match &self.base {
            Base::Values => return Ok(own),
            Base::Costs(costs) => costs,
            Base::NoStatistics => return Err(needs_statistics(self.source)),
            Base::NoCosts => return Err(Error::data("the statistics say that no error costs anything")),
        };
        let heads =
            self.shapes.iter().flatten().flat_map(|shape| std::iter::repeat_n(shape.width, shape.heads));
        let of_columns = heads.zip(costs).flat_map(|(width, cost)| std::iter::repeat_n(*cost, width));
        // What was always 0 has no size that units could be near to.
        let seen = scales.iter().zip(of_columns).filter(|(scale, _)| **scale > 0);
        let shift = units::mean(seen.map(|(scale, cost)| meant(*scale) - cost));
        Ok(costs.iter().map(|cost| stored(cost + shift)).collect())
    }

    /// Adds up cells by kind and class.
    fn cells(&self, planes: &[StageData], units: &[u8]) -> Result<Vec<Cells>> {
        let mut cells = vec![Cells::default(); 2 * CLASSES];
        let mut units = units.iter();
        for ((data, shapes), plane) in planes.iter().zip(&self.shapes).zip(&self.kinds) {
            let own: Vec<u8> =
                units.by_ref().take(shapes.iter().map(|shape| shape.heads).sum()).copied().collect();
            let (heads, scales) = (data.get_u32("head")?.1, data.get_u8("of")?.1);
            let grades = data.get_u8("graded")?.1;
            let (firsts, lens, counts) =
                (data.get_u32("first")?.1, data.get_u32("len")?.1, data.get_u32("count")?.1);
            let mut rest = &counts[..];
            let columns = heads.iter().zip(scales).zip(grades).zip(firsts).zip(lens);
            for ((((head, scale), grade), first), len) in columns {
                let split = rest.split_at_checked(len as usize);
                let (counts, more) = split.ok_or_else(|| Error::data("histograms are cut short"))?;
                rest = more;
                let unit = own.get(*head as usize).ok_or_else(|| Error::data("a head that is not there"))?;
                let unit = Steps::graded(meant(*unit), usize::from(grade));
                let step = f64::from(self.steps.step(unit)?);
                let class = usize::from(self.steps.class(meant(scale), unit));
                for (bin, count) in (first as usize..).zip(counts).filter(|(_, count)| **count > 0) {
                    let (low, high) = magnitudes::range(bin);
                    let cells = &mut cells[kind(*plane) * CLASSES + class];
                    cells.add(low / step, high / step, f64::from(*count), self.steps);
                }
            }
        }
        Ok(cells)
    }
}

impl Calibrator for StepsCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let shapes = self.shapes.get(plane.index).cloned().unwrap_or_default();
        Box::new(Parts {
            parts: shapes.into_iter().map(Sums::new).collect(),
            source: self.source,
            counts: self.graded.then(Counts::new),
        })
    }

    fn grader(&self) -> Option<&dyn Grader> {
        self.grading.as_ref().map(|grading| grading as &dyn Grader)
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        if let Some(why) = &self.missing {
            return Err(Error::profile(why));
        }
        let joined = |name: &str| {
            let tensors = planes.iter().map(|data| Ok(data.get_u8(name)?.1));
            Ok(tensors.collect::<Result<Vec<_>>>()?.concat())
        };
        let scales: Vec<u8> = joined(SCALE)?;
        let units = self.units(joined(UNIT)?, &scales)?;
        let cells = self.cells(&planes, &units)?;
        let centroids: Vec<u8> =
            cells.iter().enumerate().flat_map(|(at, cells)| cells.centroids(at % CLASSES)).collect();
        let mut data = StageData::new();
        data.put_u8(UNIT, &[units.len()], &units);
        data.put_u8(SCALE, &[scales.len()], &scales);
        data.put_u8(CENTROID, &[centroids.len()], &centroids);
        if self.graded {
            let mut counts = vec![0u64; CONTEXTS * GRADES];
            for plane in &planes {
                let own = plane.get_u32(GRADE)?.1;
                counts.iter_mut().zip(own).for_each(|(sum, count)| *sum += u64::from(count));
            }
            let frequencies = codebook::frequencies(&counts);
            data.put_u16(GRADE, &[frequencies.len()], &frequencies);
        }
        if !self.weights.is_empty() {
            data.put_f32(WEIGHT, &[self.weights.len()], &self.weights);
        }
        Ok(data)
    }
}

/// Sums of one part.
#[derive(Debug)]
struct Sums {
    shape: Shape,
    rows: u64,
    /// Of each column.
    squares: Vec<f64>,
    /// By grade; what is not graded has the middle one.
    magnitudes: [Option<Magnitudes>; GRADES],
}

impl Sums {
    fn new(shape: Shape) -> Self {
        let cols = shape.cols();
        Self { shape, rows: 0, squares: vec![0.0; cols], magnitudes: [const { None }; GRADES] }
    }

    /// The deviation from 0 of columns whose squares sum up to this.
    fn deviation(&self, squares: f64, cols: usize) -> f64 {
        (squares / (self.rows.max(1) as f64 * cols as f64)).sqrt()
    }
}

/// Sums of one plane's parts.
#[derive(Debug)]
struct Parts {
    parts: Vec<Sums>,
    source: Source,
    /// Of grades, if tokens are graded.
    counts: Option<Counts>,
}

impl Accumulator for Parts {
    fn observe(&mut self, tile: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()> {
        let (Seen::Values(x), Some(sums)) = (seen, self.parts.get_mut(part.index)) else {
            return Err(Error::data("`steps` is calibrated on the values of the parts it was bound to"));
        };
        check(x.dim(), part.rows, sums.shape.cols())?;
        let heads = sums.shape.heads.max(1);
        if !tile.grades.is_empty() && tile.grades.len() != part.rows * heads {
            return Err(Error::data("grades of another part"));
        }
        if let Some(counts) = &mut self.counts {
            counts.add(heads, tile.grades);
        }
        for (number, row) in x.rows().into_iter().enumerate() {
            for (sum, x) in sums.squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            for head in 0..heads {
                let grade =
                    tile.grades.get(number * heads + head).map_or(MIDDLE as usize, |g| usize::from(*g));
                let slot =
                    sums.magnitudes.get_mut(grade).ok_or_else(|| Error::data("an impossible grade"))?;
                let magnitudes = slot.get_or_insert_with(|| Magnitudes::new(sums.squares.len()));
                let first = head * sums.shape.width;
                magnitudes.add(first, row.iter().skip(first).take(sums.shape.width));
            }
        }
        sums.rows += part.rows as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        let (mut own, mut scales) = (Vec::new(), Vec::new());
        let mut pooled = Pooled::default();
        let mut head = 0;
        for sums in &self.parts {
            // A short chunk may lack a part; a profile without would be a mistake.
            if sums.rows == 0 && self.source == Source::Profile {
                return Err(Error::data("no values to take deviations of"));
            }
            if !sums.squares.iter().all(|square| square.is_finite()) {
                return Err(not_finite());
            }
            let width = sums.shape.width.max(1);
            for (number, squares) in sums.squares.chunks_exact(width).enumerate() {
                let scale = |square: &f64| stored(quarter_octaves(sums.deviation(*square, 1)));
                let of_head: Vec<u8> = squares.iter().map(scale).collect();
                let all = sums.deviation(squares.iter().sum(), width);
                own.push(stored(if all > 0.0 { quarter_octaves(all) } else { 0 }));
                for (grade, magnitudes) in sums.magnitudes.iter().enumerate() {
                    let Some(magnitudes) = magnitudes else { continue };
                    pooled.add(head, grade as u8, &of_head, |col| magnitudes.column(number * width + col));
                }
                scales.extend(of_head);
                head += 1;
            }
        }
        let mut data = StageData::new();
        data.put_u8(UNIT, &[own.len()], &own);
        data.put_u8(SCALE, &[scales.len()], &scales);
        pooled.put(&mut data);
        if let Some(counts) = &self.counts {
            data.put_u32(GRADE, &[counts.as_slice().len()], counts.as_slice());
        }
        Ok(data)
    }
}

/// Histograms of columns of one head, one scale and one grade, which will be of one class: trimmed, on the way to the calibrator.
#[derive(Debug, Default)]
struct Pooled {
    heads: Vec<u32>,
    scales: Vec<u8>,
    grades: Vec<u8>,
    firsts: Vec<u32>,
    lens: Vec<u32>,
    counts: Vec<u32>,
}

impl Pooled {
    /// Adds a head, given its columns' scales.
    fn add<'c>(&mut self, head: u32, grade: u8, scales: &[u8], column: impl Fn(usize) -> &'c [u32]) {
        let mut order: Vec<usize> = (0..scales.len()).collect();
        order.sort_by_key(|col| scales[*col]);
        for columns in order.chunk_by(|a, b| scales[*a] == scales[*b]) {
            let mut sum = Magnitudes::nothing();
            for col in columns {
                for (sum, count) in sum.iter_mut().zip(column(*col)) {
                    *sum = sum.saturating_add(*count);
                }
            }
            let Some(first) = sum.iter().position(|count| *count > 0) else { continue };
            let end = sum.iter().rposition(|count| *count > 0).map_or(first, |last| last + 1);
            self.heads.push(head);
            self.scales.push(scales[columns[0]]);
            self.grades.push(grade);
            self.firsts.push(first as u32);
            self.lens.push((end - first) as u32);
            self.counts.extend_from_slice(&sum[first..end]);
        }
    }

    fn put(&self, data: &mut StageData) {
        data.put_u32("head", &[self.heads.len()], &self.heads);
        data.put_u8("of", &[self.scales.len()], &self.scales);
        data.put_u8("graded", &[self.grades.len()], &self.grades);
        data.put_u32("first", &[self.firsts.len()], &self.firsts);
        data.put_u32("len", &[self.lens.len()], &self.lens);
        data.put_u32("count", &[self.counts.len()], &self.counts);
    }
}
