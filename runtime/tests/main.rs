//! Black-box tests of the runtime: real sockets, real certificates, real processes.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod certificates;
mod drain;
mod fuzz;
mod grpc;
mod http;
mod listen;
mod loggregator;
mod peers;
mod process;
mod reload;
mod supervise;
mod tls;
mod unusual;
mod wait;
