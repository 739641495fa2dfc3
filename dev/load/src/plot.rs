//! Line charts as PNG files.

use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, anyhow};
use plotters::prelude::{
    BitMapBackend, ChartBuilder, Circle, Color, EmptyElement, IntoDrawingArea, LineSeries, Palette,
    Palette99, PathElement, PointSeries, SeriesLabelPosition, WHITE,
};
use plotters::style::{BLACK, FontStyle, register_font};

const SIZE: (u32, u32) = (1_000, 520);
const FONT: &str = "sans-serif";

/// A chart.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) lines: Vec<Line>,
    /// Draws a mark at each point; for charts with few points.
    pub(super) marks: bool,
    /// Scale of both axes.
    pub(super) scale: Scale,
}

/// Maps values to positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Linear from zero.
    Linear,
    /// Logarithmic from the power of ten below the smallest value; values are above
    /// zero.
    Logarithmic,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
        }
    }

    /// The label of a position. On a logarithmic axis only powers of ten have one.
    fn label(self, place: f64) -> String {
        match self {
            Self::Linear => number(place),
            Self::Logarithmic if (place - place.round()).abs() < 1e-6 => {
                number(10_f64.powf(place.round()))
            }
            Self::Logarithmic => String::new(),
        }
    }

    fn range(self, places: impl Iterator<Item = f64> + Clone) -> Range<f64> {
        let largest = places.clone().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::Linear if largest > 0.0 => 0.0..largest * 1.1,
            Self::Logarithmic if largest.is_finite() => {
                places.fold(largest, f64::min).floor()..(largest + 0.1)
            }
            Self::Linear | Self::Logarithmic => 0.0..1.0,
        }
    }
}

/// A named line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Chart<'_> {
    /// Draws the chart into a file.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        static FONTS: Once = Once::new();
        FONTS.call_once(|| {
            // The fonts are embedded in the program; a test covers that they can be
            // loaded.
            let _never = register_font(FONT, FontStyle::Normal, notosans::REGULAR_TTF);
            let _never = register_font(FONT, FontStyle::Bold, notosans::BOLD_TTF);
        });
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        self.draw(path)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("drawing {}", path.display()))
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let area = BitMapBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, (FONT, 24))
            .margin(16)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(
                self.scale.range(self.points().map(|point| point.0)),
                self.scale.range(self.points().map(|point| point.1)),
            )?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style((FONT, 16))
            .axis_desc_style((FONT, 18))
            .x_label_formatter(&|place| self.scale.label(*place))
            .y_label_formatter(&|place| self.scale.label(*place))
            .light_line_style(WHITE)
            .draw()?;
        for (index, line @ Line { name, .. }) in self.lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let points: Vec<_> = self.places(line).collect();
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
            chart.draw_series(line)?.label(name).legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 20, y)], color.stroke_width(3))
            });
            if self.marks {
                chart.draw_series(PointSeries::of_element(
                    points.iter().copied(),
                    4,
                    color.filled(),
                    &|at, size, style| EmptyElement::at(at) + Circle::new((0, 0), size, style),
                ))?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font((FONT, 16))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }

    /// The positions of a line's points.
    fn places<'a>(&'a self, line: &'a Line) -> impl Iterator<Item = (f64, f64)> + Clone + 'a {
        let place = |(x, y): &(f64, f64)| (self.scale.place(*x), self.scale.place(*y));
        line.points.iter().map(place)
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
        self.lines.iter().flat_map(|line| self.places(line))
    }
}

/// A number without insignificant digits.
fn number(value: f64) -> String {
    let decimals = if value.fract().abs() < 1e-9 { 0 } else { 1 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_begins_at_a_power_of_ten_and_labels_only_those() {
        let places = [10_f64, 400.0, 9_000.0].map(|value| Scale::Logarithmic.place(value));
        let range = Scale::Logarithmic.range(places.into_iter());
        assert!((range.start - 1.0).abs() < 1e-9 && range.end > places[2], "{range:?}");
        let labels = [1.0, 1.5, 4.0].map(|place| Scale::Logarithmic.label(place));
        assert_eq!(labels, ["10", "", "10000"]);
        assert_eq!(Scale::Linear.range(std::iter::empty()), 0.0..1.0);
        assert_eq!(Scale::Linear.label(2.5), "2.5");
    }

    #[test]
    fn a_chart_is_a_png_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plots/a.png");
        let line = |name: &str, points| Line { name: name.to_owned(), points };
        let lines = vec![line("one", vec![(0.0, 1.0), (1.0, 2.5)]), line("none", vec![])];
        let mut chart =
            Chart { title: "t", x: "x", y: "y", lines, marks: true, scale: Scale::Linear };
        chart.write(&path).unwrap();
        chart.scale = Scale::Logarithmic;
        chart.lines[0].points.remove(0);
        chart.write(&path).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"\x89PNG"));
        let nowhere = directory.path().join("plots/a.png/b.png");
        let error = chart.write(&nowhere).unwrap_err();
        assert!(format!("{error:#}").contains("a.png"), "{error:#}");
    }
}
