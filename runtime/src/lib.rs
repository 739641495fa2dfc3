//! Foundation of a Portcullis process: configuration, logs, TLS, signals, supervision, gRPC and
//! HTTP servers, clients and metrics.
//!
//! A service implements [`process::Service`] and its `main` is one line. This crate contains no
//! domain code: nothing depends on locks, rules or containers.
//!
//! Modules, outermost first:
//!
//! | module | what it owns |
//! |---|---|
//! | [`process`] | process lifecycle, from arguments to exit code |
//! | [`config`] | one JSON file, all of its problems reported at once |
//! | [`lager`] | log lines in the format of the Cloud Foundry components |
//! | [`tls`] | certificates, reloaded when their files change |
//! | [`server`] | listeners, gRPC and HTTP servers, the admin endpoint |
//! | [`health`] | readiness of a process |
//! | [`client`] | gRPC channels |
//! | [`write_coalescing`] | coalesces the writes of one poll into a single write |
//! | [`dropsonde`] | metrics for the machine's metron agent, over UDP |
//! | [`loggregator`] | metrics and app logs for the machine's agent |
//! | [`https`] | HTTP clients |
//! | [`json`] | JSON from outside; objects are read only from objects |
//! | [`go_json`] | JSON text as Go writes it |
//! | [`supervise`] | task groups; every task is awaited |
//! | [`periodic`] | work that repeats until shutdown |
//! | [`metrics`] | Prometheus text |
//! | [`redact`] | URLs without user names and passwords |
//! | [`backoff`], [`mod@error`] | pauses between attempts, errors as text |

pub mod client;
pub mod config;
pub mod dropsonde;
pub mod error;
pub mod go_json;
pub mod health;
pub mod https;
pub mod json;
pub mod lager;
pub mod loggregator;
pub mod metrics;
pub mod periodic;
pub mod process;
pub mod redact;
pub mod server;
pub mod supervise;
pub mod tls;
pub mod write_coalescing;

pub use net::backoff;
