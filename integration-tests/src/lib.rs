//! Helpers of the whole-process tests: real binaries with real files, ports chosen by the
//! kernel, observed through their logs.
//!
//! Waits are level-triggered and bounded: a test polls a condition until it holds or the
//! timeout ends, and then prints the last observation.

pub mod binaries;
pub mod grpcurl;
pub mod hostile;
pub mod process;
pub mod services;
pub mod tools;
pub mod wait;
pub mod wire;
