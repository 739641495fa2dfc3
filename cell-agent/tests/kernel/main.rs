//! The agent against a real kernel: real packets through network namespaces.
//!
//! Needs root (or user namespaces with all capabilities), nft and ip; where they
//! are missing, the tests fail and say so.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod agent;
mod applog;
mod beside;
mod cases;
mod explained;
mod faults;
mod features;
mod lab;
mod metrics;
mod offline;
mod once;
mod packets;
mod polled;
#[path = "../recorded/mod.rs"]
mod recorded;
mod silk;
mod speed;
mod store;
mod swap;
