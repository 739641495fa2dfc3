//! Helpers of the whole-process tests: real binaries, started with real files, listening on ports
//! that the kernel chose, observed through their logs.
//!
//! Main types: [`process::Process`] is a running program, [`services`] starts the services,
//! [`wait`] has level-triggered, bounded waits: a condition is checked until it holds or the time
//! is up, and the failure names the last state.
//!
//! Not in this crate: tests of one crate, which are beside its code.

pub mod binaries;
pub mod browser;
pub mod grpcurl;
pub mod hostile;
pub mod process;
pub mod sandbox;
pub mod services;
pub mod tools;
pub mod wait;
pub mod wire;
