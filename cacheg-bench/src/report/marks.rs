//! How series of a picture are told apart: colour, marker and dash, each enough by itself for a few.

use plotters::prelude::*;

pub(crate) const INK: RGBColor = RGBColor(30, 30, 30);
pub(crate) const GREY: RGBColor = RGBColor(110, 110, 110);
pub(crate) const GRID: RGBColor = RGBColor(226, 226, 226);
pub(crate) const FAINT: RGBColor = RGBColor(243, 243, 243);
pub(crate) const PAPER: RGBColor = RGBColor(255, 255, 255);

/// Okabe and Ito's colours, which colour-blind people can tell apart, without yellow, which white swallows. The
/// style sheet knows them by these values and has others for dark pages and for text.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

const DASHES: [(u32, u32); 4] = [(0, 0), (9, 4), (3, 3), (15, 4)];

/// Corners of markers, in units of the radius of a circle of about the same area; the first is the circle.
const SHAPES: [&[(f64, f64)]; 6] = [
    &[],
    &[(0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9), (0.9, -0.9)],
    &[(0.0, -1.3), (1.15, 0.85), (-1.15, 0.85)],
    &[(0.0, -1.35), (1.2, 0.0), (0.0, 1.35), (-1.2, 0.0)],
    &[(0.0, 1.3), (1.15, -0.85), (-1.15, -0.85)],
    &[
        (0.4, -1.2),
        (0.4, -0.4),
        (1.2, -0.4),
        (1.2, 0.4),
        (0.4, 0.4),
        (0.4, 1.2),
        (-0.4, 1.2),
        (-0.4, 0.4),
        (-1.2, 0.4),
        (-1.2, -0.4),
        (-0.4, -0.4),
        (-0.4, -1.2),
    ],
];

/// The look of a series.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) color: RGBColor,
    /// Length and gap in pixels; no gap: solid.
    pub(crate) dash: (u32, u32),
    shape: &'static [(f64, f64)],
    filled: bool,
}

impl Mark {
    /// Of the series at a place; hollow ones are for single points.
    pub(crate) fn new(index: usize, filled: bool) -> Self {
        Self {
            color: COLORS[index % COLORS.len()],
            dash: DASHES[index % DASHES.len()],
            shape: SHAPES[index % SHAPES.len()],
            filled,
        }
    }

    /// Draws the marker around a pixel.
    pub(crate) fn draw<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, plotters::coord::Shift>,
        (x, y): (i32, i32),
        radius: f64,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let fill = if self.filled { self.color } else { PAPER };
        if self.shape.is_empty() {
            let radius = radius.round() as i32;
            root.draw(&Circle::new((x, y), radius, fill.filled()))?;
            return root.draw(&Circle::new((x, y), radius, self.color.stroke_width(2)));
        }
        let corner =
            |(dx, dy): &(f64, f64)| (x + (dx * radius).round() as i32, y + (dy * radius).round() as i32);
        let mut corners: Vec<(i32, i32)> = self.shape.iter().map(corner).collect();
        root.draw(&Polygon::new(corners.clone(), fill.filled()))?;
        corners.push(corners[0]);
        root.draw(&PathElement::new(corners, self.color.stroke_width(2)))
    }
}
