//! The command line of the program, without a kernel.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

#[path = "../recorded/mod.rs"]
mod recorded;
mod render;
