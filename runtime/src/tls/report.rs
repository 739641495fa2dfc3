//! Log lines and metrics about TLS files. [`families!`](crate::families) describes the
//! metrics for each service.
//!
//! | metric | |
//! |---|---|
//! | `SERVICE_certificate_expiry_timestamp_seconds{tls,file}` | earliest expiry among the certificates of the file; `file` is `cert` or `ca` |
//! | `SERVICE_certificate_last_reload_successful{tls}` | 1, or 0 when the files on disk could not be loaded |
//! | `SERVICE_certificate_reload_failures_total{tls}` | failed loads |

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use metrics::{Label, counter, gauge};
use tokio::time::Instant;

use super::Role;
use super::expiry::Warned;
use super::material::{Expiry, Facts};

/// Interval between retries of failed loads, and between log lines about an unusable certificate.
pub(super) const AGAIN: Duration = Duration::from_secs(60);

/// Reports on the files of one role; logs each fact once, or once a minute.
pub(super) struct Report {
    role: Role,
    own: Warned,
    authorities: Warned,
    /// Time of the last log line about an unusable certificate.
    unusable: Option<Instant>,
}

impl Report {
    pub(super) fn new(role: Role) -> Self {
        Self { role, own: Warned::default(), authorities: Warned::default(), unusable: None }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}_certificate_{suffix}", self.role.service)
    }

    fn labels(&self) -> Vec<Label> {
        vec![Label::from_static_parts("tls", self.role.name)]
    }

    /// Initializes the metrics after the first load.
    pub(super) fn loaded(&self, loaded: bool) {
        let successful = gauge!(self.name("last_reload_successful"), self.labels());
        successful.set(f64::from(u8::from(loaded)));
        let failures = counter!(self.name("reload_failures_total"), self.labels());
        failures.increment(u64::from(!loaded));
    }

    /// Sets the expiry metrics.
    #[expect(clippy::cast_precision_loss, reason = "times of certificates are below 2^52 s")]
    pub(super) fn expiry(&self, facts: &Facts) {
        let own = facts.own.as_ref().map(|own| &own.expiry);
        for (file, expiry) in [("cert", own), ("ca", facts.authorities.as_ref())] {
            let Some(Expiry { not_after, .. }) = expiry else { continue };
            let mut labels = self.labels();
            labels.push(Label::from_static_parts("file", file));
            let name = self.name("expiry_timestamp_seconds");
            gauge!(name, labels).set(not_after.as_second() as f64);
        }
    }

    pub(super) fn reloaded(&mut self, paths: &[PathBuf], facts: &Facts) {
        self.loaded(true);
        self.expiry(facts);
        (self.own, self.authorities) = Default::default();
        let (tls, files) = (self.role.name, list(paths));
        match &facts.own {
            Some(own) => {
                let (subject, serial) = (&own.subject, &own.serial);
                let not_after = own.validity.not_after.to_string();
                tracing::info!(tls, subject, serial, not_after, files, "tls-files-reloaded");
            }
            None => tracing::info!(tls, files, "tls-files-reloaded"),
        }
    }

    /// `is_news`: whether the line says more than the previous one.
    pub(super) fn rejected(&mut self, paths: &[PathBuf], error: &str, is_news: bool) {
        self.loaded(false);
        if is_news {
            let (tls, files) = (self.role.name, list(paths));
            tracing::error!(tls, error, files, "tls-files-rejected");
        }
    }

    /// Logs once a minute that there is no valid certificate, and why.
    pub(super) fn unusable(&mut self, paths: &[PathBuf], problem: Option<&str>, now: Instant) {
        let Some(error) = problem else {
            self.unusable = None;
            return;
        };
        if self.unusable.is_some_and(|last| now - last < AGAIN) {
            return;
        }
        self.unusable = Some(now);
        let (tls, files) = (self.role.name, list(paths));
        tracing::error!(tls, error, files, "certificate-unusable");
    }

    /// Warns 30, 7 and 1 days before the first certificate of a file expires.
    pub(super) fn warn(&mut self, facts: &Facts, now: Timestamp) {
        let own = facts.own.as_ref().map(|own| &own.expiry);
        warn(self.role, &mut self.own, own, now);
        warn(self.role, &mut self.authorities, facts.authorities.as_ref(), now);
    }
}

fn warn(role: Role, warned: &mut Warned, expiry: Option<&Expiry>, now: Timestamp) {
    let Some(Expiry { path, subject, not_after }) = expiry else { return };
    let Some(within_days) = warned.due(*not_after, now) else { return };
    let (tls, file) = (role.name, display(path));
    let not_after = not_after.to_string();
    match within_days {
        0 => tracing::warn!(tls, subject, not_after, file, "certificate-expired"),
        days => {
            let within_days = days;
            tracing::warn!(tls, subject, not_after, within_days, file, "certificate-expires-soon");
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| display(path)).collect();
    paths.join(" ")
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
