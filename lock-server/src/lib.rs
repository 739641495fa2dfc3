//! A lock server that is wire compatible with Locket.
//!
//! | module | content |
//! |---|---|
//! | [`decide`] | Locket's rules, pure; the shared store has them as SQL conditions, too |
//! | [`access`] | access control, pure |
//! | [`expiry`] | the queue of deadlines, pure |
//! | [`lock_version`], [`table`] | one version of a lock; the table of all held locks |
//! | [`store`] | the store trait and its implementations |
//! | [`feed`] | fans out committed changes |
//! | [`locks`] | the use cases |
//! | [`reaper`] | deletes expired locks |
//! | [`grpc`] | the gRPC services |
//! | [`metrics`], [`report`] | metrics and their reporters |
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
