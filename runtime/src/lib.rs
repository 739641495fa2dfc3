//! How a Portcullis process lives: configuration, logs, TLS, signals,
//! supervision, gRPC and HTTP servers, clients and metrics.
//!
//! A service implements [`process::Service`] and its `main` is one line. This
//! crate knows no domain: nothing in it depends on locks, rules or containers.
//!
//! The modules, from the outside in:
//!
//! | module | what it owns |
//! |---|---|
//! | [`process`] | the life of a process, from arguments to exit code |
//! | [`config`] | one JSON file, all of its problems reported at once |
//! | [`lager`] | log lines in the form of the Cloud Foundry components |
//! | [`tls`] | certificates, reloaded when their files change |
//! | [`server`] | listeners, gRPC and HTTP servers, the admin endpoint |
//! | [`health`] | whether a process can do its work |
//! | [`client`] | gRPC channels |
//! | [`write_coalescing`] | coalesces the writes of one poll into a single write |
//! | [`dropsonde`] | metrics for the metron agent of the machine, over UDP |
//! | [`loggregator`] | metrics and app logs for the agent of the machine |
//! | [`https`] | HTTP clients |
//! | [`json`] | JSON from outside, objects only from objects |
//! | [`supervise`] | tasks, each of which has a waiter |
//! | [`metrics`] | Prometheus text |
//! | [`redact`] | URLs without names and passwords |
//! | [`backoff`], [`mod@error`] | pauses between attempts, errors as text |

pub mod backoff;
pub mod client;
pub mod config;
pub mod dropsonde;
pub mod error;
pub mod health;
pub mod https;
pub mod json;
pub mod lager;
pub mod loggregator;
pub mod metrics;
pub mod process;
pub mod redact;
pub mod server;
pub mod supervise;
pub mod tls;
pub mod write_coalescing;
