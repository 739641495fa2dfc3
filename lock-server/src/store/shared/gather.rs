//! Batches concurrent reads into one database query.
//!
//! A query begins after all of its reads were requested, so that its result includes
//! every write acknowledged before. One query is in flight at a time; the longer it
//! takes, the more reads the next one has. A query that takes longer than [`WAIT`], as
//! on a hanging connection, lets the next one start; at most [`HANGING`] are in flight.

use std::{mem, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Limit of reads per query.
pub(super) const MOST: usize = 64;
/// How long a query blocks the next one.
const WAIT: Duration = Duration::from_millis(500);
/// Limit of concurrent queries.
const HANGING: usize = 16;

/// Serves reads until `stop`, then those that are queued.
///
/// # Errors
/// A query panicked.
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
    // The query that blocks the next one, and until when it does.
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
