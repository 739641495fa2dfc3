//! What cells get: the newest generation, the one at which they are frozen, or the one of their step
//! of a roll-out.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::generation::Point;

use crate::{
    groups::{
        decide::State,
        released::{Ahead, Released},
        snapshot::Snapshot,
    },
    store::{Error, Store},
};

/// The snapshots that cells get. `known` are further snapshots in memory; one that is in none of
/// them is reconstructed from the history.
///
/// # Errors
/// The store cannot be read.
pub async fn released(
    store: &dyn Store,
    newest: &Arc<Snapshot>,
    known: &[Arc<Snapshot>],
) -> Result<Released, Error> {
    let State { held, rollout, .. } = &newest.state;
    let base = match (rollout, held) {
        (Some(rollout), _) => rollout.base,
        (None, Some(held)) => held.point,
        (None, None) => return Ok(Arc::clone(newest).into()),
    };
    let Some(base) = older(store, newest, known, base).await? else {
        return Ok(Arc::clone(newest).into());
    };
    let Some(rollout) = rollout.clone() else { return Ok(base.into()) };
    let ahead = older(store, newest, known, rollout.target).await?;
    Ok(match ahead {
        Some(snapshot) => Released { base, ahead: Some(Ahead { snapshot, rollout }) },
        None => Arc::clone(newest).into(),
    })
}

/// The snapshot of a generation; `None` when it is lost.
async fn older(
    store: &dyn Store,
    newest: &Arc<Snapshot>,
    known: &[Arc<Snapshot>],
    point: Point,
) -> Result<Option<Arc<Snapshot>>, Error> {
    let mut all = [newest].into_iter().chain(known);
    if let Some(known) = all.find(|known| known.point() == point) {
        return Ok(Some(Arc::clone(known)));
    }
    let (from, to) = (newest.state.generation, point.generation);
    match store.history().undo(from, to).await? {
        Some(undo) if undo.to == point => {
            let newest = Arc::clone(newest);
            let older = tokio::task::spawn_blocking(move || newest.undone(undo)).await;
            let older = older.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            Ok(Some(Arc::new(older)))
        }
        Some(_) | None => {
            tracing::error!(
                generation = to.0,
                newest = from.0,
                reason = "the history does not lead back to it: cells get the newest generation",
                "frozen-generation-lost"
            );
            Ok(None)
        }
    }
}

/// Resolves at this time; never without one. Cancel safe.
pub async fn ends(until: Option<Timestamp>) {
    let Some(until) = until else { return std::future::pending().await };
    // The wall clock may be set while this waits.
    const LOOK: Duration = Duration::from_secs(1);
    loop {
        let left = until.duration_since(Timestamp::now());
        if !left.is_positive() {
            return;
        }
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default().min(LOOK)).await;
    }
}

/// Logs the beginning, a change and the end of a freeze and of a roll-out.
pub fn log_change(before: &State, after: &State) {
    match (&before.held, &after.held) {
        (before, Some(held)) if before.as_ref() != Some(held) => tracing::info!(
            generation = held.point.generation.0,
            reason = &*held.reason,
            by = &*held.by,
            until = held.until.map(tracing::field::display),
            "cells-frozen"
        ),
        (Some(held), None) => {
            tracing::info!(generation = held.point.generation.0, "cells-unfrozen");
        }
        _ => {}
    }
    let ended = before
        .rollout
        .as_ref()
        .filter(|before| after.rollout.as_ref().is_none_or(|after| after.target != before.target));
    if let Some(ended) = ended {
        tracing::info!(
            generation = ended.target.generation.0,
            stopped = ended.stopped.as_deref(),
            "rollout-ended"
        );
    }
    let Some(rollout) =
        after.rollout.as_ref().filter(|after| before.rollout.as_ref() != Some(after))
    else {
        return;
    };
    let (generation, base) = (rollout.target.generation.0, rollout.base.generation.0);
    let (step, steps) = (rollout.step + 1, rollout.plan.steps());
    match &rollout.stopped {
        None => {
            let percent = rollout.plan.percent(rollout.step);
            tracing::info!(generation, base, step, steps, percent, "rollout-step");
        }
        Some(reason) => {
            tracing::error!(generation, base, step, steps, reason = &**reason, "rollout-stopped");
        }
    }
}
