//! Security groups: replaced as a whole, served from memory.
//!
//! [`manifest`] and [`decide`] are pure: the groups that a writer has to supply, and the
//! effect of a Replace, with [`content`]. [`snapshot`] and [`history`] are the served values, over
//! HTTP as [`json`] in compressed [`fragment`]s. [`explain`] answers questions about connections,
//! [`what_if`] about changes.
//! [`archive`] is the history that stores keep, from which a snapshot goes back to an older one.
//! [`held`] decides which generation cells keep while newer ones are stored, [`rollout`] the steps in
//! which a generation reaches them; [`released`] is the result.
//! [`current`] publishes the newest of them; [`committer`](crate::committer) is the only writer.

pub mod archive;
pub mod content;
pub mod contents;
pub mod current;
pub mod decide;
pub mod explain;
pub mod fragment;
pub mod held;
pub mod history;
pub mod json;
pub mod manifest;
pub mod page;
pub mod reach;
pub mod released;
pub mod rollout;
pub mod snapshot;
pub mod unused;
pub mod what_if;

use jiff::Timestamp;

/// Rounded to the precision of every store.
fn in_milliseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}
