//! The lock server from outside: stores, wire, process.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails the test")]

mod backup;
mod certificates;
mod conformance;
mod disk;
mod failover;
mod fuzz;
mod laws;
mod lost;
mod operators;
mod patience;
mod process;
mod reads;
mod reaper;
mod refused;
mod shape;
mod shared;
mod slow;
mod strange;
mod support;
mod wire;
