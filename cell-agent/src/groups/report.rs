//! Which report the store gets, and when. Pure.
//!
//! A change of the generation, of a count or of the error is reported at once, packets at
//! most once in [`PACKETS_EVERY`]. Nothing is sent while nothing changes.

use std::time::{Duration, Instant};

use proto::policy_v1::watch_request::{Counters, Report};

use super::bounded;
use crate::reconcile::{Enforced, Packets};

/// Minimum interval of reports that only have other packets.
const PACKETS_EVERY: Duration = Duration::from_secs(10);
/// Maximum length of an error, in characters.
const ERROR_MOST: usize = 1_000;

/// The reports of one watch.
#[derive(Debug, Default)]
pub(super) struct Reports {
    sent: Option<(Report, Instant)>,
    /// When to look at the packets again.
    pub(super) due: Option<Instant>,
}

impl Reports {
    /// The report to send now, if any.
    pub(super) fn next(&mut self, enforced: &Enforced, now: Instant) -> Option<Report> {
        let report = report(enforced);
        self.due = None;
        if let Some((sent, at)) = &self.sent
            && essence(sent) == essence(&report)
        {
            if sent.counters == report.counters {
                return None;
            }
            let due = *at + PACKETS_EVERY;
            if now < due {
                self.due = Some(due);
                return None;
            }
        }
        self.sent = Some((report.clone(), now));
        Some(report)
    }
}

/// The fields whose changes are reported at once.
fn essence(report: &Report) -> (u64, u32, u32, u64, &str) {
    let Report {
        enforced_generation,
        containers,
        isolated_rules,
        enforced_at: _,
        apply_time: _,
        drift_healed,
        last_error,
        counters: _,
    } = report;
    (*enforced_generation, *containers, *isolated_rules, *drift_healed, last_error)
}

fn report(enforced: &Enforced) -> Report {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Report {
        enforced_generation: enforced.generation().0,
        containers: count(enforced.ruleset.containers.len()),
        isolated_rules: count(enforced.ruleset.isolated_rules()),
        enforced_at: enforced.at.map(Into::into),
        apply_time: enforced.apply_time.and_then(|time| time.try_into().ok()),
        drift_healed: enforced.drift_healed,
        last_error: bounded(enforced.error.as_deref().unwrap_or_default(), ERROR_MOST),
        counters: Some(Counters {
            allowed: enforced.packets.map(|Packets { allowed, .. }| allowed),
            denied: enforced.packets.map(|Packets { denied, .. }| denied),
            unattributed: enforced.unattributed,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::generation::Generation;

    use super::*;
    use crate::plan::{Known, Ruleset, test_settings};

    #[test]
    fn a_change_is_reported_at_once_and_packets_seldom() {
        let start = tokio::time::Instant::now().into_std();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut enforced = Enforced::nothing(Arc::new(Ruleset::empty(test_settings())));
        let mut reports = Reports::default();
        assert!(reports.next(&enforced, at(0)).is_some(), "the first one");
        enforced.at = Some(std::time::SystemTime::UNIX_EPOCH);
        assert!(reports.next(&enforced, at(1)).is_none(), "a confirmation is no change");
        assert_eq!(reports.due, None);
        enforced.packets = Some(Packets { allowed: 1, denied: 0 });
        assert!(reports.next(&enforced, at(4)).is_none());
        assert_eq!(reports.due, Some(at(10)));
        let report = reports.next(&enforced, at(10)).unwrap();
        assert_eq!(report.counters.unwrap().allowed, Some(1));
        assert_eq!(reports.due, None);
        enforced.packets = Some(Packets { allowed: 2, denied: 5 });
        enforced.known = Arc::new(Known { generation: Generation(7), ..Known::default() });
        let report = reports.next(&enforced, at(11)).unwrap();
        assert_eq!((report.enforced_generation, report.counters.unwrap().denied), (7, Some(5)));
        enforced.error = Some("é".repeat(ERROR_MOST + 1));
        let report = reports.next(&enforced, at(11)).unwrap();
        assert_eq!(report.last_error.chars().count(), ERROR_MOST);
        assert!(reports.next(&enforced, at(99)).is_none());
    }
}
