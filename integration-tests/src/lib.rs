//! Helpers of the whole-process tests: real binaries, started with real files,
//! listening on ports that the kernel chose, watched through their logs.
//!
//! Waits are level-triggered and bounded: a test asks whether something is so,
//! again and again, until it is or the time is up, and then says what it saw.

pub mod binaries;
pub mod grpcurl;
pub mod hostile;
pub mod process;
pub mod services;
pub mod tools;
pub mod wait;
pub mod wire;
