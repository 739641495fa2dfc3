//! Whole processes, real sockets, and what holds across crates.

mod suite;
