//! A lock service that Locket's clients take for Locket.
//!
//! | module | what it is |
//! |---|---|
//! | [`decide`] | Locket's rules, pure |
//! | [`access`] | who may write and read, pure |
//! | [`expiry`] | the queue of deadlines, pure |
//! | [`held`], [`table`] | a version of a lock; all that are held |
//! | [`store`] | where locks are kept: the seam and its implementations |
//! | [`feed`] | who hears of a committed change |
//! | [`locks`] | the use cases |
//! | [`reaper`] | deletes what has expired |
//! | [`grpc`] | the wire |
//! | [`metrics`], [`report`] | what is counted, and who is told |
//! | [`config`], [`open`], [`app`] | the process |

pub mod access;
pub mod app;
pub mod config;
pub mod decide;
pub mod expiry;
pub mod feed;
pub mod grpc;
pub mod lock_version;
pub mod locks;
pub mod metrics;
pub mod open;
pub mod reaper;
pub mod report;
pub mod store;
pub mod table;
#[cfg(test)]
mod tests;
