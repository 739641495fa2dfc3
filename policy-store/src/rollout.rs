//! Moves a roll-out on, or stops it, by what the cells of its step report.
//!
//! [`judge`] is pure; [`Watch`] drives it. Each instance judges the cells that watch it. To move on
//! takes 2 s longer than to stop, so that an instance whose cells have problems is first.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use model::ids::GroupGuid;
use runtime::error::chain;
use tokio_util::sync::CancellationToken;

use crate::{
    committer::Commits,
    feed::{
        cells::{Here, KnownCell},
        inventory::IsolatedRule,
        watch::Feed,
    },
    groups::{
        held::Hold,
        released::{Ahead, Released},
        rollout::Rollout,
        snapshot::{Entry, Snapshot},
    },
};

/// Interval of the check.
const LOOK: Duration = Duration::from_secs(1);
/// Time after the end of a step in which only a stop is possible.
const GRACE: SignedDuration = SignedDuration::from_secs(2);
/// Number of problems that the reason of a stop lists.
const LISTED: usize = 3;

/// What happens to a roll-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The step goes on.
    Wait,
    /// The next step.
    Next,
    /// The roll-out stops, with the reason.
    Stop(String),
}

/// Judges the current step by the cells that it includes. `is_new` is whether an isolated rule is
/// one that the generation brought.
///
/// A rule that the generation brought and that a cell isolates counts at once. That a connected cell
/// does not have the generation in force, or that a cell lost its connection in this step and did
/// not report through another instance, counts when the pause is over.
pub fn judge(
    rollout: &Rollout,
    cells: &[KnownCell],
    is_new: impl Fn(&IsolatedRule) -> bool,
    now: Timestamp,
) -> Verdict {
    let since = now.duration_since(rollout.since);
    let pause = SignedDuration::try_from(rollout.plan.pause).unwrap_or(SignedDuration::MAX);
    let is_over = since >= pause;
    let (mut members, mut problems) = (0, Vec::new());
    for cell in cells.iter().filter(|cell| rollout.includes(&cell.status.id)) {
        let Some(here) = &cell.here else { continue };
        let Some(state) = state(rollout, cell, here, &is_new) else { continue };
        members += 1;
        match state {
            State::Fine => {}
            State::Isolates(problem) => problems.push(problem),
            State::Late(problem) if is_over => problems.push(problem),
            State::Late(_) => {}
        }
    }
    if problems.len() * 100 > members * usize::from(rollout.plan.max_failing_percent) {
        let listed = problems[..problems.len().min(LISTED)].join("; ");
        return Verdict::Stop(format!("{} of {members} cells: {listed}", problems.len()));
    }
    if is_over && since - pause >= GRACE { Verdict::Next } else { Verdict::Wait }
}

enum State {
    Fine,
    Late(String),
    Isolates(String),
}

/// `None`: the cell was not here in this step.
fn state(
    rollout: &Rollout,
    cell: &KnownCell,
    here: &Here,
    is_new: impl Fn(&IsolatedRule) -> bool,
) -> Option<State> {
    let id = &cell.status.id;
    let has_target = cell.status.enforced() >= rollout.target.generation;
    let reports_elsewhere = cell.status.report.is_some_and(|report| report.at > here.changed_at);
    if !cell.status.connected && !reports_elsewhere {
        let was_here = here.changed_at >= rollout.since;
        return was_here.then(|| State::Late(format!("{id} lost its connection")));
    }
    if !has_target {
        let error = here.details.as_ref().map(|details| &*details.last_error);
        let error = error.filter(|error| !error.is_empty());
        let error = error.map(|error| format!(": {error}")).unwrap_or_default();
        let generation = rollout.target.generation.0;
        return Some(State::Late(format!("{id} has not applied generation {generation}{error}")));
    }
    let mut isolated =
        cell.inventory().into_iter().flat_map(|inventory| &inventory.isolated().rules);
    Some(match isolated.find(|rule| is_new(rule)) {
        None => State::Fine,
        Some(IsolatedRule { group_name, rule_index, reason, .. }) => State::Isolates(format!(
            "{id} does not enforce rule {rule_index} of group {group_name:?}: {reason}"
        )),
    })
}

/// Which isolated rules the generation brought.
struct Brought {
    rollout: Rollout,
    /// Groups that are not as before, with their entry before.
    changed: HashMap<GroupGuid, Option<Arc<Entry>>>,
}

impl Brought {
    fn new(base: &Snapshot, ahead: &Ahead) -> Self {
        let before: HashMap<_, _> =
            base.entries().iter().map(|entry| (&entry.guid, entry)).collect();
        let is_changed = |entry: &&Arc<Entry>| {
            before.get(&entry.guid).is_none_or(|before| before.hash != entry.hash)
        };
        let changed = ahead.snapshot.entries().iter().filter(is_changed);
        let changed = changed.map(|entry| {
            (entry.guid.clone(), before.get(&entry.guid).map(|before| Arc::clone(before)))
        });
        Self { changed: changed.collect(), rollout: ahead.rollout.clone() }
    }

    fn is_of(&self, rollout: &Rollout) -> bool {
        (self.rollout.base, self.rollout.target) == (rollout.base, rollout.target)
    }

    fn has(&self, isolated: &IsolatedRule) -> bool {
        let guid = GroupGuid::parse(&isolated.group_guid).ok();
        match guid.and_then(|guid| self.changed.get(&guid)) {
            None => false,
            Some(None) => true,
            Some(Some(before)) => !before.group().rules.contains(&isolated.rule),
        }
    }
}

/// The task; see the module.
#[derive(Debug)]
pub struct Watch {
    /// Snapshots and cells.
    pub feed: Feed,
    /// Where steps and stops are stored.
    pub commits: Commits,
}

impl Watch {
    /// Checks the roll-out each second, until `stop`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut brought: Option<Brought> = None;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let is_frozen = self.feed.board.current().state.held.is_some();
            let released = self.feed.board.released();
            let Released { base, ahead: Some(ahead) } = &*released else {
                brought = None;
                continue;
            };
            if is_frozen || ahead.rollout.stopped.is_some() {
                continue;
            }
            if !brought.as_ref().is_some_and(|brought| brought.is_of(&ahead.rollout)) {
                brought = Some(Brought::new(base, ahead));
            }
            let is_new = |rule: &IsolatedRule| brought.as_ref().is_some_and(|is| is.has(rule));
            self.look(&ahead.rollout, is_new).await;
        }
        Ok(())
    }

    async fn look(&self, rollout: &Rollout, is_new: impl Fn(&IsolatedRule) -> bool) {
        let at = Timestamp::now();
        let (target, step) = (rollout.target, rollout.step);
        let change = match judge(rollout, &self.feed.cells.known(), is_new, at) {
            Verdict::Wait => return,
            Verdict::Next => Hold::NextStep { target, step, at },
            Verdict::Stop(reason) => Hold::StopRollout { target, step, reason: reason.into(), at },
        };
        if let Err(error) = self.commits.hold(change).await {
            tracing::error!(error = chain(&error), "failed-to-store-rollout");
        }
    }
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
