//! What each step lost.

use std::collections::HashMap;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use tokio::time::Instant;

use crate::database::Generations;
use crate::ledger::{At, Fault, Ledger, Period};
use crate::packets::{Fate, Goal, Packet, Rules};
use crate::starts::Outcome;
use crate::versions::{Expected, Versions};
use crate::watchers::Watched;

/// A step of the swap, with the time under load after it.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// Longest time that a watcher may lack what the store has.
const WATCHER_LIMIT: Duration = Duration::from_secs(5);

/// Everything that was recorded.
pub(crate) struct Records<'a> {
    pub(crate) steps: &'a [Step],
    pub(crate) ledger: &'a Ledger,
    pub(crate) generations: &'a Generations,
    pub(crate) watched: &'a [Watched],
    /// The history of the changing group of each space.
    pub(crate) histories: &'a [Versions],
    /// The space of each container.
    pub(crate) spaces: &'a [usize],
    pub(crate) packets: &'a [Packet],
    pub(crate) starts: &'a [At<Outcome>],
    pub(crate) rules: Rules,
}

/// By container and port.
type Opened = HashMap<(usize, usize), Instant>;

/// The figures of one step.
#[derive(Debug)]
struct Row {
    step: String,
    seconds: f64,
    locks: Period,
    watcher_lag: Option<Duration>,
    changes: usize,
    in_force: usize,
    slowest: Option<Duration>,
    packets: usize,
    judged: usize,
    wrong: Vec<String>,
    starts: usize,
    refused: Vec<String>,
}

/// The table, and what must not have happened.
#[derive(Debug)]
pub(crate) struct Report {
    /// Markdown.
    pub(crate) table: String,
    pub(crate) faults: Vec<String>,
}

const HEADER: [&str; 16] = [
    "step",
    "s",
    "lock calls",
    "repeated",
    "locks lost",
    "held twice",
    "presences lost",
    "token faults, stuck",
    "watcher behind, max s",
    "changes",
    "in force",
    "slowest, s",
    "packets (judged)",
    "wrong",
    "container syncs",
    "refused",
];

impl Records<'_> {
    pub(crate) fn report(&self) -> Report {
        let opened = self.opened();
        let rows: Vec<Row> = self.steps.iter().map(|step| self.row(step, &opened)).collect();
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(HEADER);
        for row in &rows {
            table.add_row(row.cells());
        }
        table.add_row(total(&rows));
        let faults = rows.iter().flat_map(|row| row.faults(self.rules.window)).collect();
        Report { table: format!("{table}\n"), faults }
    }

    fn row(&self, step: &Step, opened: &Opened) -> Row {
        let Step { name, began, ended } = step.clone();
        let packets =
            self.packets.iter().filter(|packet| began <= packet.sent && packet.sent < ended);
        let packets: Vec<&Packet> = packets.collect();
        let history = |packet: &Packet| &self.histories[self.spaces[packet.container]];
        let judged = packets
            .iter()
            .filter(|packet| packet.expected(history(packet), self.rules) != Expected::Either);
        let wrong = packets.iter().filter(|packet| packet.is_wrong(history(packet), self.rules));
        let seen = self.generations.seen();
        let lags = self.watched.iter().filter_map(|watched| watched.behind(&seen, began, ended));
        let changes = self.changes(opened, began, ended);
        let starts = self.starts.iter().filter(|start| began <= start.at && start.at < ended);
        let starts: Vec<&Outcome> = starts.map(|start| &start.what).collect();
        let in_force: Vec<Duration> = changes.iter().filter_map(|change| *change).collect();
        Row {
            step: name,
            seconds: (ended - began).as_secs_f64(),
            locks: self.ledger.period(began, ended),
            watcher_lag: lags.max(),
            changes: changes.len(),
            in_force: in_force.len(),
            slowest: in_force.into_iter().max(),
            packets: packets.len(),
            judged: judged.count(),
            wrong: wrong.map(|packet| self.describe(packet, began)).collect(),
            starts: starts.len(),
            refused: starts.into_iter().filter_map(|start| start.clone().err()).collect(),
        }
    }

    /// When a packet of each container first passed to each port.
    fn opened(&self) -> Opened {
        let mut opened = HashMap::new();
        for packet in self.packets.iter().filter(|packet| packet.fate == Fate::Passed) {
            if let Goal::Port(number) = packet.goal {
                opened.entry((packet.container, number)).or_insert(packet.done);
            }
        }
        opened
    }

    /// The changes that were confirmed in a period: the time until the last container of the
    /// space had them in force, if all did.
    fn changes(&self, opened: &Opened, from: Instant, to: Instant) -> Vec<Option<Duration>> {
        let mut all = Vec::new();
        for (space, history) in self.histories.iter().enumerate() {
            // Version 0 was there before.
            for (version, change) in history.changes.iter().enumerate().skip(1) {
                let Some(confirmed) = change.confirmed.filter(|at| from <= *at && *at < to) else {
                    continue;
                };
                let number = version + self.rules.width - 1;
                let containers = (0..self.spaces.len()).filter(|at| self.spaces[*at] == space);
                let passed = containers.map(|container| opened.get(&(container, number)));
                let last = passed.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
                all.push(last.map(|at| at.saturating_duration_since(confirmed)));
            }
        }
        all
    }

    fn describe(&self, packet: &Packet, began: Instant) -> String {
        let Packet { container, sent, done, goal, fate } = packet;
        let after = sent.saturating_duration_since(began);
        let took = done.saturating_duration_since(*sent);
        format!(
            "container {container}, {goal:?}: {fate:?} {after:.1?} into the step, took {took:.1?}"
        )
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let Self { step, locks, packets, judged, .. } = self;
        let others = locks.count(&Fault::Token) + locks.count(&Fault::Stuck);
        vec![
            step.clone(),
            format!("{:.1}", self.seconds),
            locks.ok.to_string(),
            locks.failed.to_string(),
            locks.count(&Fault::LostLock).to_string(),
            locks.count(&Fault::HeldTwice).to_string(),
            locks.count(&Fault::LostPresence).to_string(),
            others.to_string(),
            seconds(self.watcher_lag),
            self.changes.to_string(),
            self.in_force.to_string(),
            seconds(self.slowest),
            format!("{packets} ({judged})"),
            self.wrong.len().to_string(),
            self.starts.to_string(),
            self.refused.len().to_string(),
        ]
    }

    fn faults(&self, window: Duration) -> Vec<String> {
        let step = &self.step;
        let mut faults: Vec<String> = self
            .locks
            .faults
            .iter()
            .map(|(fault, why)| format!("{step}: {fault:?}: {why}"))
            .collect();
        if self.watcher_lag.is_some_and(|lag| lag > WATCHER_LIMIT) {
            faults.push(format!("{step}: a watcher was {} s behind", seconds(self.watcher_lag)));
        }
        if self.in_force < self.changes {
            let (changes, in_force) = (self.changes, self.in_force);
            faults.push(format!("{step}: {in_force} of {changes} changes came into force"));
        }
        if self.slowest.is_some_and(|slowest| slowest > window) {
            faults.push(format!("{step}: a change took {} s", seconds(self.slowest)));
        }
        faults.extend(self.refused.iter().map(|why| format!("{step}: a container: {why}")));
        faults.extend(self.wrong.iter().map(|packet| format!("{step}: wrong packet: {packet}")));
        faults
    }
}

fn total(rows: &[Row]) -> Vec<String> {
    let sum = |value: fn(&Row) -> usize| rows.iter().map(value).sum::<usize>().to_string();
    let (packets, judged) = (sum(|row| row.packets), sum(|row| row.judged));
    vec![
        "**all**".to_owned(),
        format!("{:.1}", rows.iter().map(|row| row.seconds).sum::<f64>()),
        sum(|row| row.locks.ok),
        sum(|row| row.locks.failed),
        sum(|row| row.locks.count(&Fault::LostLock)),
        sum(|row| row.locks.count(&Fault::HeldTwice)),
        sum(|row| row.locks.count(&Fault::LostPresence)),
        sum(|row| row.locks.count(&Fault::Token) + row.locks.count(&Fault::Stuck)),
        seconds(rows.iter().filter_map(|row| row.watcher_lag).max()),
        sum(|row| row.changes),
        sum(|row| row.in_force),
        seconds(rows.iter().filter_map(|row| row.slowest).max()),
        format!("{packets} ({judged})"),
        sum(|row| row.wrong.len()),
        sum(|row| row.starts),
        sum(|row| row.refused.len()),
    ]
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "–".to_owned(), |time| format!("{:.2}", time.as_secs_f64()))
}
