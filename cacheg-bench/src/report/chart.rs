//! One picture: series of points with intervals, over a plain axis, as SVG whose colours the page's style can change.

use std::error::Error as StdError;

use cacheg::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::marks::{FAINT, GREY, GRID, INK, Mark};
use super::text::short;
use crate::labels::{Box2, Labels};

const SIZE: (u32, u32) = (880, 540);
const FONT: i32 = 15;

type Drawn<T = ()> = std::result::Result<T, Box<dyn StdError>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Pixel = (i32, i32);

/// A point and where it may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dot {
    pub(crate) at: (f64, f64),
    pub(crate) x_interval: Option<[f64; 2]>,
    pub(crate) y_interval: Option<[f64; 2]>,
}

impl Dot {
    /// Known exactly.
    pub(crate) fn exact(at: (f64, f64)) -> Self {
        Self { at, x_interval: None, y_interval: None }
    }
}

/// Points of one colour with a line through them, if there are several.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) dots: Vec<Dot>,
}

/// What is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    /// The y axis is logarithmic; points at or below zero are left out.
    pub(crate) log: bool,
    pub(crate) series: Vec<Series>,
}

impl Chart {
    /// As SVG. `None` if there is nothing to draw.
    pub(crate) fn svg(&self) -> Result<Option<String>> {
        let kept = |dot: &Dot| dot.at.0.is_finite() && dot.at.1.is_finite() && (!self.log || dot.at.1 > 0.0);
        let mut chart = self.clone();
        chart.series.iter_mut().for_each(|series| {
            series.dots.retain(kept);
            series.dots.sort_by(|a, b| a.at.0.total_cmp(&b.at.0));
        });
        chart.series.retain(|series| !series.dots.is_empty());
        // Lines have the first colours to themselves.
        chart.series.sort_by_key(|series| series.dots.len() == 1);
        if chart.series.is_empty() {
            return Ok(None);
        }
        let mut text = String::new();
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        chart.draw(&root).map_err(|e| Error::data(format!("the picture: {e}")))?;
        drop(root);
        Ok(Some(text))
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let dots = || self.series.iter().flat_map(|series| &series.dots);
        let ends = |interval: Option<[f64; 2]>| interval.into_iter().flatten().filter(|end| end.is_finite());
        let xs = || dots().flat_map(|dot| ends(dot.x_interval).chain([dot.at.0]));
        let ys = || {
            dots().flat_map(|dot| ends(dot.y_interval).chain([dot.at.1])).filter(|y| !self.log || *y > 0.0)
        };
        let bounds = |all: &mut dyn Iterator<Item = f64>| {
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
        };
        let (left, right) = bounds(&mut xs());
        let (bottom, top) = bounds(&mut ys());
        // Room for labels at both sides.
        let x = left.min(0.0)..(right + 0.12 * (right - left.min(0.0))).max(left + 1e-9);
        let mut builder = ChartBuilder::on(root);
        builder.margin(12).margin_right(20).x_label_area_size(48).y_label_area_size(78);
        if self.log {
            // Bounds of intervals may be zero; what is far below the points is cut off.
            let lowest = dots().map(|dot| dot.at.1).fold(f64::INFINITY, f64::min);
            let y = (bottom.max(lowest / 10.0) / 1.6..top * 1.6).log_scale();
            self.fill(root, builder.build_cartesian_2d(x, y)?)
        } else {
            let room = 0.08 * (top - bottom).max(top.abs() * 0.01).max(1e-9);
            self.fill(root, builder.build_cartesian_2d(x, bottom - room..top + room)?)
        }
    }

    fn fill<'a, Y>(
        &self,
        root: &Area<'a>,
        mut chart: ChartContext<'_, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    ) -> Drawn
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .light_line_style(FAINT)
            .bold_line_style(GRID)
            .axis_style(GREY)
            .label_style(font(FONT, INK))
            .axis_desc_style(font(FONT, INK))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(10)
            .x_max_light_lines(4)
            .y_labels(8)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .draw()?;
        let area = chart.plotting_area();
        let (across, down) = area.get_pixel_range();
        let frame = Box2::new(across.start, down.start, across.end, down.end);
        let pixel = |x: f64, y: f64| {
            let (x, y) = area.map_coordinate(&(x, y));
            (x.clamp(frame.left, frame.right), y.clamp(frame.top, frame.bottom))
        };
        // Bounds that a logarithm has no place for are at the foot.
        let y_end = |y: f64| if self.log && y <= 0.0 { f64::MIN_POSITIVE } else { y };
        let mut labels = Labels::new(frame);
        let mut captions = Vec::new();
        for (index, series) in self.series.iter().enumerate() {
            let mark = Mark::new(index, series.dots.len() > 1);
            let places: Vec<Pixel> = series.dots.iter().map(|dot| pixel(dot.at.0, dot.at.1)).collect();
            line(root, &mark, &places)?;
            places.windows(2).for_each(|pair| occupy_line(&mut labels, pair[0], pair[1]));
            for (dot, place) in series.dots.iter().zip(&places) {
                if let Some([low, high]) = dot.y_interval {
                    let ends = [low, high].map(|y| (place.0, pixel(dot.at.0, y_end(y)).1));
                    bar(root, &mark, &mut labels, ends, (4, 0))?;
                }
                if let Some([low, high]) = dot.x_interval {
                    let ends = [low, high].map(|x| (pixel(x, dot.at.1).0, place.1));
                    bar(root, &mark, &mut labels, ends, (0, 4))?;
                }
                labels.occupy(Box2::around(*place, 8));
            }
            // Where the line ends below, lines are further apart than above.
            captions.extend(places.last().map(|place| (*place, &series.name, mark)));
        }
        for (series, index) in self.series.iter().zip(0..) {
            let mark = Mark::new(index, series.dots.len() > 1);
            for dot in &series.dots {
                mark.draw(root, pixel(dot.at.0, dot.at.1), 5.0)?;
            }
        }
        for (anchor, name, mark) in captions {
            let name = clipped(name);
            // Widths are estimated, on the safe side for the fonts that browsers take.
            let width = name.chars().count() as i32 * (FONT * 54 / 100) + 6;
            let place = labels.place(anchor, width, FONT + 4);
            if let Some(from) = place.leader(anchor) {
                root.draw(&PathElement::new([anchor, from], mark.color.mix(0.6)))?;
            }
            let style = font(FONT, mark.color).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name, (place.left + 3, (place.top + place.bottom) / 2), style))?;
        }
        root.present()?;
        Ok(())
    }
}

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

/// Long specs would push everything else aside; tables have them whole.
fn clipped(name: &str) -> String {
    const MOST: usize = 44;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}

fn line(root: &Area<'_>, mark: &Mark, places: &[Pixel]) -> Drawn {
    let style = mark.color.stroke_width(2);
    match mark.dash {
        (_, 0) => root.draw(&PathElement::new(places.to_vec(), style))?,
        (size, gap) => root.draw(&DashedPathElement::new(places.iter().copied(), size, gap, style))?,
    }
    Ok(())
}

/// An interval with a cap at either end; shorter than a marker it would only blur it.
fn bar(root: &Area<'_>, mark: &Mark, labels: &mut Labels, [from, to]: [Pixel; 2], (dx, dy): Pixel) -> Drawn {
    if (from.0 - to.0).abs().max((from.1 - to.1).abs()) < 8 {
        return Ok(());
    }
    let style = mark.color.mix(0.75).stroke_width(1);
    root.draw(&PathElement::new([from, to], style))?;
    for (x, y) in [from, to] {
        root.draw(&PathElement::new([(x - dx, y - dy), (x + dx, y + dy)], style))?;
    }
    occupy_line(labels, from, to);
    Ok(())
}

fn occupy_line(labels: &mut Labels, from: Pixel, to: Pixel) {
    let steps = ((from.0 - to.0).abs().max((from.1 - to.1).abs()) / 6).max(1);
    for step in 0..=steps {
        let between = |a: i32, b: i32| a + (b - a) * step / steps;
        labels.occupy(Box2::around((between(from.0, to.0), between(from.1, to.1)), 3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_well_formed_and_names_everyone() {
        let dot = |x: f64, y: f64| Dot {
            at: (x, y),
            x_interval: Some([x - 0.5, x + 0.3]),
            y_interval: Some([0.0, y * 2.0]),
        };
        let series = |name: &str, dots: Vec<Dot>| Series { name: name.into(), dots };
        let mut chart = Chart {
            x: "bits",
            y: "KL",
            log: true,
            series: vec![
                series("<script>alert(1)</script>", vec![dot(3.0, 0.01), dot(2.0, 0.1), dot(1.0, 0.0)]),
                series("one & only", vec![dot(8.5, 0.0001)]),
                series("none", vec![dot(f64::NAN, 1.0), Dot::exact((1.0, -1.0))]),
                series(&"long ".repeat(40), vec![Dot::exact((4.0, 0.02))]),
            ],
        };
        chart.series.extend((0..20).map(|n| series(&format!("more-{n}"), vec![dot(3.0, 0.01)])));
        for log in [true, false] {
            chart.log = log;
            let svg = chart.svg().unwrap().unwrap();
            let document = roxmltree::Document::parse(&svg).unwrap();
            let texts: Vec<&str> =
                document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
            for text in ["<script>alert(1)</script>", "one & only", "more-19", "bits", "KL"] {
                assert!(texts.contains(&text), "{text}");
            }
            assert_eq!(texts.contains(&"none"), !log);
            assert!(texts.iter().all(|text| text.chars().count() <= 44));
            assert!(!svg.contains("<script>") && !svg.contains("NaN") && !svg.contains("inf"));
        }
        chart.series.truncate(0);
        assert_eq!(chart.svg().unwrap(), None);
    }

    #[test]
    fn one_point_or_equal_points_are_no_trouble() {
        for (log, y) in [(true, 0.5), (false, 0.0), (false, 70.0)] {
            let dots = vec![Dot::exact((0.0, y)); 2];
            let chart = Chart { x: "x", y: "y", log, series: vec![Series { name: "a".into(), dots }] };
            assert!(chart.svg().unwrap().is_some());
        }
    }
}
