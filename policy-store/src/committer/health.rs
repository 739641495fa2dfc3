//! Health of the database, by the outcome of reads and writes.

use runtime::{error::chain, server::Component};

use crate::store::Error;

/// Health components of the database. A readable database with a full disk is ready for
/// reads only.
#[derive(Debug, Default)]
pub(super) struct DatabaseHealth(Option<Components>);

#[derive(Debug)]
struct Components {
    reads: Component,
    writes: Component,
}

impl DatabaseHealth {
    pub(super) fn of(reads: Component, writes: Component) -> Self {
        // The store was read before; no write error is known yet.
        reads.ready();
        writes.ready();
        Self(Some(Components { reads, writes }))
    }

    pub(super) fn answered(&self) {
        if let Some(Components { reads, .. }) = &self.0 {
            reads.ready();
        }
    }

    pub(super) fn failed(&self, error: &Error) {
        if let Some(Components { reads, .. }) = &self.0 {
            reads.not_ready(chain(error));
        }
    }

    /// A Replace or its refusal was stored.
    pub(super) fn written(&self) {
        if let Some(Components { writes, .. }) = &self.0 {
            writes.ready();
        }
    }

    /// A Replace was not stored. Only another Replace proves recovery: a small write may
    /// succeed on a disk without space for a set.
    pub(super) fn not_written(&self, error: &Error) {
        if let (Some(Components { writes, .. }), Error::Database(_)) = (&self.0, error) {
            writes.not_ready(format!("the last Replace was not stored: {}", chain(error)));
        }
    }
}
