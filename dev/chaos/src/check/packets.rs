//! Laws 4 to 9, as far as packets and the reports of the cells tell.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::versions::{Reason, Versions};
use crate::history::{Begin, Bounds, Entry, Event, Fate, Goal, Group, Moment, Phase};

/// A packet that contradicts all versions in force is explained by staleness if one of that many
/// versions before allows it, or denies it.
const STALE: u32 = 8;

/// A container, as the history knows it.
#[derive(Debug)]
struct Life<'a> {
    cell: &'a str,
    group: Group,
    ready: Option<Moment>,
    gone: Option<Moment>,
}

/// One packet.
#[derive(Debug, Clone, Copy)]
struct Packet<'a> {
    container: &'a str,
    goal: Goal,
    sent: Moment,
    done: Moment,
    fate: Fate,
}

struct Judge<'a> {
    versions: Versions<'a>,
    containers: BTreeMap<&'a str, Life<'a>>,
    /// When the rules of a cell may be missing.
    flushed: BTreeMap<&'a str, Vec<(Moment, Moment)>>,
}

pub(super) fn check(history: &[Entry], begin: &Begin) -> Vec<Violation> {
    let judge = Judge {
        versions: Versions::read(history, begin.bounds),
        containers: containers(history),
        flushed: flushed(history, begin.bounds),
    };
    let mut violations: Vec<_> =
        history.iter().filter_map(|entry| judge.packet(&packet(entry)?)).collect();
    violations.extend(judge.settled(history, begin));
    violations.extend(isolated(history, begin));
    violations
}

fn packet(entry: &Entry) -> Option<Packet<'_>> {
    let Event::Packet { container, goal, sent, fate } = &entry.event else { return None };
    Some(Packet { container, goal: *goal, sent: *sent, done: entry.at, fate: *fate })
}

fn containers(history: &[Entry]) -> BTreeMap<&str, Life<'_>> {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for entry in history {
        let Event::Container { name, cell, group, phase } = &entry.event else { continue };
        let fresh = || Life { cell, group: *group, ready: None, gone: None };
        let life = lives.entry(name).or_insert_with(fresh);
        match phase {
            Phase::Added => {}
            Phase::Ready => life.ready = Some(entry.at),
            Phase::Gone => life.gone = Some(entry.at),
        }
    }
    lives
}

fn flushed(history: &[Entry], bounds: Bounds) -> BTreeMap<&str, Vec<(Moment, Moment)>> {
    let mut times: BTreeMap<&str, Vec<(Moment, Moment)>> = BTreeMap::new();
    for entry in history {
        let Event::Fault { begins, flushed: Some(cell), .. } = &entry.event else { continue };
        let times = times.entry(cell).or_default();
        if *begins {
            times.push((entry.at, Moment(u64::MAX)));
        } else if let Some((_, end)) = times.iter_mut().find(|(_, end)| *end == Moment(u64::MAX)) {
            *end = entry.at.after(bounds.heal());
        }
    }
    times
}

impl Judge<'_> {
    fn packet(&self, packet: &Packet<'_>) -> Option<Violation> {
        let Packet { container, goal, sent, done, fate } = *packet;
        let life = self.containers.get(container)?;
        let mut flushed = self.flushed.get(life.cell).into_iter().flatten();
        let is_flushed = flushed.any(|(from, to)| *from <= done && sent <= *to);
        if is_flushed || life.gone.is_some_and(|gone| gone <= done) {
            return None;
        }
        let is_ready = life.ready.is_some_and(|ready| ready <= sent);
        let violation = |law: u8, why: &str| {
            let (cell, group) = (life.cell, life.group);
            let what = format!(
                "packet of {container} on {cell} (group {group}) to {goal:?}, sent at {:.3} s, \
                 {fate:?}: {why}",
                sent.seconds()
            );
            Some(Violation { law, at: done, what })
        };
        let (in_force, reason) = match goal {
            Goal::Port(_) => self.versions.in_force(life.cell, life.group, sent, done)?,
            Goal::Always | Goal::Never => (0..=0, Reason::First),
        };
        let allows = |version| match goal {
            Goal::Always => true,
            Goal::Never => false,
            Goal::Port(port) => self.versions.allows(life.group, version, port),
        };
        let total = in_force.clone().count();
        let allowing = in_force.clone().filter(|version| allows(*version)).count();
        let passed = fate == Fate::Passed;
        let is_wrong = match allowing {
            0 => passed,
            all if all == total => !passed && is_ready,
            _some => false,
        };
        if !is_wrong {
            return None;
        }
        let range = format!("versions {} to {}", in_force.start(), in_force.end());
        match reason {
            _ if passed && !is_ready => violation(7, "the container is not ready"),
            Reason::Reported if self.is_of_older(life.group, goal, *in_force.start(), passed) => {
                violation(4, &format!("the cell reported {range}"))
            }
            Reason::Bounds if self.is_of_older(life.group, goal, *in_force.start(), passed) => {
                violation(9, &format!("{range} must be in force by now"))
            }
            _ if total > 1 => violation(8, &format!("contradicts all of {range}")),
            _ if self.is_quiet(sent) => violation(6, &format!("contradicts {range}")),
            _ => violation(5, &format!("contradicts {range} during a fault")),
        }
    }

    /// Whether one of the versions shortly before explains the fate.
    fn is_of_older(&self, group: Group, goal: Goal, oldest: u32, passed: bool) -> bool {
        let Goal::Port(port) = goal else { return false };
        (oldest.saturating_sub(STALE)..oldest)
            .any(|version| self.versions.allows(group, version, port) == passed)
    }

    fn is_quiet(&self, at: Moment) -> bool {
        self.versions.quiet().iter().any(|quiet| quiet.from <= at && at < quiet.to)
    }

    /// Law 9: after the end of all faults, every cell reports the newest versions in time.
    fn settled(&self, history: &[Entry], begin: &Begin) -> Vec<Violation> {
        let calm = history.iter().find(|entry| matches!(entry.event, Event::Calm));
        let Some(calm) = calm else { return Vec::new() };
        let limit = calm.at.after(begin.bounds.recovery()).after(begin.bounds.change());
        let newest: Vec<_> = self.versions.newest().collect();
        let mut missing: BTreeSet<&str> = begin.cells.iter().map(String::as_str).collect();
        for entry in history.iter().filter(|entry| entry.at <= limit) {
            let Event::Cell { cell, generation, .. } = &entry.event else { continue };
            let has = |(group, version): &(Group, u32)| {
                self.versions.in_generation(*generation, *group) == Some(*version)
            };
            if newest.iter().all(has) {
                missing.remove(cell.as_str());
            }
        }
        let violation = |cell| Violation {
            law: 9,
            at: limit,
            what: format!(
                "{cell} does not have the newest groups {:.0} s after the last fault",
                limit.seconds() - calm.at.seconds()
            ),
        };
        missing.into_iter().map(violation).collect()
    }
}

/// Law 6: in the end every cell reports the group with the bad rule, and no other.
fn isolated(history: &[Entry], begin: &Begin) -> Vec<Violation> {
    let calm = history.iter().position(|entry| matches!(entry.event, Event::Calm));
    let Some((calm, bad)) = calm.zip(begin.bad_group.as_ref()) else { return Vec::new() };
    let mut last: BTreeMap<&str, (Moment, &[String])> = BTreeMap::new();
    for entry in &history[calm..] {
        if let Event::Cell { cell, isolated, .. } = &entry.event {
            last.insert(cell, (entry.at, isolated));
        }
    }
    let is_wrong = |isolated: &[String]| isolated.len() != 1 || isolated[0] != *bad;
    let wrong = last.into_iter().filter(|(_, (_, isolated))| is_wrong(isolated));
    wrong
        .map(|(cell, (at, isolated))| Violation {
            law: 6,
            at,
            what: format!("{cell} isolates {isolated:?} instead of {bad:?}"),
        })
        .collect()
}
