//! The pictures of a run, as SVG: pause against dirty pages, and latency around a failover.

use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// One line of a chart.
pub struct Series<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its points, in x order.
    pub points: &'a [(f64, f64)],
}

/// What a chart shows besides its lines.
pub struct Labels<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// Below the x axis, with unit.
    pub x: &'a str,
    /// Beside the y axis, with unit.
    pub y: &'a str,
    /// How both axes are divided.
    pub scale: Scale,
}

/// How the axes are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, y from 0.
    Linear,
    /// By factors, around the data; every value must be above 0.
    Log,
}

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("drawing {path}: {reason}")]
pub struct ChartError {
    path: String,
    reason: String,
}

const SIZE: (u32, u32) = (900, 480);
const COLOURS: [RGBColor; 4] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

/// Draws lines with their points to an SVG file. Nothing is drawn outside the data's own range, except that y starts at 0 on even axes.
///
/// # Errors
/// When there is nothing to draw or the file cannot be written.
pub fn lines(path: &Path, labels: &Labels<'_>, series: &[Series<'_>]) -> Result<(), ChartError> {
    let wrap = |reason: String| ChartError { path: path.display().to_string(), reason };
    let all = || series.iter().flat_map(|s| s.points.iter().copied());
    let x_min = all().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let x_max = all().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
    let y_min = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let y_max = all().map(|p| p.1).fold(0.0, f64::max);
    if !(x_min.is_finite() && x_max > x_min && y_max > 0.0) {
        return Err(wrap("there are no points to draw".to_owned()));
    }
    if labels.scale == Scale::Log && (x_min <= 0.0 || y_min <= 0.0) {
        return Err(wrap("a value that is not above 0 has no place on axes divided by factors".to_owned()));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| wrap(e.to_string()))?;
    }
    let drawn = match labels.scale {
        Scale::Linear => draw(path, labels, series, x_min..x_max, 0.0..y_max * 1.08),
        Scale::Log => draw(path, labels, series, (x_min..x_max).log_scale(), (y_min / 1.3..y_max * 1.3).log_scale()),
    };
    drawn.map_err(|e| wrap(e.to_string()))
}

fn draw<X, Y>(path: &Path, labels: &Labels<'_>, series: &[Series<'_>], x: X, y: Y) -> Result<(), Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(labels.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart.configure_mesh().x_desc(labels.x).y_desc(labels.y).light_line_style(WHITE).draw()?;
    for (index, line) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(2))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'_> = Labels { title: "t", x: "x", y: "y", scale: Scale::Linear };

    #[test]
    fn a_chart_is_svg_with_its_legend() {
        let path = std::env::temp_dir().join(format!("lockstep-chart-{}.svg", std::process::id()));

        lines(&path, &LABELS, &[Series { name: "pause", points: &[(1.0, 2.0), (3.0, 4.0)] }]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();

        assert!(svg.starts_with("<svg") && svg.contains("pause"));
    }

    #[test]
    fn a_log_chart_refuses_what_has_no_logarithm() {
        let labels = Labels { scale: Scale::Log, ..LABELS };
        assert!(lines(Path::new("unused.svg"), &labels, &[Series { name: "pause", points: &[(1.0, 2.0), (3.0, 0.0)] }]).is_err());
    }

    #[test]
    fn a_chart_without_points_is_an_error() {
        assert!(lines(Path::new("unused.svg"), &LABELS, &[]).is_err());
    }
}
