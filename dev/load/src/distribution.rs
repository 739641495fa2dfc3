//! Plots the distribution of recorded times.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use super::plot::{Chart, Line, Scale};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// JSON file with an array of milliseconds, as `portcullis-dev cluster --times` writes it
    times: PathBuf,
    /// PNG file for the plot
    plot: PathBuf,
    /// Title of the plot
    #[arg(
        long,
        default_value = "From the Cloud Controller's response until a packet passes or is rejected"
    )]
    title: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.times;
    let read =
        || -> anyhow::Result<Vec<f64>> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let mut times = read().with_context(|| format!("reading {}", path.display()))?;
    ensure!(!times.is_empty(), "{}: has no times", path.display());
    times.sort_unstable_by(f64::total_cmp);
    let line = Line { name: format!("{} changes", times.len()), points: cumulative(&times) };
    let chart = Chart {
        title: &arguments.title,
        x: "ms",
        y: "% of the changes",
        lines: vec![line],
        marks: true,
        scale: Scale::Linear,
    };
    chart.write(&arguments.plot)
}

/// For each time the percentage of times that are not longer.
#[expect(clippy::cast_precision_loss, reason = "no plot has 2^52 points")]
pub(super) fn cumulative(sorted: &[f64]) -> Vec<(f64, f64)> {
    let count = sorted.len() as f64;
    let points = sorted.iter().enumerate();
    points.map(|(index, time)| (*time, (index + 1) as f64 * 100.0 / count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_point_is_all_of_them() {
        assert_eq!(cumulative(&[1.0, 5.0]), [(1.0, 50.0), (5.0, 100.0)]);
    }
}
