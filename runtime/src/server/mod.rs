//! Listeners and the servers on them.
//!
//! [`Grpc`] and [`Http`] differ in routing; accept, TLS and drain are common and live in
//! `connections`. [`Admin`] is an [`Http`] server with the routes that every process has.

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

/// Error from setting up a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not host:port, or its host has no address.
    #[error("{what}: resolving {address}")]
    Resolve {
        /// Name of the server.
        what: &'static str,
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error("{what}: listening on {address}")]
    Listen {
        /// Name of the server.
        what: &'static str,
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor sets are not valid.
    #[error("setting up gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}
