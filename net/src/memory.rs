//! Recently failed addresses of the whole process.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a failed address is tried last.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Time of each failure. Adding an entry removes expired ones, so the map never holds more than the
/// addresses that failed within [`REMEMBERED`].
#[derive(Debug)]
struct Failures(BTreeMap<SocketAddr, Instant>);

impl Failures {
    const fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn note(&mut self, address: SocketAddr, now: Instant) {
        self.0.retain(|_, at| is_recent(*at, now));
        self.0.insert(address, now);
    }

    fn has(&self, address: &SocketAddr, now: Instant) -> bool {
        self.0.get(address).is_some_and(|at| is_recent(*at, now))
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < REMEMBERED
}

static FAILURES: Mutex<Failures> = Mutex::new(Failures::new());

fn failures() -> MutexGuard<'static, Failures> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records that the address failed where another one may work.
pub(crate) fn note(address: SocketAddr) {
    failures().note(address, Instant::now());
}

/// Records that the address works.
pub(crate) fn forget(address: &SocketAddr) {
    failures().0.remove(address);
}

/// Whether the address failed recently.
pub(crate) fn has_failed(address: &SocketAddr) -> bool {
    failures().has(address, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_forgotten_after_a_while() {
        let [one, other] = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| text.parse().unwrap());
        #[expect(clippy::disallowed_methods, reason = "the test needs any instant")]
        let now = Instant::from(std::time::Instant::now());
        let mut failures = Failures::new();
        failures.note(one, now);
        assert!(failures.has(&one, now) && !failures.has(&other, now));
        assert!(failures.has(&one, now + REMEMBERED - Duration::from_millis(1)));
        assert!(!failures.has(&one, now + REMEMBERED));
        failures.note(other, now + REMEMBERED);
        assert_eq!(failures.0.len(), 1, "old entries stay");
    }
}
