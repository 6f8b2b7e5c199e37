//! The picture: decode speed against size. Fast and small is to the right and below.

use cacheg::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::race::Family;
use crate::labels::{Box2, Labels};

const SIZE: (u32, u32) = (1080, 680);
/// The largest size on the axis: above are points at the rim, with their size beside them.
const TOP: f64 = 1.24;
const FONT: i32 = 14;

const OURS: RGBColor = RGBColor(200, 40, 40);
const PEER: RGBColor = RGBColor(40, 80, 150);
const GREY: RGBColor = RGBColor(120, 120, 120);
const INK: RGBColor = RGBColor(30, 30, 30);

/// One coder in the picture.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) decode_gsym_s: f64,
    /// Size over entropy, everything counted; references have none.
    pub(crate) size: Option<f64>,
    /// The same without tables.
    pub(crate) stream_size: Option<f64>,
}

/// Draws it as SVG.
pub(crate) fn svg(points: &[Point], caption: &str) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    draw(&root, points, caption).map_err(|e| Error::data(format!("the picture: {e}")))?;
    drop(root);
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

fn draw(
    root: &Area<'_>,
    points: &[Point],
    caption: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let speeds = || points.iter().map(|point| point.decode_gsym_s).filter(|speed| *speed > 0.0);
    let (slowest, fastest) = (speeds().fold(1.0, f64::min), speeds().fold(1.0, f64::max));
    let sizes = points.iter().flat_map(|point| [point.size, point.stream_size]).flatten();
    let bottom = sizes.fold(0.99, f64::min) - 0.015;
    root.draw(&Text::new(
        "Entropy decoders on KV cache symbols: speed against size",
        (20, 14),
        font(20, INK),
    ))?;
    root.draw(&Text::new(caption.to_owned(), (20, 42), font(FONT, GREY)))?;
    let note = "red: cacheg, blue: others; filled: everything counted, hollow: without the tables, which a profile can hold";
    root.draw(&Text::new(note, (20, 60), font(FONT, GREY)))?;
    let mut chart = ChartBuilder::on(root)
        .margin(20)
        .margin_top(84)
        .margin_right(30)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d((slowest / 2.5..fastest * 4.5).log_scale(), bottom..TOP)?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(245, 245, 245))
        .bold_line_style(RGBColor(228, 228, 228))
        .label_style(font(FONT, INK))
        .axis_desc_style(font(FONT, INK))
        .x_desc("decode, Gsymbols/s on one core (twice that are GB/s of f16)")
        .y_desc("bytes / order-0 entropy of each (layer, channel)")
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .x_labels(12)
        .draw()?;
    let at = |x: f64, y: f64| chart.plotting_area().map_coordinate(&(x, y));
    let (left, right) = chart.plotting_area().get_pixel_range();
    let mut labels = Labels::new(Box2::new(left.start, right.start, left.end, right.end));
    let mut captions = Vec::new();
    for point in points.iter().filter(|point| point.decode_gsym_s > 0.0) {
        let Some(size) = point.size else {
            let (x, top) = at(point.decode_gsym_s, TOP);
            let foot = at(point.decode_gsym_s, bottom).1;
            for y in (top..foot).step_by(9) {
                root.draw(&PathElement::new([(x, y), (x, (y + 5).min(foot))], GREY))?;
            }
            labels.occupy(Box2::new(x - 2, top, x + 2, foot));
            captions.push(((x, foot - 14), point.name.clone(), GREY));
            continue;
        };
        let color = if point.family == Family::Ours { OURS } else { PEER };
        let (x, y) = at(point.decode_gsym_s, size.min(TOP));
        let outside = size > TOP;
        if let Some(stream) = point.stream_size.filter(|stream| size - stream > 0.002 && *stream < TOP) {
            let to = at(point.decode_gsym_s, stream).1;
            root.draw(&PathElement::new([(x, y), (x, to)], color.stroke_width(1)))?;
            root.draw(&Circle::new((x, to), 4, WHITE.filled()))?;
            root.draw(&Circle::new((x, to), 4, color.stroke_width(2)))?;
            labels.occupy(Box2::around((x, to), 6));
            labels.occupy(Box2::new(x - 2, y, x + 2, to));
        }
        if outside {
            root.draw(&TriangleMarker::new((x, y + 8), 7, color.filled()))?;
        } else {
            root.draw(&Circle::new((x, y), 5, color.filled()))?;
        }
        labels.occupy(Box2::around((x, y), 7));
        let name = if outside { format!("{} ({size:.2})", point.name) } else { point.name.clone() };
        captions.push(((x, y), name, color));
    }
    for (anchor, name, color) in captions {
        // Without a font at hand widths are estimated, on the safe side for the fonts that browsers take.
        let width = name.chars().count() as i32 * (FONT * 48 / 100) + 4;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, family: Family, speed: f64, size: Option<f64>) -> Point {
        let stream_size = size.map(|size| size - 0.05);
        Point { name: name.into(), family, decode_gsym_s: speed, size, stream_size }
    }

    #[test]
    fn the_picture_is_well_formed_and_names_everyone() {
        let points = [
            point("ours <&>", Family::Ours, 6.0, Some(1.01)),
            point("peer", Family::Peer, 0.05, Some(1.1)),
            point("far", Family::Peer, 3.0, Some(2.4)),
            point("memcpy", Family::Reference, 3.6, None),
            point("impossible", Family::Peer, f64::NAN, Some(1.0)),
        ];
        let svg = svg(&points, "caption \"<&>\"").unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for text in ["ours <&>", "peer", "far (2.40)", "memcpy", "caption \"<&>\""] {
            assert!(texts.contains(&text), "{text}");
        }
        assert!(super::svg(&[], "").is_ok());
    }
}
