//! Lock service for Cloud Foundry components, wire compatible with Locket.
//!
//! The program runs [`app::App`]. A call goes from [`grpc`] through [`locks::Locks`], the use
//! cases, to a [`store::Store`]; committed changes go through [`feed::Feed`] to watchers,
//! deadlines, metrics and log.
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
//!
//! Not in this crate: the contracts ([`proto`]), the types of locks ([`model`]), databases
//! ([`storage`]), process infrastructure ([`runtime`]). Its main client of ours is the
//! [`syncer`](../syncer/index.html); facts about Locket: `docs/compatibility/locket.md`.

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
