//! A picture of a fetched context: what was on the wire, decoded and recomputed when, at which level, and the deadline.

use std::time::Duration;

use cacheg_core::{Error, Result};
use cacheg_net::fetch::{Fetched, Span, Work};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: u32 = 1080;
const LANE: i32 = 34;
const TOP: i32 = 96;
const BOTTOM: i32 = 60;
const FONT: i32 = 14;
/// Of characters, as SVG viewers choose their own font.
const CHAR: i32 = 7;

const INK: RGBColor = RGBColor(30, 30, 30);
const GREY: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(226, 226, 226);
const LATE: RGBColor = RGBColor(200, 30, 30);
const TEXT: RGBColor = RGBColor(90, 90, 90);
/// Okabe and Ito's colours, best level first; colour-blind people can tell them apart.
const LEVELS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
];

/// One row of the picture.
struct Lane<'a> {
    name: String,
    spans: Vec<&'a Span>,
}

/// Draws it as SVG; `slo` is the deadline, if there was one.
///
/// # Errors
/// Never, short of errors of the drawing library.
pub fn svg(fetched: &Fetched, slo: Option<Duration>) -> Result<String> {
    let lanes = lanes(&fetched.timeline);
    let height = TOP + LANE * lanes.len().max(1) as i32 + BOTTOM;
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, height as u32)).into_drawing_area();
    draw(&root, fetched, slo, &lanes, height).map_err(|e| Error::data(format!("the picture: {e}")))?;
    drop(root);
    Ok(text)
}

/// Transfers that overlap go to different lanes: as many as there were connections.
fn lanes(timeline: &[Span]) -> Vec<Lane<'_>> {
    let mut all = Vec::new();
    for (work, name) in
        [(Work::Transfer, "transfer"), (Work::Decode, "decode"), (Work::Recompute, "recompute")]
    {
        let mut spans: Vec<&Span> = timeline.iter().filter(|span| span.work == work).collect();
        spans.sort_by_key(|span| (span.start, span.end));
        let mut of_work: Vec<Vec<&Span>> = Vec::new();
        for span in spans {
            let free = |lane: &&mut Vec<&Span>| lane.last().is_none_or(|last| last.end <= span.start);
            match of_work.iter_mut().find(free) {
                Some(lane) => lane.push(span),
                None => of_work.push(vec![span]),
            }
        }
        let several = of_work.len() > 1;
        all.extend(of_work.into_iter().enumerate().map(|(index, spans)| {
            let name = if several { format!("{name} {}", index + 1) } else { name.to_owned() };
            Lane { name, spans }
        }));
    }
    all
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

fn color(fetched: &Fetched, span: &Span) -> RGBColor {
    let Some(level) = &span.level else { return TEXT };
    let index = fetched.manifest.levels.iter().position(|known| known.name == *level);
    LEVELS[index.unwrap_or(0) % LEVELS.len()]
}

fn draw(
    root: &Area<'_>,
    fetched: &Fetched,
    slo: Option<Duration>,
    lanes: &[Lane<'_>],
    height: i32,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let ends = fetched.timeline.iter().map(|span| span.end).chain(slo).chain(fetched.complete);
    let end = ends.max().unwrap_or_default().as_secs_f64().max(1e-3) * 1.03;
    let manifest = &fetched.manifest;
    let title =
        format!("Context {}: {} tokens in {} chunks", manifest.id, manifest.tokens, manifest.chunks.len());
    root.draw(&Text::new(title, (20, 12), font(20, INK)))?;
    let there = match fetched.complete {
        Some(complete) => format!("all there after {:.3} s", complete.as_secs_f64()),
        None => "not all there".to_owned(),
    };
    let summary = format!(
        "{there}; {:.2} MB; hollow: broken off or failed; numbers are chunks",
        fetched.bytes as f64 / 1e6
    );
    root.draw(&Text::new(summary, (20, 40), font(FONT, GREY)))?;
    legend(root, fetched)?;

    let left = 24 + lanes.iter().map(|lane| lane.name.len() as i32 * CHAR).max().unwrap_or(0) + 12;
    let right = WIDTH as i32 - 24;
    let foot = height - BOTTOM;
    let x = |seconds: f64| left + (seconds / end * f64::from(right - left)).round() as i32;
    let step = tick(end);
    let mut seconds = 0.0;
    while seconds <= end {
        root.draw(&PathElement::new([(x(seconds), TOP), (x(seconds), foot)], GRID))?;
        let style = font(FONT, INK).pos(Pos::new(HPos::Center, VPos::Top));
        root.draw(&Text::new(number(seconds, step), (x(seconds), foot + 6), style))?;
        seconds += step;
    }
    let style = font(FONT, INK).pos(Pos::new(HPos::Center, VPos::Top));
    root.draw(&Text::new("seconds since the request", (i32::midpoint(left, right), foot + 28), style))?;
    for (index, lane) in lanes.iter().enumerate() {
        let (top, bottom) = (TOP + LANE * index as i32 + 4, TOP + LANE * (index as i32 + 1) - 4);
        let middle = i32::midpoint(top, bottom);
        let style = font(FONT, INK).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(lane.name.clone(), (left - 10, middle), style))?;
        for span in &lane.spans {
            let (from, to) = (x(span.start.as_secs_f64()), x(span.end.as_secs_f64()));
            let to = to.max(from + 2);
            let color = color(fetched, span);
            let bar = [(from, top), (to, bottom)];
            if span.useful {
                root.draw(&Rectangle::new(bar, color.filled()))?;
            }
            root.draw(&Rectangle::new(bar, color.stroke_width(1)))?;
            let label = span.chunk.to_string();
            if (label.len() as i32 + 1) * CHAR + 2 <= to - from {
                let ink = if span.useful { WHITE } else { color };
                let style = font(FONT, ink).pos(Pos::new(HPos::Center, VPos::Center));
                root.draw(&Text::new(label, (i32::midpoint(from, to), middle), style))?;
            }
        }
    }
    if let Some(slo) = slo {
        let at = x(slo.as_secs_f64());
        root.draw(&PathElement::new([(at, TOP - 6), (at, foot)], LATE.stroke_width(2)))?;
        let style = font(FONT, LATE).pos(Pos::new(HPos::Right, VPos::Bottom));
        root.draw(&Text::new(format!("deadline {:.3} s", slo.as_secs_f64()), (at - 6, TOP - 4), style))?;
    }
    root.present()?;
    Ok(())
}

fn legend(root: &Area<'_>, fetched: &Fetched) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut at = 20;
    let used = |name: &str| fetched.timeline.iter().any(|span| span.level.as_deref() == Some(name));
    let levels = fetched.manifest.levels.iter().enumerate().filter(|(_, level)| used(&level.name));
    let mut entries: Vec<(String, RGBColor)> =
        levels.map(|(index, level)| (level.name.clone(), LEVELS[index % LEVELS.len()])).collect();
    if fetched.timeline.iter().any(|span| span.level.is_none()) {
        entries.push(("text".to_owned(), TEXT));
    }
    for (name, color) in entries {
        root.draw(&Rectangle::new([(at, 63), (at + 12, 75)], color.filled()))?;
        let width = name.len() as i32 * CHAR;
        let style = font(FONT, INK).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name, (at + 18, 69), style))?;
        at += 18 + width + 24;
    }
    Ok(())
}

/// The distance between ticks: 1, 2 or 5 times a power of ten, about eight of them.
fn tick(end: f64) -> f64 {
    let rough = end / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(power * 10.0)
}

fn number(seconds: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{seconds:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(tick(8.0), 1.0);
        assert_eq!(tick(1.0), 0.2);
        assert!((tick(0.03) - 0.005).abs() < 1e-12);
        assert_eq!(number(0.4, 0.2), "0.4");
        assert_eq!(number(12.0, 5.0), "12");
    }
}
