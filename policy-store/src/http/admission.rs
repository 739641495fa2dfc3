//! How many lists of security groups are under way at the same time.
//!
//! Each costs a bounded piece of memory until its reader has taken it. When all
//! places are taken, some requests wait a moment for one, and the rest are sent
//! away at once: an agent that was refused keeps the rules that it has and asks
//! again, which is better than an answer after it has given up.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::HTTP_LISTS;

/// How many wait for each place.
const WAITING: usize = 4;
/// How long they wait. Agents give up after five seconds, and have to read yet.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    waiting: Semaphore,
    patience: Duration,
}

/// All places are taken, and will be for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests at the same time")]
pub struct Full;

/// A place; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

impl Admission {
    /// With so many places, for each of which some wait for so long.
    #[must_use]
    pub fn new(places: usize, patience: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            waiting: Semaphore::new(places.saturating_mul(WAITING)),
            patience,
        }
    }

    /// A place. Whoever stops waiting leaves the queue.
    ///
    /// # Errors
    /// There is none.
    pub async fn enter(&self) -> Result<Permit, Full> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Permit::new(place));
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| Full)?;
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(self.patience, place).await {
            Ok(Ok(place)) => Ok(Permit::new(place)),
            // The semaphore is never closed.
            Err(_) | Ok(Err(_)) => Err(Full),
        }
    }
}

impl Permit {
    fn new(place: OwnedSemaphorePermit) -> Self {
        HTTP_LISTS.gauge().increment(1);
        Self { _place: place }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        HTTP_LISTS.gauge().decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_sent_away_and_who_cannot_wait_at_once() {
        let gate = Admission::new(1, PATIENCE);
        let place = gate.enter().await.unwrap();
        let began = Instant::now();
        assert_eq!(gate.enter().await.unwrap_err(), Full);
        assert_eq!(began.elapsed(), PATIENCE);

        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(gate.enter())).collect();
        assert!(waiting.iter_mut().all(|enter| enter.now_or_never().is_none()));
        assert_eq!(gate.enter().await.unwrap_err(), Full);
        assert_eq!(began.elapsed(), PATIENCE, "that one did not wait");
        drop(waiting);
        let mut next = Box::pin(gate.enter());
        assert!((&mut next).now_or_never().is_none());
        drop(place);
        next.await.unwrap();
    }
}
