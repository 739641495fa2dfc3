//! Everything that needs more than one module.
#![expect(clippy::unwrap_used, reason = "tests: a panic is a failure with its place")]

mod access;
mod config;
mod decide;
mod grpc;
mod http;
mod http_gate;
mod http_shape;
mod large;
mod process;
mod shared;
mod slow;
mod snapshot;
mod status;
mod store;
mod support;
mod watch;
mod wire;
