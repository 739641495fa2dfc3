//! The agent against a real kernel: real packets through network namespaces.
//!
//! Needs root (or user namespaces with all capabilities), nft and ip; where they
//! are missing, the tests fail and say so.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]
#![expect(clippy::print_stdout, reason = "figures for whoever runs a long test by hand")]

mod agent;
mod applog;
mod beside;
mod cases;
mod certificates;
mod denied;
mod differences;
mod direct;
mod endpoints;
mod explained;
mod faults;
mod features;
mod foreign;
mod inputs;
mod lab;
mod laws;
mod limits;
mod metrics;
mod offline;
mod once;
mod packets;
mod planes;
mod polled;
mod privileges;
mod process;
mod race;
#[path = "../recorded/mod.rs"]
mod recorded;
mod reported;
mod rootless;
mod silk;
mod speed;
mod stage;
mod stall;
mod store;
mod strangers;
mod swap;
mod unread;
mod used;
mod waits;
