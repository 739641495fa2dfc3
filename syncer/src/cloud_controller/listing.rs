//! The whole list, read so that it holds together.
//!
//! The stamp is read before the first page and after every page; where it
//! differs the list may have changed between two pages, and the reading is
//! thrown away (contracts/policy-server.md 2.5). Three attempts follow each
//! other at once, also after other errors; one that the server asks to be left
//! alone after ends the reading, so that the wait is kept.
//!
//! Differences from the original: a page after the first without a list fails
//! the attempt (the original takes what it has as everything, and so deletes
//! the rest).

use std::sync::Arc;

use runtime::error::chain;
use tracing::{Level, debug, info};

use super::{CloudController, Error, Fault, Step, stream};
use crate::reading::{Held, Reading};

/// How often the list is tried within one poll.
const ATTEMPTS: u32 = 3;

impl CloudController {
    /// Reads the list. `held` is what the store has, whose content need not be
    /// kept.
    ///
    /// # Errors
    /// That of the last attempt; [`Fault::Moved`] when the list did not stand
    /// still.
    pub async fn list(&self, held: &Arc<Held>) -> Result<Reading, Error> {
        info!("get-security-groups");
        let mut attempt = 0;
        loop {
            debug!(attempt, "get-security-groups-retry-loop");
            match self.attempt(held).await {
                Ok(reading) => {
                    debug!(
                        "security-groups" = runtime::lager::json(&reading.echo(0)),
                        "get-security-groups-retry-loop-succeeded"
                    );
                    info!(count = reading.count(), "successfully-fetched-security-groups");
                    return Ok(reading);
                }
                Err(err) => {
                    attempt += 1;
                    if attempt == ATTEMPTS || err.fault.retry_after().is_some() {
                        return Err(err);
                    }
                    debug!(error = chain(&err), attempt, "get-security-groups-attempt-failed");
                }
            }
        }
    }

    async fn attempt(&self, held: &Arc<Held>) -> Result<Reading, Error> {
        info!("get-security-groups-attempt-pagination");
        let before = self.last_update().await?;
        let mut reading = Reading::new(tracing::enabled!(Level::DEBUG));
        let mut page = 1;
        loop {
            debug!(page, "get-security-groups-request");
            let shown = reading.count();
            let response = self.page(page).await?;
            let error = |fault| Error { step: Step::List, fault };
            let read = stream::read(response, reading, Arc::clone(held)).await.map_err(error)?;
            reading = read.reading;
            if let Some(body) = read.echo {
                self.public.show(&body);
            }
            let found = read.page;
            if !found.listed {
                debug!("no-additional-security-groups");
                return Err(error(Fault::Unlisted { page }));
            }
            let groups = reading.echo(shown);
            debug!(
                resources = runtime::lager::json(&groups),
                "get-security-groups-with-page-response"
            );
            debug!(response = runtime::lager::json(&groups), "get-security-groups-response");
            let after = self.last_update().await?;
            if after != before {
                debug!(
                    originalUpdatedAt = %before, newUpdatedAt = %after,
                    "get-security-groups-timestamps-differ"
                );
                return Err(error(Fault::Moved));
            }
            debug!(
                originalUpdatedAt = %before, newUpdatedAt = %after,
                "get-security-groups-timestamps-match"
            );
            if !found.more {
                debug!(page, "get-security-groups-last-page");
                return Ok(reading);
            }
            page += 1;
        }
    }
}
