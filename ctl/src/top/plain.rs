//! The output without a terminal: a status line each interval, and a line for each change
//! that all cells enforce.

use std::{process::ExitCode, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    lines,
    model::{Data, Message, Model, Moment},
};
use crate::report;

/// Prints lines until interrupted.
pub(crate) async fn follow(
    mut model: Model,
    mut messages: mpsc::Receiver<Message>,
    every: Duration,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut printed, mut is_due) = (Printed::default(), false);
    loop {
        tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { return Ok(ExitCode::SUCCESS) };
                model.update(message, start.elapsed());
            }
            _ = ticks.tick() => is_due = true,
        }
        let now = start.elapsed();
        for line in printed.changes(model.data(), now) {
            report::line(&line)?;
        }
        if is_due && model.data().has_heard_all() {
            report::line(&lines::status_line(model.data(), now))?;
            is_due = false;
        }
    }
}

/// Prints one status line after the last message; the exit status is 1 if the policy store does not answer.
pub(crate) async fn once(
    mut model: Model,
    mut messages: mpsc::Receiver<Message>,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    while let Some(message) = messages.recv().await {
        model.update(message, start.elapsed());
    }
    report::line(&lines::status_line(model.data(), start.elapsed()))?;
    let is_known = model.data().store().is_some();
    Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The changes that have been printed, or that are older than this program.
#[derive(Debug, Default)]
struct Printed {
    newest: u64,
}

impl Printed {
    /// Lines of the changes that became complete.
    fn changes(&mut self, data: &Data, now: Moment) -> Vec<String> {
        let mut lines = Vec::new();
        for change in data.changes().rev() {
            if change.generation <= self.newest || !change.is_complete() {
                continue;
            }
            // Without the store's clock it is unknown whether the change is new.
            let Some(age) = data.age(change.committed_at, now) else { continue };
            self.newest = change.generation;
            if age <= now {
                lines.push(lines::change_line(change));
            }
        }
        lines
    }
}
