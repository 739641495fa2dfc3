//! Rate limit for the log bytes of each call site.
//!
//! A peer that repeats an action logged at info or above could otherwise fill the disk. Each call
//! site has a budget of [`BURST`] bytes, which refills at [`RATE`]: 10,000 usual lines at once, and
//! then about 100 a second. Lines beyond the budget are dropped and counted; the process logs the
//! counts. Debug lines have no limit, as operators enable them on purpose.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;

/// Burst in bytes.
const BURST: u64 = 4 << 20;
/// Refill rate in bytes per second.
const RATE: u64 = 32 << 10;

/// The budgets of all call sites.
#[derive(Debug, Default)]
pub(super) struct Budget {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    left: u64,
    refilled: Instant,
    /// Dropped lines that are not reported yet, and their message.
    left_out: u64,
    message: String,
}

impl Place {
    fn full(now: Instant) -> Self {
        Self { left: BURST, refilled: now, left_out: 0, message: String::new() }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled);
        let bytes =
            passed.as_micros().saturating_mul(RATE.into()) / Duration::from_secs(1).as_micros();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // Keeps the remainder below one byte for the next refill.
        if bytes > 0 {
            self.left = self.left.saturating_add(bytes).min(BURST);
            self.refilled = now;
        }
    }
}

impl Budget {
    /// Whether a line of this size may be written now. `message` names the line.
    pub(super) fn takes(
        &self,
        place: Identifier,
        bytes: usize,
        now: Instant,
        message: impl FnOnce() -> String,
    ) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(place).or_insert_with(|| Place::full(now));
        place.refill(now);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if let Some(left) = place.left.checked_sub(bytes) {
            place.left = left;
            return true;
        }
        if place.left_out == 0 {
            place.message = message();
        }
        place.left_out += 1;
        false
    }

    /// Message and number of dropped lines since the last call.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out
            .map(|place| (std::mem::take(&mut place.message), std::mem::take(&mut place.left_out)))
            .collect()
    }
}
