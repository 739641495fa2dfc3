//! Results of a foundation under load, as text and as a plot. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::costs::{Costs, Part};
use crate::distribution::cumulative;
use crate::plot::{Chart, Line, Scale};
use crate::report::mebibytes;

/// Writing to a text does not fail.
const TO_TEXT: &str = "writing to a text does not fail";

/// Quantiles of durations in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Figures {
    pub(super) fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        // The smallest time that is not exceeded by this part of all.
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).copied().map(millis).unwrap_or_default()
        };
        Self { count: times.len(), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }

    fn row(&self, name: &str) -> String {
        let Self { count, p50, p90, p99, max } = self;
        format!("| {name} | {p50:.0} | {p90:.0} | {p99:.0} | {max:.0} | {count} |\n")
    }
}

/// The whole result.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cells: u32,
    pub(super) real: u32,
    pub(super) containers: u32,
    pub(super) groups: u32,
    pub(super) stores: u32,
    pub(super) database: String,
    pub(super) writer: String,
    /// All cells start at once.
    pub(super) start: Herd,
    /// Nothing changes.
    pub(super) idle: Costs,
    pub(super) changes: Changed,
    /// The stores are killed and start again.
    pub(super) restart: Herd,
    /// One change after that.
    pub(super) after_restart: Changed,
}

/// All cells connect.
#[derive(Debug, Serialize)]
pub(super) struct Herd {
    /// From the kill until the last store listens.
    pub(super) listening_ms: Option<f64>,
    pub(super) cells: usize,
    /// Simulated cells, from the first attempt of each to its state.
    pub(super) from_attempt_ms: Figures,
    /// All cells, from the begin of the start, or since the stores listen.
    pub(super) all_ms: Figures,
    /// Real cells: until the first rules are in the kernel, or they have their state again.
    pub(super) real_ms: Figures,
    /// Cells that got their state within one second.
    pub(super) most_in_a_second: usize,
    pub(super) failed_attempts: u32,
    /// Size of the states of all simulated cells.
    pub(super) state_bytes: u64,
    pub(super) costs: Costs,
}

/// Changes, one after another. Times are from the response to the writer.
#[derive(Debug, Serialize)]
pub(super) struct Changed {
    pub(super) count: usize,
    pub(super) interval_ms: f64,
    pub(super) elapsed_s: f64,
    /// Time of the response itself.
    pub(super) response_ms: Figures,
    /// Until the first packet passes, for each change and real cell, and on the last cell.
    pub(super) packet_ms: Figures,
    pub(super) packet_everywhere_ms: Figures,
    /// Packets that passed before their change was sent: a fault.
    pub(super) early_packets: usize,
    /// Changes and cells whose packets never passed.
    pub(super) missing_packets: usize,
    /// Until each simulated cell received the generation.
    pub(super) received_ms: Figures,
    /// Until the commit in the store.
    pub(super) committed_ms: Figures,
    /// From the commit until half of the cells have reported, in each change.
    pub(super) reported_median_ms: Figures,
    /// Until the last of all cells has reported, in each change.
    pub(super) reported_ms: Figures,
    /// Changes that a cell has not reported.
    pub(super) unreported: usize,
    /// Generations that the stores remember.
    pub(super) generations: usize,
    /// Watches that broke off.
    pub(super) lost_watches: usize,
    pub(super) costs: Costs,
}

/// A duration in milliseconds.
pub(super) fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1e3
}

impl Report {
    /// The results as tables.
    pub(super) fn text(&self) -> String {
        let Self { cells, real, containers, groups, stores, database, writer, .. } = self;
        let mut text = format!(
            "{cells} cells, {real} of them real, {containers} containers each; {groups} groups; \
             {stores} policy stores on {database}; writer: {writer}\n\n\
             | ms | p50 | p90 | p99 | max | count |\n|---|---|---|---|---|---|\n"
        );
        text += &self.changes.rows();
        text += &self.start.rows("start");
        text += &self.restart.rows("store restart");
        text += &self.after_restart.packet_ms.row("after it: change to packet");
        let Changed { early_packets, missing_packets, unreported, lost_watches, .. } =
            &self.changes;
        let later = &self.after_restart;
        write!(
            text,
            "\npackets before their change: {}; packets that never passed: {}; changes not \
             reported by all cells: {}; lost watches: {}\n",
            early_packets + later.early_packets,
            missing_packets + later.missing_packets,
            unreported + later.unreported,
            lost_watches + later.lost_watches,
        )
        .expect(TO_TEXT);
        text += "\n| phase | part | CPU ms, all | CPU ms, one: median, max | MiB: median, max \
                 | peak MiB: median, max |\n|---|---|---|---|---|---|\n";
        text += &rows(&format!("start, {:.1} s", self.start.costs.seconds), &self.start.costs, 1.0);
        text += &rows("idle, a second", &self.idle, self.idle.seconds);
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let count = self.changes.count.max(1) as f64;
        text += &rows("changes, a change", &self.changes.costs, count);
        let restart = format!("store restart, {:.1} s", self.restart.costs.seconds);
        text += &rows(&restart, &self.restart.costs, 1.0);
        text
    }

    /// Chart of the distribution of the times of changes.
    pub(super) fn chart(&self, packets: &[Duration], reported: &[Duration]) -> Chart<'static> {
        let line = |name: &str, times: &[Duration]| {
            let mut times: Vec<f64> = times.iter().copied().map(millis).collect();
            times.sort_by(f64::total_cmp);
            Line { name: name.to_owned(), points: cumulative(&times) }
        };
        let lines = vec![
            line(&format!("a packet passes, {} real cells", self.real), packets),
            line(&format!("the last of {} cells has reported", self.cells), reported),
        ];
        Chart {
            title: "From the response to a change",
            x: "ms",
            y: "% of the changes",
            lines,
            marks: false,
            scale: Scale::Linear,
        }
    }
}

impl Changed {
    fn rows(&self) -> String {
        self.packet_ms.row("change to packet, real cells")
            + &self.packet_everywhere_ms.row("change to packet on the last real cell")
            + &self.received_ms.row("change received, simulated cells")
            + &self.reported_ms.row("change reported by the last of all cells")
            + &self.committed_ms.row("change to commit in the store")
            + &self.response_ms.row("response to the change itself")
    }
}

impl Herd {
    fn rows(&self, name: &str) -> String {
        let Self { listening_ms, cells, most_in_a_second, failed_attempts, state_bytes, .. } = self;
        let size = mebibytes(*state_bytes);
        let listening = listening_ms
            .map_or(String::new(), |ms| format!(" (the stores listen {ms:.0} ms after the kill)"));
        self.all_ms.row(&format!(
            "{name}{listening}: {cells} cells have their state, {most_in_a_second} of them \
             within one second; {size:.1} MiB, {failed_attempts} failed attempts"
        )) + &self.from_attempt_ms.row(&format!("{name}: simulated cells, from their attempt"))
            + &self.real_ms.row(&format!("{name}: real cells"))
    }
}

fn rows(phase: &str, costs: &Costs, units: f64) -> String {
    let Costs { seconds, parts, tool_cores, machine_cores } = costs;
    let mut text: String = parts.iter().map(|part| row(phase, part, units)).collect();
    let tool = tool_cores * seconds * 1e3 / units;
    writeln!(
        text,
        "| {phase} | this tool; cores of the machine in use: {machine_cores:.2} | {tool:.1} | | | |"
    )
    .expect(TO_TEXT);
    text
}

fn row(phase: &str, part: &Part, units: f64) -> String {
    let Part { name, processes, cpu_ms, cpu_ms_each, resident_mib, peak_mib } = part;
    format!(
        "| {phase} | {name} ({processes}) | {:.1} | {:.2}, {:.2} | {:.1}, {:.1} | {:.1}, {:.1} |\n",
        cpu_ms / units,
        cpu_ms_each.median / units,
        cpu_ms_each.max / units,
        resident_mib.median,
        resident_mib.max,
        peak_mib.median,
        peak_mib.max,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_occurred() {
        let figures = Figures::of((1..=200).rev().map(Duration::from_millis));
        let expected = Figures { count: 200, p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 };
        assert_eq!(figures, expected);
        let none = Figures { count: 0, p50: 0.0, p90: 0.0, p99: 0.0, max: 0.0 };
        assert_eq!(Figures::of([]), none);
        assert_eq!(Figures::of([Duration::from_millis(7)]).p50, 7.0);
    }
}
