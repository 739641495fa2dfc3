//! Tests across modules.
#![expect(clippy::unwrap_used, reason = "tests: a panic is a failure with its place")]

mod access;
mod archive;
mod backup;
mod changes;
mod config;
mod decide;
mod explain;
mod foundation;
mod grpc;
mod grpc_cells;
mod grpc_history;
mod handover;
mod http;
mod http_gate;
mod http_shape;
mod instances;
mod large;
mod log_lines;
mod lost;
mod metron;
mod original;
mod process;
mod removal;
mod shared;
mod slow;
mod snapshot;
mod status;
mod store;
mod store_laws;
mod store_server;
mod store_sqlite;
mod support;
mod watch;
mod what_if;
mod wire;
