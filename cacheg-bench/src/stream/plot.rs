//! Pictures: misses against the deadline, and distortion against avoidable misses.

use cacheg::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use crate::labels::{Box2, Labels};

const SIZE: (u32, u32) = (1080, 640);
const FONT: i32 = 14;
/// Width of the list of names beside lines.
const LEGEND: u32 = 270;
const GREY: RGBColor = RGBColor(120, 120, 120);
const INK: RGBColor = RGBColor(30, 30, 30);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn color(name: &str, index: usize) -> RGBColor {
    const OTHERS: [RGBColor; 6] = [
        RGBColor(40, 80, 150),
        RGBColor(30, 130, 90),
        RGBColor(130, 70, 150),
        RGBColor(170, 110, 20),
        RGBColor(20, 130, 150),
        RGBColor(90, 90, 60),
    ];
    match name {
        "oracle" => GREY,
        "plan" => RGBColor(200, 40, 40),
        _ if name.starts_with("plan") => RGBColor(225, 130, 120),
        _ => OTHERS[index % OTHERS.len()],
    }
}

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

fn svg(draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    draw(&root).map_err(|error| Error::data(format!("the picture: {error}")))?;
    drop(root);
    Ok(text)
}

/// One policy's points.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

fn series(rows: &[Value], set: &str, x: &str, y: &str) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for row in rows.iter().filter(|row| row["set"] == set) {
        let (Some(name), Some(x), Some(y)) = (row["name"].as_str(), row[x].as_f64(), row[y].as_f64()) else {
            continue;
        };
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push((x, y)),
            None => all.push(Series { name: name.to_owned(), points: vec![(x, y)] }),
        }
    }
    all
}

/// SLO misses against the SLO, by policy.
pub(crate) fn misses(rows: &[Value], caption: &str) -> Result<String> {
    let all = series(rows, "slo", "slo_s", "slo_miss_percent");
    let title = "Missed deadlines against the deadline";
    let note =
        "all misses; grey: the oracle, which knows the future; what is above it could have been avoided";
    svg(|root| {
        let axes = Axes { title, caption, note, x: "deadline, s", y: "misses, % of runs" };
        draw(root, &all, &axes, true)
    })
}

/// Distortion against avoidable misses.
pub(crate) fn distortion(rows: &[Value], caption: &str) -> Result<String> {
    let all = series(rows, "all", "avoidable_miss_percent", "kl");
    let title = "Distortion against avoidable misses";
    let note = "good is left and below; grey: the oracle, which knows the future";
    svg(|root| {
        let axes = Axes {
            title,
            caption,
            note,
            x: "avoidable misses, % of runs",
            y: "KL per token, mean over chunks",
        };
        draw(root, &all, &axes, false)
    })
}

struct Axes<'a> {
    title: &'a str,
    caption: &'a str,
    note: &'a str,
    x: &'a str,
    y: &'a str,
}

fn draw(root: &Area<'_>, all: &[Series], axes: &Axes<'_>, lines: bool) -> Drawn {
    root.fill(&WHITE)?;
    root.draw(&Text::new(axes.title.to_owned(), (20, 14), font(20, INK)))?;
    root.draw(&Text::new(axes.caption.to_owned(), (20, 42), font(FONT, GREY)))?;
    root.draw(&Text::new(axes.note.to_owned(), (20, 60), font(FONT, GREY)))?;
    let points = || all.iter().flat_map(|series| &series.points);
    let right = points().map(|point| point.0).fold(0.01, f64::max);
    let left = if lines { points().map(|point| point.0).fold(right, f64::min) } else { 0.0 };
    let top = points().map(|point| point.1).fold(0.01, f64::max) * 1.08;
    let margin = (right - left).max(0.01) * if lines { 0.02 } else { 0.08 };
    let mut chart = ChartBuilder::on(root)
        .margin(20)
        .margin_top(84)
        .margin_right(if lines { LEGEND } else { 30 })
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(left - margin..right + margin, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(245, 245, 245))
        .bold_line_style(RGBColor(228, 228, 228))
        .label_style(font(FONT, INK))
        .axis_desc_style(font(FONT, INK))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()?;
    let at = |point: &(f64, f64)| chart.plotting_area().map_coordinate(point);
    let (across, down) = chart.plotting_area().get_pixel_range();
    let mut labels = Labels::new(Box2::new(across.start, down.start, across.end, down.end));
    let mut captions = Vec::new();
    // `plan` lies on the others.
    let mut order: Vec<(usize, &Series)> = all.iter().enumerate().collect();
    order.sort_by_key(|(_, series)| series.name == "plan");
    for (index, series) in order {
        let color = color(&series.name, index);
        let pixels: Vec<(i32, i32)> = series.points.iter().map(at).collect();
        if lines {
            let width = if series.name == "plan" { 3 } else { 2 };
            root.draw(&PathElement::new(pixels.clone(), color.stroke_width(width)))?;
        }
        for pixel in &pixels {
            root.draw(&Circle::new(*pixel, 4, color.filled()))?;
            labels.occupy(Box2::around(*pixel, 6));
        }
        if let Some(first) = pixels.first() {
            captions.push((*first, series.name.clone(), color));
        }
    }
    if lines {
        // Ends of lines meet; names stand beside them, in the order of the left ends.
        captions.sort_by_key(|(anchor, ..)| anchor.1);
        for (index, (_, name, color)) in captions.drain(..).enumerate() {
            let (x, y) = (across.end + 24, down.start + 12 + 24 * index as i32);
            root.draw(&PathElement::new([(x, y), (x + 22, y)], color.stroke_width(3)))?;
            let style = font(FONT, color).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name, (x + 30, y), style))?;
        }
    }
    for (anchor, name, color) in captions {
        let width = name.chars().count() as i32 * (FONT * 48 / 100) + 8;
        let place = labels.place(anchor, width, FONT + 4);
        if let Some(from) = place.leader(anchor) {
            root.draw(&PathElement::new([anchor, from], color.mix(0.5)))?;
        }
        let style = font(FONT, color).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name, (place.left + 2, (place.top + place.bottom) / 2), style))?;
    }
    root.present()?;
    Ok(())
}
