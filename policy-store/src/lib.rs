//! The policy store: stores the Cloud Controller's security groups and pushes changes to cells.
//!
//! The program runs [`app::App`]. One writer at a time replaces the whole set
//! ([`committer::Commits`], [`groups::decide`]). The set is stored in a database ([`store::Store`])
//! and, encoded once, in memory, with a history in the database ([`upkeep`]). Cells receive relevant
//! changes over a watch ([`feed`]) or poll ([`http`]); [`release`] says which, [`rollout`] moves a
//! roll-out on. [`access`] has the access control, [`grpc`] the gRPC services, [`page`] the live page.
//!
//! Not in this crate: reading the Cloud Controller ([`syncer`](../syncer/index.html)), rules in the
//! kernel ([`cell_agent`](../cell_agent/index.html)), the contracts ([`proto`]), databases
//! ([`storage`]), process infrastructure ([`runtime`]). Facts about the original:
//! `docs/compatibility/policy-server-internal.md`.

pub mod access;
pub mod app;
pub mod committer;
pub mod config;
pub mod feed;
pub mod groups;
pub mod grpc;
pub mod http;
pub mod metrics;
mod open;
pub mod page;
pub mod release;
pub mod removals;
mod report;
pub mod reports;
pub mod rollout;
pub mod store;
pub mod upkeep;
pub mod use_upkeep;
pub mod uses;
