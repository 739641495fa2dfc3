//! The policy store: keeps the Cloud Controller's security groups and pushes
//! changes to cells.
//!
//! One writer at a time replaces the whole set ([`committer`], [`groups`]). The set is
//! stored in a database ([`store`]) and, encoded once, in memory. Cells receive relevant
//! changes over a watch ([`feed`]) or poll ([`http`]). [`access`] has the access
//! control.

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
mod report;
pub mod reports;
pub mod store;
