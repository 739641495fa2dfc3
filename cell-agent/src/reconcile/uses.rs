//! Reads periodically which rules were used.

use std::time::{Duration, SystemTime};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Reconciler, now};
use crate::uses::RuleUse;

/// Interval without a record.
const IDLE: Duration = Duration::from_secs(3600);

impl Reconciler {
    /// Records the uses of rules, and reads them this often.
    #[must_use]
    pub fn recording(self, uses: Option<(RuleUse, Duration)>) -> Self {
        Self { uses, ..self }
    }

    pub(super) fn uses_due(&self) -> Interval {
        let mut due = interval(self.uses.as_ref().map_or(IDLE, |(_, every)| *every));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due
    }

    pub(super) async fn read_uses(&mut self) {
        let Some((uses, _)) = &self.uses else { return };
        if let Some(read) = self.plane.uses().await {
            let at = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            uses.add(read, at.as_secs().cast_signed());
        }
    }
}
