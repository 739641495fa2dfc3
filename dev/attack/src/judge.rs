//! What must hold in each row of the table. Pure.

use super::honest::Figures;
use super::measure::Usage;

/// Descriptors that differ without an attack: connections of the honest client, and files of the
/// database.
const FILES: usize = 8;
const MIB: u64 = 1 << 20;

/// The bounds of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    /// Below this, the 99th percentile is never too high; milliseconds. `None`: it is not judged.
    pub(crate) floor: Option<f64>,
    /// Growth of the memory during the attack, in bytes.
    pub(crate) memory: u64,
}

/// One attack on one door.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) door: String,
    pub(crate) attack: String,
    /// Before, during and after.
    pub(crate) honest: [Figures; 3],
    pub(crate) usage: [Usage; 3],
    /// Most descriptors during the attack.
    pub(crate) files: usize,
    pub(crate) got: String,
    /// What the attacker must not get, or why the row has no figures.
    pub(crate) breaches: Vec<String>,
}

impl Row {
    /// Everything in the row that does not hold.
    pub(crate) fn problems(&self, bounds: &Bounds) -> Vec<String> {
        let mut problems = self.breaches.clone();
        let [before, during, after] = &self.honest;
        for (name, period) in [("before", before), ("during", during), ("after", after)] {
            if period.failures > 0 {
                let failure = period.failure.as_deref().unwrap_or_default();
                problems.push(format!("{} calls failed {name}: {failure}", period.failures));
            } else if period.calls == 0 {
                problems.push(format!("no call {name}"));
            }
        }
        if let Some(floor) = bounds.floor {
            let most = (2.0 * before.p99).max(floor);
            for (name, period) in [("during", during), ("after", after)] {
                if period.p99 > most {
                    problems.push(format!("p99 {name} above {most:.1} ms"));
                }
            }
        }
        problems.extend(self.usage_problems(bounds));
        problems
    }

    fn usage_problems(&self, bounds: &Bounds) -> Vec<String> {
        let [before, during, after] = &self.usage;
        let mut problems = Vec::new();
        let grown = during.peak.saturating_sub(before.memory);
        if grown > bounds.memory {
            let most = bounds.memory / MIB;
            problems.push(format!("memory grew by {} MiB, at most {most} stated", grown / MIB));
        }
        if after.memory > before.memory + left_over(bounds) {
            let (after, before) = (after.memory / MIB, before.memory / MIB);
            problems.push(format!("memory after: {after} MiB, {before} before"));
        }
        if after.files > before.files + FILES {
            problems.push(format!("{} files after, {} before", after.files, before.files));
        }
        problems
    }

    /// Whether memory and files are as before.
    pub(crate) fn is_settled(before: &Usage, after: &Usage, bounds: &Bounds) -> bool {
        after.memory <= before.memory + left_over(bounds) && after.files <= before.files + FILES
    }
}

/// Memory that an allocator may keep for later.
fn left_over(bounds: &Bounds) -> u64 {
    bounds.memory / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { floor: Some(5.0), memory: 100 * MIB };

    fn row() -> Row {
        let figures = Figures { calls: 100, p50: 1.0, p99: 3.0, max: 4.0, ..Figures::default() };
        let usage = Usage { memory: 50 * MIB, peak: 50 * MIB, files: 20 };
        Row { honest: [(); 3].map(|()| figures.clone()), usage: [usage; 3], ..Row::default() }
    }

    fn problems(change: impl FnOnce(&mut Row)) -> Vec<String> {
        let mut row = row();
        change(&mut row);
        row.problems(&BOUNDS)
    }

    #[test]
    fn a_row_without_harm_has_no_problem() {
        assert_eq!(problems(|_| {}), [""; 0]);
        // The floor, and the double.
        assert_eq!(problems(|row| row.honest[1].p99 = 5.0), [""; 0]);
        assert_eq!(problems(|row| row.honest[1].p99 = 6.0), [""; 0]);
    }

    #[test]
    fn each_harm_is_a_problem() {
        assert_eq!(problems(|row| row.honest[1].p99 = 6.1), ["p99 during above 6.0 ms"]);
        assert_eq!(problems(|row| row.honest[2].p99 = 6.1), ["p99 after above 6.0 ms"]);
        let failed = problems(|row| {
            row.honest[1].failures = 1;
            row.honest[1].failure = Some("gone".to_owned());
        });
        assert_eq!(failed, ["1 calls failed during: gone"]);
        assert_eq!(problems(|row| row.honest[2].calls = 0), ["no call after"]);
        assert_eq!(
            problems(|row| row.usage[1].peak = 151 * MIB),
            ["memory grew by 101 MiB, at most 100 stated"]
        );
        assert_eq!(
            problems(|row| row.usage[2].memory = 76 * MIB),
            ["memory after: 76 MiB, 50 before"]
        );
        assert_eq!(problems(|row| row.usage[2].files = 29), ["29 files after, 20 before"]);
        assert_eq!(problems(|row| row.breaches.push("in".to_owned())), ["in"]);
    }

    #[test]
    fn without_a_floor_the_latency_is_not_judged() {
        let mut row = row();
        row.honest[1].p99 = 100.0;
        assert_eq!(row.problems(&Bounds { floor: None, ..BOUNDS }), [""; 0]);
    }
}
