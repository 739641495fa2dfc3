//! The policy store: keeps the Cloud Controller's security groups and pushes
//! changes to cells.
//!
//! One writer at a time replaces the whole set ([`committer`], [`groups`]); what it wrote is in
//! a database ([`store`]) and, encoded once, in memory, from where every cell is
//! told what changed for it ([`feed`]) or asks itself ([`http`]). [`access`] says
//! who may do what.

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
