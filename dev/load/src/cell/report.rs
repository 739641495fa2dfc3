//! The figures of a cell as text and as charts. Pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::packets::{Latency, median};
use super::plane::{Plane, Raw};
use super::rig::Applied;
use crate::plot::{Chart, Line, Scale};
use crate::report::mebibytes;

/// All results.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) work: Vec<Work>,
    pub(super) packets: Vec<Packets>,
}

/// Duration of a change, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Took {
    /// From the cause, which is the start of the process or the store's response to the
    /// writer, until the change was in the kernel.
    all: f64,
    /// The part of it since the agent's decision.
    work: f64,
}

/// Cost of an idle agent.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Idle {
    /// CPU time per read of the kernel, including the work between two reads.
    pub(super) ms_a_look: f64,
    pub(super) no_process: bool,
}

/// Results of one cell.
#[derive(Debug, Serialize)]
pub(super) struct Work {
    plane: String,
    rules: u32,
    first: Took,
    change: Took,
    container_ms: f64,
    container_meanwhile_ms: f64,
    idle: Idle,
    peak_mib: f64,
    raw_first_ms: f64,
    raw_again_ms: f64,
}

/// Latency of packets through one set of rules.
#[derive(Debug, Serialize)]
pub(super) struct Packets {
    pub(super) rules: String,
    #[serde(serialize_with = "name")]
    pub(super) plane: Option<Plane>,
    /// Number of rules in the chart; 0: not in the chart.
    pub(super) count: u32,
    pub(super) latency: Latency,
}

fn name<S: serde::Serializer>(plane: &Option<Plane>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&named(*plane))
}

fn named(plane: Option<Plane>) -> String {
    plane.map_or("none".to_owned(), |plane| plane.to_string())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Took {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub(super) fn between(cause: Timestamp, applied: Applied) -> Self {
        // An agent may have a change before the writer has its response.
        let all = Duration::try_from(applied.at.duration_since(cause)).unwrap_or_default();
        Self { all: millis(all), work: applied.milliseconds as f64 }
    }

    /// The median of each figure.
    pub(super) fn median(all: &[Self]) -> anyhow::Result<Self> {
        let of = |figure: fn(&Self) -> f64| median(all.iter().map(figure).collect());
        Ok(Self { all: of(|took| took.all)?, work: of(|took| took.work)? })
    }
}

/// Other figures of a cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    pub(super) container_ms: f64,
    pub(super) container_meanwhile_ms: f64,
    pub(super) idle: Idle,
    /// Peak memory in bytes.
    pub(super) peak: u64,
    pub(super) raw: Raw,
}

impl Work {
    pub(super) fn new(plane: Plane, rules: u32, first: Took, change: Took, rest: Rest) -> Self {
        let Rest { container_ms, container_meanwhile_ms, idle, peak, raw } = rest;
        Self {
            plane: plane.to_string(),
            rules,
            first,
            change,
            container_ms,
            container_meanwhile_ms,
            idle,
            peak_mib: mebibytes(peak),
            raw_first_ms: millis(raw.first),
            raw_again_ms: millis(raw.again),
        }
    }

    fn row(&self) -> String {
        let Self { plane, rules, first, change, container_ms, container_meanwhile_ms, .. } = self;
        let Self { idle, peak_mib, raw_first_ms, raw_again_ms, .. } = self;
        let processes = if idle.no_process { "none" } else { "some" };
        format!(
            "| {plane} | {rules} | {:.0} ({:.0}) | {raw_first_ms:.0} | {:.0} ({:.0}) | \
             {raw_again_ms:.0} | {container_ms:.0} | {container_meanwhile_ms:.0} | {:.2}, \
             {processes} | {peak_mib:.0} |\n",
            first.all, first.work, change.all, change.work, idle.ms_a_look
        )
    }
}

impl Packets {
    fn row(&self) -> String {
        let Self { rules, plane, count: _, latency } = self;
        let Latency { unanswered, flow, connect, established } = latency;
        let plane = named(*plane);
        format!(
            "| {plane} | {rules} | {unanswered:.2} | {flow:.2} | {connect:.1} | {established:.1} |\n"
        )
    }
}

impl Report {
    /// The results as two tables.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if !self.work.is_empty() {
            text += "ms; in brackets what the agent worked\n\n\
                     | plane | rules | first apply | raw | one rule for all | raw | one container | \
                     meanwhile | idle: CPU a look, processes | peak MiB |\n\
                     |---|---|---|---|---|---|---|---|---|---|\n";
            text.extend(self.work.iter().map(Work::row));
        }
        if !self.packets.is_empty() {
            text += "\nus\n\n| plane | rules | unanswered | flow | connect | established |\n\
                     |---|---|---|---|---|---|\n";
            text.extend(self.packets.iter().map(Packets::row));
        }
        text
    }

    /// Chart of durations over rules.
    pub(super) fn work_chart(&self) -> Chart<'static> {
        let mut lines = Vec::new();
        let mut planes: Vec<&str> = self.work.iter().map(|work| work.plane.as_str()).collect();
        planes.dedup();
        for plane in planes {
            let of = |what: &str, figure: fn(&Work) -> f64| Line {
                name: format!("{plane}: {what}"),
                points: points(self.work.iter().filter(|work| work.plane == plane), figure),
            };
            lines.push(of("first apply", |work| work.first.all));
            lines.push(of("one rule for all", |work| work.change.all));
            lines.push(of("raw first apply", |work| work.raw_first_ms));
        }
        Chart {
            title: "Until the rules of all containers are in the kernel",
            x: "rules of each container",
            y: "ms",
            lines,
            marks: true,
            scale: Scale::Logarithmic,
        }
    }

    /// Chart of new connections over rules.
    pub(super) fn packets_chart(&self) -> Chart<'static> {
        let mut planes: Vec<Plane> = self.packets.iter().filter_map(|line| line.plane).collect();
        planes.dedup();
        let mut lines = Vec::new();
        for plane in planes {
            let counted = || {
                let of_plane = self.packets.iter().filter(move |line| line.plane == Some(plane));
                of_plane.filter(|line| line.count > 0)
            };
            let of = |what: &str, figure: fn(&Latency) -> f64| Line {
                name: format!("{plane}: {what}"),
                points: counted()
                    .map(|line| (f64::from(line.count), figure(&line.latency)))
                    .collect(),
            };
            lines.push(of("new", |latency| latency.unanswered));
            lines.push(of("established", |latency| latency.established));
        }
        Chart {
            title: "A packet from a container through the cell",
            x: "rules",
            y: "us",
            lines,
            marks: true,
            scale: Scale::Logarithmic,
        }
    }
}

fn points<'a>(works: impl Iterator<Item = &'a Work>, figure: fn(&Work) -> f64) -> Vec<(f64, f64)> {
    works.map(|work| (f64::from(work.rules), figure(work).max(0.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let took = Took { all: 30.0, work: 20.0 };
        let raw = Raw { first: Duration::from_millis(15), again: Duration::from_millis(9) };
        let idle = Idle { ms_a_look: 0.25, no_process: true };
        let rest =
            Rest { container_ms: 11.0, container_meanwhile_ms: 12.0, idle, peak: 32 << 20, raw };
        let work = Work::new(Plane::Nftables, 50, took, took, rest);
        let latency = Latency { unanswered: 5.0, flow: 12.0, connect: 37.0, established: 16.0 };
        let packets =
            |plane, count: u32| Packets { rules: count.to_string(), plane, count, latency };
        let packets = vec![packets(None, 0), packets(Some(Plane::Nftables), 10)];
        Report { work: vec![work], packets }
    }

    #[test]
    fn every_figure_has_its_column() {
        let text = report().text();
        for row in [
            "| nftables | 50 | 30 (20) | 15 | 30 (20) | 9 | 11 | 12 | 0.25, none | 32 |\n",
            "| none | 0 | 5.00 | 12.00 | 37.0 | 16.0 |\n",
            "| nftables | 10 | 5.00 | 12.00 | 37.0 | 16.0 |\n",
        ] {
            assert!(text.contains(row), "{text}");
        }
    }

    #[test]
    fn charts_omit_values_without_a_logarithm() {
        let report = report();
        for chart in [report.work_chart(), report.packets_chart()] {
            assert!(!chart.lines.is_empty());
            let points = chart.lines.iter().flat_map(|line| &line.points);
            assert!(points.clone().count() > 0);
            assert!(points.into_iter().all(|(x, y)| *x > 0.0 && *y > 0.0), "{chart:?}");
        }
    }
}
