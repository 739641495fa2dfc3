//! The lock server from outside: stores, wire, process.

mod conformance;
mod disk;
mod laws;
mod process;
mod reaper;
mod support;
mod wire;
