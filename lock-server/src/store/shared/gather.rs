//! Reads that wait at the same time share one look at the database.
//!
//! A look begins after each of its reads was asked for, so that its answer has every
//! write acknowledged before. One look is under way at a time, which gathers more reads
//! the longer it takes. A look that takes longer than [`WAIT`], as on a connection that
//! hangs, makes room for the next; at most [`HANGING`] of them are under way.

use std::{mem, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Reads of one look at most.
pub(super) const MOST: usize = 64;
/// How long a look keeps the next one waiting.
const WAIT: Duration = Duration::from_millis(500);
/// Looks at the same time at most.
const HANGING: usize = 16;

/// Looks until `stop`, then once more for those that wait.
///
/// # Errors
/// A look panicked.
pub(super) async fn run<A, L>(
    mut asks: mpsc::Receiver<A>,
    stop: CancellationToken,
    look: impl Fn(Vec<A>) -> L,
) -> Result<(), storage::Error>
where
    A: Send + 'static,
    L: Future<Output = ()> + Send + 'static,
{
    let mut looks = JoinSet::new();
    let mut waiting = Vec::with_capacity(MOST);
    let mut number = 0_u64;
    // The look that keeps others waiting, and until when.
    let mut current: Option<(u64, Instant)> = None;
    let (mut is_stopping, mut is_over) = (false, false);
    while !(is_over && looks.is_empty()) {
        let wait = current.map_or_else(Instant::now, |(_, until)| until);
        tokio::select! {
            biased;
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                asks.close();
            }
            Some(ended) = looks.join_next() => {
                let ended = ended.map_err(|_| storage::Error::Panicked)?;
                current = current.filter(|(number, _)| *number != ended);
            }
            () = sleep_until(wait), if current.is_some() => current = None,
            count = asks.recv_many(&mut waiting, MOST),
                if !is_over && current.is_none() && looks.len() < HANGING =>
            {
                is_over = count == 0;
                if count > 0 {
                    number += 1;
                    current = Some((number, Instant::now() + WAIT));
                    let (number, look) = (number, look(mem::take(&mut waiting)));
                    looks.spawn(async move {
                        look.await;
                        number
                    });
                }
            }
        }
    }
    Ok(())
}
