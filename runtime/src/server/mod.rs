//! Listeners and the servers on them.
//!
//! [`Grpc`] and [`Http`] differ in what they route; accepting, TLS and draining
//! are the same for both and live in `connections`. [`Admin`] is an [`Http`]
//! with the routes that every process has.

mod admin;
mod connections;
mod executor;
mod grpc;
mod grpc_go_compat;
mod http;
mod intake;
mod listener;
mod write_timeout;

use std::io;

pub use crate::health::{Component, Health};
pub use admin::{Admin, RunningAdmin};
pub use connections::{ConnectionDraining, GOAWAY_INTERVAL, Limits};
pub use grpc::{Deadline, Entry, Grpc, Head};
pub use http::Http;
pub use listener::Listener;

/// Why a server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that is not host:port, or whose host has no address.
    #[error("{what}: resolving {address}")]
    Resolve {
        /// What should listen.
        what: &'static str,
        /// Where.
        address: String,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be had.
    #[error("{what}: listening on {address}")]
    Listen {
        /// What should listen.
        what: &'static str,
        /// Where.
        address: String,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
    /// The descriptor sets are not valid.
    #[error("setting up gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}
