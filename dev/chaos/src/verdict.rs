//! The verdict on a history: counts, and violations.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, anyhow, bail};

use crate::check::{self, Counts, Violation};
use crate::history::{self, Begin, Event, Moment};
use crate::progress;

/// How many violations are printed; all are in the file `violations`.
const MOST_VIOLATIONS: usize = 40;
/// The law that holds even if a failover loses acknowledged commits.
const LAW_OF_TOKENS: u8 = 2;

/// The verdict on a history.
#[derive(Debug)]
pub(crate) struct Verdict {
    begin: Begin,
    /// When the first fault could begin.
    started: Moment,
    counts: Counts,
    violations: Vec<Violation>,
    /// Contradictions that a failover explains that loses commits.
    explained: Vec<Violation>,
}

impl Verdict {
    /// Judges a history.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let entries = history::parse(&text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        let found = check::check(&entries).map_err(anyhow::Error::msg)?;
        let begin = check::begin(&entries).map_err(anyhow::Error::msg)?.clone();
        let (violations, explained) = found
            .into_iter()
            .partition(|violation| !begin.loses_commits || violation.law == LAW_OF_TOKENS);
        let started = entries.iter().find(|entry| matches!(entry.event, Event::Trouble));
        let started = started.map(|entry| entry.at).unwrap_or_default();
        let counts = check::count(&entries);
        Ok(Self { begin, started, counts, violations, explained })
    }

    /// The moment from which the times of the faults count, and that of the first violation, with
    /// its law.
    pub(crate) fn first(&self) -> Option<(Moment, Moment, u8)> {
        self.violations.first().map(|violation| (self.started, violation.at, violation.law))
    }

    /// Whether this law was violated.
    pub(crate) fn has(&self, law: u8) -> bool {
        self.violations.iter().any(|violation| violation.law == law)
    }

    /// Prints the counts and the violations.
    ///
    /// # Errors
    /// There are violations; all are in the file `violations` beside the history.
    pub(crate) fn print(&self, path: &Path) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        for (kind, count) in &self.counts.kinds {
            writeln!(out, "{count:9} {kind}")?;
        }
        if self.begin.loses_commits {
            writeln!(out, "{:9} contradictions explained by lost commits", self.explained.len())?;
        }
        writeln!(out, "{:9} violations", self.violations.len())?;
        out.flush()?;
        write(&path.with_file_name("explained"), &self.explained)?;
        write(&path.with_file_name("violations"), &self.violations)?;
        if self.violations.is_empty() {
            return Ok(());
        }
        self.violations
            .iter()
            .take(MOST_VIOLATIONS)
            .for_each(|violation| progress(&line(violation)));
        let (count, seed) = (self.violations.len(), self.begin.seed);
        bail!("{count} violations with seed {seed}; history and logs: {}", path.display())
    }
}

fn line(violation: &Violation) -> String {
    let Violation { law, at, what } = violation;
    format!("law {law} at {:.3} s: {what}", at.seconds())
}

/// Writes the lines, if there are any.
fn write(file: &Path, violations: &[Violation]) -> std::io::Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = violations.iter().map(line).collect();
    std::fs::write(file, lines.join("\n") + "\n")
}
