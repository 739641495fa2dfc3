//! A bound on the bytes of log that each place in the code writes.
//!
//! A peer that repeats what is logged at info or above would otherwise fill the disk.
//! Each place has a budget of [`BURST`] bytes, which refills with [`RATE`]: 10,000
//! usual lines at once, and then about 100 a second. Lines beyond it are left out and
//! counted; the process tells the counts. Debug lines have no bound: they are asked
//! for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;

/// Bytes at once.
const BURST: u64 = 4 << 20;
/// Bytes in a second.
const RATE: u64 = 32 << 10;

/// The budgets of all places.
#[derive(Debug, Default)]
pub(super) struct Budget {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    left: u64,
    refilled: Instant,
    /// Lines that were left out and are not told yet, and what they say.
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
        // Less than a byte is left for the next time.
        if bytes > 0 {
            self.left = self.left.saturating_add(bytes).min(BURST);
            self.refilled = now;
        }
    }
}

impl Budget {
    /// Whether a line of so many bytes may be written now. `message` names the line.
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

    /// What was left out since the last time: message and number of lines.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out
            .map(|place| (std::mem::take(&mut place.message), std::mem::take(&mut place.left_out)))
            .collect()
    }
}
