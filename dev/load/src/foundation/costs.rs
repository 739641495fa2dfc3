//! CPU and memory of the parts of a foundation in a phase.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::meter::{Reading, Usage};
use crate::report::mebibytes;

/// Usage of all parts at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    at: Instant,
    parts: Vec<(&'static str, Vec<Usage>)>,
    machine: Reading,
}

/// Cost of a phase.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Costs {
    pub(super) seconds: f64,
    pub(super) parts: Vec<Part>,
    /// Cores used by this tool: simulated cells, probing packets and the writer.
    pub(super) tool_cores: f64,
    /// Cores used by everything, with other work on the machine.
    pub(super) machine_cores: f64,
}

/// One kind of process.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) processes: usize,
    /// CPU milliseconds of all of them, and of one: median and maximum.
    pub(super) cpu_ms: f64,
    pub(super) cpu_ms_each: Middle,
    /// Memory of one at the end of the phase, and its peak since its start, in MiB.
    pub(super) resident_mib: Middle,
    pub(super) peak_mib: Middle,
}

/// Median and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Middle {
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Middle {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self { median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

impl Snapshot {
    pub(super) fn take(parts: Vec<(&'static str, Vec<Usage>)>) -> anyhow::Result<Self> {
        Ok(Self { at: Instant::now(), parts, machine: Reading::take(None)? })
    }

    /// Cost since `before`. Processes that were started since then count from their start.
    pub(super) fn since(&self, before: &Self) -> Costs {
        let elapsed = self.at - before.at;
        let cost = self.machine.since(&before.machine, elapsed, 1);
        let parts = self.parts.iter().filter(|(_, usages)| !usages.is_empty());
        let parts = parts.map(|(name, usages)| {
            let earlier = before.parts.iter().find(|(earlier, _)| earlier == name);
            part(name, usages, earlier.map_or(&[], |(_, usages)| usages))
        });
        Costs {
            seconds: elapsed.as_secs_f64(),
            parts: parts.collect(),
            tool_cores: cost.load_cores,
            machine_cores: cost.load_cores + cost.other_cores,
        }
    }
}

fn part(name: &str, now: &[Usage], before: &[Usage]) -> Part {
    let spent = now.iter().enumerate().map(|(index, usage)| {
        let earlier = before.get(index).map_or(Duration::ZERO, |usage| usage.cpu);
        // A process that was started again has used less.
        usage.cpu.checked_sub(earlier).unwrap_or(usage.cpu).as_secs_f64() * 1e3
    });
    Part {
        name: name.to_owned(),
        processes: now.len(),
        cpu_ms: spent.clone().sum(),
        cpu_ms_each: Middle::of(spent),
        resident_mib: Middle::of(now.iter().map(|usage| mebibytes(usage.resident))),
        peak_mib: Middle::of(now.iter().map(|usage| mebibytes(usage.peak))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_costs_what_it_used_since_then() {
        let usage = |seconds, mib: u64| Usage {
            cpu: Duration::from_secs(seconds),
            resident: mib << 20,
            peak: (mib + 1) << 20,
        };
        let part = part(
            "agent",
            &[usage(5, 10), usage(9, 30), usage(2, 20)],
            &[usage(4, 1), usage(6, 1), usage(7, 1)],
        );
        assert!((part.cpu_ms - 6_000.0).abs() < 1e-6, "{part:?}");
        assert_eq!(part.cpu_ms_each, Middle { median: 2_000.0, max: 3_000.0 });
        assert_eq!(part.resident_mib, Middle { median: 20.0, max: 30.0 });
        assert_eq!(part.peak_mib, Middle { median: 21.0, max: 31.0 });
    }
}
