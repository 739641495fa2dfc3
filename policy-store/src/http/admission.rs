//! Admission control: limits concurrent lists of security groups.
//!
//! Each list costs a bounded amount of memory until its reader has received it. When
//! all permits are taken, some requests wait briefly for one, and the rest are refused
//! at once: a refused agent keeps its rules and retries, which is better than a response
//! after the agent's timeout.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::HTTP_LISTS;

/// Limit of waiting requests per permit.
const WAITING: usize = 4;
/// Time limit of the wait. Agents time out after five seconds and still have to read.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Admission control; see the module.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    waiting: Semaphore,
    wait: Duration,
}

/// All permits are taken and the wait failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests at the same time")]
pub struct Full;

/// A permit; released on drop.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

impl Admission {
    /// This number of permits; per permit some requests wait for this time.
    #[must_use]
    pub fn new(places: usize, wait: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            waiting: Semaphore::new(places.saturating_mul(WAITING)),
            wait,
        }
    }

    /// Acquires a permit. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// No permit is available in time.
    pub async fn enter(&self) -> Result<Permit, Full> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Permit::new(place));
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| Full)?;
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(self.wait, place).await {
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
        let gate = Admission::new(1, TIMEOUT);
        let place = gate.enter().await.unwrap();
        let began = Instant::now();
        assert_eq!(gate.enter().await.unwrap_err(), Full);
        assert_eq!(began.elapsed(), TIMEOUT);

        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(gate.enter())).collect();
        assert!(waiting.iter_mut().all(|enter| enter.now_or_never().is_none()));
        assert_eq!(gate.enter().await.unwrap_err(), Full);
        assert_eq!(began.elapsed(), TIMEOUT, "that one did not wait");
        drop(waiting);
        let mut next = Box::pin(gate.enter());
        assert!((&mut next).now_or_never().is_none());
        drop(place);
        next.await.unwrap();
    }
}
