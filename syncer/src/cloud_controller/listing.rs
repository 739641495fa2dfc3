//! Reads the whole list consistently.
//!
//! The stamp is read before the first page and after every page; when it differs, the
//! list may have changed between two pages, and the pages read so far are discarded
//! (docs/compatibility/asg-syncer.md#cloud-controller-calls). Up to three attempts follow
//! each other at once, also after other errors; an error with `Retry-After` ends the
//! attempts, so that the wait is kept.
//!
//! While changes follow each other faster than the list can be read, every attempt would be
//! discarded. [`Moved::Accepted`] keeps the pages although the stamp differs: each group is as
//! it was at some time during the read (ADR 45). A deletion between two pages moves the groups
//! after it, one of which is then on neither page, so a group that the store has and the pages
//! lack is requested by its guid ([`CloudController::complete`]).
//!
//! Differences from the original: an attempt fails when a page has no list, or when the
//! number of groups on all pages differs from `pagination.total_results` (`Whole`). The
//! original treats the groups it has as the complete list, and so deletes the rest.

use std::sync::Arc;

use reqwest::Response;
use runtime::error::chain;
use tokio::time::Instant;
use tracing::{Level, debug, info};

use super::{CloudController, Error, Fault, Step, stream};
use crate::{
    import::Page,
    manifest::{ListSnapshot, StoreHashes},
};

/// Limit of attempts per poll.
const ATTEMPTS: u32 = 3;
/// Number of guids per request of [`CloudController::complete`]: 2 KB of URL.
const GUIDS: usize = 50;

/// What to do with a list whose stamp moved while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Another attempt.
    Refused,
    /// The list counts. It must be completed before it is applied.
    Accepted,
}

impl CloudController {
    /// Reads the list. `held` are the hashes in the store, whose content need not be kept.
    ///
    /// # Errors
    /// That of the last attempt; [`Fault::Moved`] when the list changed during each attempt, and
    /// `moved` refuses this.
    pub async fn list(&self, held: &Arc<StoreHashes>, moved: Moved) -> Result<ListSnapshot, Error> {
        info!("get-security-groups");
        let mut attempt = 0;
        loop {
            debug!(attempt, "get-security-groups-retry-loop");
            match self.attempt(held, moved).await {
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

    /// Adds the groups that the store has, the Cloud Controller still has, and the list lacks.
    ///
    /// # Errors
    /// A request failed, or the response is not about the requested groups.
    pub async fn complete(
        &self,
        mut reading: ListSnapshot,
        held: &Arc<StoreHashes>,
    ) -> Result<ListSnapshot, Error> {
        let missing = reading.missing(held);
        for guids in missing.chunks(GUIDS) {
            let response = self.groups(guids).await?;
            let before = reading.count();
            let found;
            (reading, found) = self.receive(response, 1, reading, held).await?;
            // A Cloud Controller that ignores the guids has more results than these.
            let added = reading.count() - before;
            let checked = Whole::default().add(1, Page { more: false, ..found }, added);
            checked.map_err(|fault| Error { step: Step::List, fault })?;
        }
        Ok(reading)
    }

    /// Reads the body of `page` into `reading`.
    async fn receive(
        &self,
        response: Response,
        page: u32,
        reading: ListSnapshot,
        held: &Arc<StoreHashes>,
    ) -> Result<(ListSnapshot, Page), Error> {
        let error = |fault| Error { step: Step::List, fault };
        let read = stream::read(response, reading, Arc::clone(held)).await.map_err(error)?;
        self.answered.send_replace(Instant::now());
        if let Some(body) = read.echo {
            self.public.show(&body);
        }
        if !read.page.listed {
            debug!("no-additional-security-groups");
            return Err(error(Fault::Unlisted { page }));
        }
        Ok((read.reading, read.page))
    }

    async fn attempt(&self, held: &Arc<StoreHashes>, moved: Moved) -> Result<ListSnapshot, Error> {
        info!("get-security-groups-attempt-pagination");
        let before = self.last_update().await?;
        let mut reading = ListSnapshot::new(tracing::enabled!(Level::DEBUG));
        let mut whole = Whole::default();
        let mut page = 1;
        loop {
            debug!(page, "get-security-groups-request");
            let shown = reading.count();
            let response = self.page(page).await?;
            let error = |fault| Error { step: Step::List, fault };
            let mut found;
            (reading, found) = self.receive(response, page, reading, held).await?;
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
                if moved == Moved::Refused {
                    return Err(error(Fault::Moved));
                }
                reading.set_moved();
                found = whole.forget(found);
            } else {
                debug!(
                    originalUpdatedAt = %before, newUpdatedAt = %after,
                    "get-security-groups-timestamps-match"
                );
            }
            whole.add(page, found, reading.count()).map_err(error)?;
            if !found.more {
                debug!(page, "get-security-groups-last-page");
                return Ok(reading);
            }
            page += 1;
        }
    }
}

/// Limit of groups, above that of any foundation; the hashes alone take 100 MB.
const MOST_GROUPS: usize = 1_000_000;

/// Checks that the pages form the complete list, by the numbers that the pages state.
/// Without stated numbers the list ends at the last page; each page with a next link
/// must contain a new group.
#[derive(Debug, Default)]
struct Whole {
    stated: Option<u64>,
    count: usize,
}

impl Whole {
    /// Numbers of different times cannot be compared.
    fn forget(&mut self, found: Page) -> Page {
        self.stated = None;
        let total_pages = found.total_pages.filter(|_| found.more);
        Page { total_results: None, total_pages, ..found }
    }

    /// Adds `page`, after which the list has `count` distinct groups.
    fn add(&mut self, page: u32, found: Page, count: usize) -> Result<(), Fault> {
        let Page { more, listed: _, total_results, total_pages } = found;
        match (self.stated, total_results) {
            (Some(before), Some(now)) if before != now => {
                return Err(Fault::Resized { page, before, now });
            }
            (stated, now) => self.stated = stated.or(now),
        }
        let before = std::mem::replace(&mut self.count, count);
        if more {
            return match total_pages {
                Some(stated) if u64::from(page) >= stated => Err(Fault::Endless { page, stated }),
                _ if count == before => Err(Fault::Repeated { page }),
                _ if count > MOST_GROUPS => Err(Fault::TooMany { limit: MOST_GROUPS }),
                _ => Ok(()),
            };
        }
        let incomplete = |field, stated: Option<u64>, found| match stated {
            Some(stated) if stated != found => Err(Fault::Incomplete { field, stated, found }),
            _ => Ok(()),
        };
        match self.stated {
            Some(_) => incomplete("total_results", self.stated, count as u64),
            None => incomplete("total_pages", total_pages, u64::from(page)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages as (next, total_results, total_pages, total number of groups so far).
    fn check(pages: &[(bool, Option<u64>, Option<u64>, usize)]) -> String {
        let mut whole = Whole::default();
        for (number, &(more, total_results, total_pages, count)) in (1..).zip(pages) {
            let page = Page { more, listed: true, total_results, total_pages };
            if let Err(fault) = whole.add(number, page, count) {
                return fault.to_string();
            }
        }
        String::new()
    }

    #[test]
    fn a_list_is_whole_when_its_numbers_agree() {
        let two = (Some(7), Some(2));
        for (pages, fault) in [
            (vec![(true, two.0, two.1, 5), (false, two.0, two.1, 7)], ""),
            (vec![(true, None, None, 5), (false, None, None, 7)], ""),
            (vec![(false, Some(0), Some(1), 0)], ""),
            (vec![(false, Some(0), Some(0), 0)], ""),
            (
                vec![(false, two.0, None, 5)],
                "the list is incomplete: pagination.total_results says 7, the pages had 5",
            ),
            (
                vec![(true, two.0, two.1, 5), (false, two.0, two.1, 5)],
                "the list is incomplete: pagination.total_results says 7, the pages had 5",
            ),
            (
                vec![(false, None, two.1, 5)],
                "the list is incomplete: pagination.total_pages says 2, the pages had 1",
            ),
            (
                vec![(true, two.0, two.1, 5), (false, None, None, 6)],
                "the list is incomplete: pagination.total_results says 7, the pages had 6",
            ),
            (
                vec![(true, two.0, two.1, 5), (false, Some(6), two.1, 6)],
                "pagination.total_results was 7, and 6 on page 2",
            ),
            (
                vec![(true, two.0, two.1, 5), (true, two.0, two.1, 7)],
                "page 2 names a next page, though pagination.total_pages is 2",
            ),
            (
                vec![(true, None, None, 5), (true, None, None, 5)],
                "page 2 has no other security group than the pages before, and names a next page",
            ),
            (vec![(true, None, None, 2_000_000)], "the list has more than 1000000 security groups"),
        ] {
            assert_eq!(check(&pages), fault, "{pages:?}");
        }
    }
}
