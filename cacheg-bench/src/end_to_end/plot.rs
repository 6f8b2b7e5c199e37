//! Pictures: time to the first token against bandwidth, and missed deadlines against the deadline.

use cacheg::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::methods;

const SIZE: (u32, u32) = (1080, 680);
const FONT: i32 = 14;
/// Room for the legend.
const LEGEND: u32 = 300;
const GREY: RGBColor = RGBColor(110, 110, 110);
const INK: RGBColor = RGBColor(30, 30, 30);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// One line.
struct Series {
    name: String,
    color: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

/// Ours red, what everybody has in greys and blues, so that ten lines can be told apart.
fn color(name: &str) -> RGBColor {
    match name {
        methods::TEXT => RGBColor(20, 20, 20),
        "f16" => RGBColor(150, 150, 150),
        methods::Q8 => RGBColor(0, 114, 178),
        "q4" => RGBColor(86, 180, 233),
        "cachegen-release@1" => RGBColor(204, 121, 167),
        methods::PAPER => RGBColor(0, 158, 115),
        _ if name.starts_with("cachegen ") => RGBColor(140, 90, 40),
        _ if name.starts_with("plan paper") => RGBColor(120, 60, 140),
        _ if name.starts_with("plan") => RGBColor(200, 30, 30),
        "fast@1.4" => RGBColor(213, 94, 0),
        _ => RGBColor(230, 159, 0),
    }
}

fn number(row: &Value, key: &str) -> Option<f64> {
    row[key].as_f64().filter(|x| x.is_finite())
}

/// Names of rows that fit, in order of appearance.
fn names(rows: &[Value], fits: impl Fn(&Value) -> bool) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().filter(|row| fits(row)).filter_map(|row| row["name"].as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// TTFT against bandwidth, both logarithmic; `factor` times the rate is a large model's.
pub(crate) fn ttft(rows: &[Value], caption: &str, factor: f64) -> Result<String> {
    // Coarser levels would be faster at more damage: another comparison.
    let drawn = |row: &Value| {
        row["set"] != "slo" && !["cachegen-paper@2", "fast@2"].iter().any(|name| row["name"] == *name)
    };
    let mut all = Vec::new();
    for name in names(rows, drawn) {
        let of = || rows.iter().filter(|row| drawn(row) && row["name"] == name);
        let points = of().filter_map(|row| Some((number(row, "rate_mbps")?, number(row, "ttft_s")?)));
        let kl: Vec<f64> = of().filter_map(|row| number(row, "kl")).collect();
        let (least, most) =
            (kl.iter().copied().fold(f64::INFINITY, f64::min), kl.iter().copied().fold(0.0, f64::max));
        let ours = name.starts_with("plan");
        let kl = if ours { format!("{least:.3}–{most:.3}") } else { format!("{most:.4}") };
        all.push(Series {
            name: format!("{name}  (KL {kl})"),
            color: color(name),
            width: if ours { 3 } else { 2 },
            points: points.collect(),
        });
    }
    // The legend as the lines are at the left.
    all.sort_by(|a, b| {
        let first = |series: &Series| series.points.first().map_or(0.0, |point| point.1);
        first(b).total_cmp(&first(a))
    });
    let points = || all.iter().flat_map(|series| &series.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::INFINITY, 0.0), |(l, h), x| (x.min(l), x.max(h)));
        if low < high { (low, high) } else { (0.1, 10.0) }
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let mut rates: Vec<f64> = points().map(|point| point.0).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    picture(|root| {
        titles(root, "Time to first token against bandwidth", caption)?;
        let mut chart = ChartBuilder::on(root)
            .margin(20)
            .margin_top(70)
            .margin_right(LEGEND + 20)
            .x_label_area_size(70)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (left * 0.85..right * 1.18).log_scale(),
                (low * 0.8..high * 1.25).log_scale(),
            )?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(245, 245, 245))
            .bold_line_style(RGBColor(228, 228, 228))
            .label_style(font(FONT, INK))
            .axis_desc_style(font(FONT, INK))
            .y_desc("TTFT, s")
            .y_labels(24)
            .x_labels(0)
            .x_label_formatter(&|_| String::new())
            .y_label_formatter(&|y| format!("{y}"))
            .draw()?;
        let at = |point: &(f64, f64)| chart.plotting_area().map_coordinate(point);
        let foot = chart.plotting_area().get_pixel_range().1.end;
        for rate in &rates {
            let x = at(&(*rate, low)).0;
            root.draw(&PathElement::new([(x, foot), (x, foot + 5)], INK))?;
            for (row, label, ink) in [(0, format!("{rate}"), INK), (1, gigabits(rate * factor / 1e3), GREY)] {
                let style = font(FONT, ink).pos(Pos::new(HPos::Center, VPos::Top));
                root.draw(&Text::new(label, (x, foot + 8 + row * 18), style))?;
            }
        }
        let style = font(FONT, INK).pos(Pos::new(HPos::Left, VPos::Top));
        let middle = (SIZE.0 - LEGEND) as i32 / 2;
        root.draw(&Text::new(
            "Mbit/s here; below, in grey, Gbit/s for a 7B model on a GPU at the same ratios",
            (middle - 240, foot + 48),
            style,
        ))?;
        lines(root, &all, at)
    })
}

fn gigabits(rate: f64) -> String {
    if rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// Missed deadlines over all rates against the deadline.
pub(crate) fn slo(rows: &[Value], caption: &str) -> Result<String> {
    let mut slos: Vec<f64> =
        rows.iter().filter(|row| row["set"] == "slo").filter_map(|row| number(row, "slo_s")).collect();
    slos.sort_by(f64::total_cmp);
    slos.dedup();
    let mut all = Vec::new();
    for name in names(rows, |row| {
        row["set"] != "share" && row["name"] != "fast@2" && row["name"] != "cachegen-paper@2"
    }) {
        let adaptive = rows.iter().any(|row| row["name"] == name && row["set"] == "slo");
        let points = slos.iter().filter_map(|slo| {
            let of = |row: &&Value| row["name"] == name && (!adaptive || number(row, "slo_s") == Some(*slo));
            let mut shares = Vec::new();
            for row in rows.iter().filter(of) {
                let each = row["ttft_each_s"].as_array()?;
                let late = each.iter().filter(|ttft| ttft.as_f64().is_none_or(|ttft| ttft > *slo)).count();
                // Every rate counts the same, however often it was measured.
                shares.push(late as f64 * 100.0 / each.len().max(1) as f64);
            }
            (!shares.is_empty()).then(|| (*slo, shares.iter().sum::<f64>() / shares.len() as f64))
        });
        all.push(Series {
            name: name.to_owned(),
            color: color(name),
            width: if adaptive { 3 } else { 2 },
            points: points.collect(),
        });
    }
    all.sort_by(|a, b| {
        let sum = |series: &Series| series.points.iter().map(|point| point.1).sum::<f64>();
        sum(b).total_cmp(&sum(a))
    });
    let (left, right) = (slos.first().copied().unwrap_or(0.5), slos.last().copied().unwrap_or(1.0));
    picture(|root| {
        titles(root, "Missed deadlines against the deadline, over all rates", caption)?;
        let mut chart = ChartBuilder::on(root)
            .margin(20)
            .margin_top(70)
            .margin_right(LEGEND + 20)
            .x_label_area_size(52)
            .y_label_area_size(64)
            .build_cartesian_2d((left * 0.9..right * 1.1 + 0.01).log_scale(), -3.0..103.0)?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(245, 245, 245))
            .bold_line_style(RGBColor(228, 228, 228))
            .label_style(font(FONT, INK))
            .axis_desc_style(font(FONT, INK))
            .y_desc("first tokens that came late, %")
            .x_labels(0)
            .x_label_formatter(&|_| String::new())
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()?;
        let at = |point: &(f64, f64)| chart.plotting_area().map_coordinate(point);
        let (across, down) = chart.plotting_area().get_pixel_range();
        for slo in &slos {
            let x = at(&(*slo, 0.0)).0;
            root.draw(&PathElement::new([(x, down.end), (x, down.end + 5)], INK))?;
            let style = font(FONT, INK).pos(Pos::new(HPos::Center, VPos::Top));
            root.draw(&Text::new(format!("{slo}"), (x, down.end + 8), style))?;
        }
        let style = font(FONT, INK).pos(Pos::new(HPos::Center, VPos::Top));
        let middle = i32::midpoint(across.start, across.end);
        root.draw(&Text::new("deadline of the first token, s", (middle, down.end + 30), style))?;
        lines(root, &all, at)
    })
}

fn picture(draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&root));
    drawn.map_err(|e: Box<dyn std::error::Error>| Error::data(format!("the picture: {e}")))?;
    root.present().map_err(|e| Error::data(format!("the picture: {e}")))?;
    drop(root);
    Ok(text)
}

fn titles(root: &Area<'_>, title: &str, caption: &str) -> Drawn {
    root.draw(&Text::new(title.to_owned(), (20, 14), font(20, INK)))?;
    root.draw(&Text::new(caption.to_owned(), (20, 42), font(FONT, GREY)))?;
    Ok(())
}

/// The lines, and a legend to their right.
fn lines(root: &Area<'_>, all: &[Series], at: impl Fn(&(f64, f64)) -> (i32, i32)) -> Drawn {
    let left = (SIZE.0 - LEGEND) as i32;
    for (index, series) in all.iter().enumerate() {
        let pixels: Vec<(i32, i32)> = series.points.iter().map(&at).collect();
        root.draw(&PathElement::new(pixels.clone(), series.color.stroke_width(series.width)))?;
        for pixel in pixels {
            root.draw(&Circle::new(pixel, 3 + series.width as i32 / 2, series.color.filled()))?;
        }
        let y = 90 + 26 * index as i32;
        root.draw(&PathElement::new([(left, y), (left + 26, y)], series.color.stroke_width(series.width)))?;
        root.draw(&Circle::new((left + 13, y), 4, series.color.filled()))?;
        let style = font(FONT, INK).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(series.name.clone(), (left + 34, y), style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pictures_are_well_formed_and_name_everyone() {
        let mut rows = Vec::new();
        for (rate, ttft) in [(10.0, 8.0), (100.0, 1.0), (1000.0, 0.3)] {
            rows.push(json!({"name": "q8", "set": "fixed", "rate_mbps": rate, "ttft_s": ttft, "kl": 0.001, "ttft_each_s": [ttft]}));
            for slo in [0.5, 2.0] {
                rows.push(json!({"name": "plan fast", "set": "slo", "rate_mbps": rate, "ttft_s": slo, "slo_s": slo, "kl": 0.01, "ttft_each_s": [slo, 9.0]}));
            }
        }
        for svg in [ttft(&rows, "a <&> b", 100.0).unwrap(), slo(&rows, "a <&> b").unwrap()] {
            let document = roxmltree::Document::parse(&svg).unwrap();
            let texts: Vec<&str> =
                document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
            assert!(texts.contains(&"a <&> b"));
            assert!(texts.iter().any(|text| text.starts_with("q8")), "{texts:?}");
        }
        assert!(ttft(&[], "", 1.0).is_ok() && slo(&[], "").is_ok());
    }
}
