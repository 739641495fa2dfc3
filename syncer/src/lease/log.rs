//! Log lines about the lock, as the original writes them.

use model::lock::{Claim, FencingToken};
use runtime::lager;
use tracing::{Span, debug, error, error_span, info};

use super::locket::{Failure, LoggedLock, Watched};

/// SIGTERM, as the original logs an external stop.
const SIGNAL: u32 = 15;

/// A failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Nanoseconds until the response.
    pub(super) duration: u64,
    /// Whether an attempt preceded it: the original logs the duration only then.
    pub(super) tried: bool,
}

/// Writes the lines, and remembers those that are written once.
#[derive(Debug)]
pub(super) struct Log {
    span: Span,
    /// A collision was logged since this process last held the lock.
    is_collision_logged: bool,
    is_tokenless_logged: bool,
}

impl Log {
    pub(super) fn new(claim: &Claim) -> Self {
        let span = error_span!(
            parent: None,
            "locket-lock",
            lock = lager::json(&LoggedLock::from(claim)),
            ttl_in_seconds = claim.ttl.seconds(),
        );
        Self { span, is_collision_logged: false, is_tokenless_logged: false }
    }

    pub(super) fn started(&self) {
        self.span.in_scope(|| info!("started"));
    }

    pub(super) fn signalled(&self) {
        self.span.in_scope(|| info!(signal = SIGNAL, "signalled"));
    }

    pub(super) fn completed(&self) {
        self.span.in_scope(|| info!("completed"));
    }

    pub(super) fn acquired(&mut self, token: FencingToken) {
        self.is_collision_logged = false;
        self.span.in_scope(|| {
            info!(fencing_token = token.0, "acquired-lock");
            if token.0 == 0 && !self.is_tokenless_logged {
                info!("lock-server-without-fencing-tokens");
            }
        });
        self.is_tokenless_logged |= token.0 == 0;
    }

    /// The line names the attempt that lost the lock, if there is one.
    pub(super) fn lost(&self, attempt: Option<&Failed>, why: &str) {
        self.span.in_scope(|| match attempt {
            Some(Failed { failure, duration, .. }) => error!(
                error = %failure,
                "request-uuid" = %failure.request_uuid,
                duration,
                "lost-lock"
            ),
            None => error!(error = why, "lost-lock"),
        });
    }

    /// Whether the next collision is to be logged, with the owner: the original logs the first
    /// one, and none of the following ones.
    pub(super) fn is_first_collision(&mut self) -> bool {
        !std::mem::replace(&mut self.is_collision_logged, true)
    }

    /// `owner` is empty if unknown.
    pub(super) fn not_acquired(&self, Failed { failure, duration, tried }: &Failed, owner: &str) {
        self.span.in_scope(|| {
            error!(
                error = %failure,
                "lock-owner" = owner,
                "request-uuid" = %failure.request_uuid,
                duration = tried.then_some(*duration),
                "failed-to-acquire-lock"
            );
        });
    }

    pub(super) fn not_renewed(&self, Failed { failure, duration, .. }: &Failed) {
        self.span.in_scope(|| {
            error!(
                error = %failure, "request-uuid" = %failure.request_uuid, duration,
                "failed-to-renew-lock"
            );
        });
    }

    pub(super) fn no_owner(&self, failure: &Failure) {
        self.span.in_scope(|| error!(error = %failure, "failed-fetching-lock-owner"));
    }

    pub(super) fn watched(&self, watched: &Watched) {
        self.span.in_scope(|| match watched {
            Watched::Free => {}
            Watched::Unsupported => debug!("lock-server-has-no-watch"),
            Watched::Failed(status) => debug!(error = %status, "lock-watch-ended"),
        });
    }

    pub(super) fn released(&self, released: &Result<(), Failure>) {
        self.span.in_scope(|| match released {
            Ok(()) => info!("released-lock"),
            Err(failure) if failure.is_collision() => debug!("lock-owned-by-another"),
            Err(failure) => error!(error = %failure, "failed-to-release-lock"),
        });
    }
}
