//! Whole processes, real sockets, and what holds across crates.

#[path = "suite/dependencies.rs"]
mod dependencies;
