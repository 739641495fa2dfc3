//! What cells get: the newest generation, or the one at which they are frozen.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    groups::{decide::Held, snapshot::Snapshot},
    store::{Error, Store},
};

/// The snapshot that cells get. `known` are further snapshots in memory; one that is in none of
/// them is reconstructed from the history.
///
/// # Errors
/// The store cannot be read.
pub async fn released(
    store: &dyn Store,
    newest: &Arc<Snapshot>,
    known: &[Arc<Snapshot>],
) -> Result<Arc<Snapshot>, Error> {
    let Some(held) = &newest.state.held else { return Ok(Arc::clone(newest)) };
    let mut all = [newest].into_iter().chain(known);
    if let Some(known) = all.find(|known| known.point() == held.point) {
        return Ok(Arc::clone(known));
    }
    let (from, to) = (newest.state.generation, held.point.generation);
    match store.history().undo(from, to).await? {
        Some(undo) if undo.to == held.point => {
            let newest = Arc::clone(newest);
            let older = tokio::task::spawn_blocking(move || newest.undone(undo)).await;
            let older = older.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            Ok(Arc::new(older))
        }
        Some(_) | None => {
            tracing::error!(
                generation = to.0,
                newest = from.0,
                reason = "the history does not lead back to it: cells get the newest generation",
                "frozen-generation-lost"
            );
            Ok(Arc::clone(newest))
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

/// Logs the beginning, a change and the end of a freeze.
pub fn log_change(before: Option<&Held>, after: Option<&Held>) {
    match (before, after) {
        (before, Some(held)) if before != after => tracing::info!(
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
}
