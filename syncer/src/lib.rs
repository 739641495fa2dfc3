//! Brings the Cloud Controller's security groups to the policy store.
//!
//! One of several syncers leads at a time: the one that holds the lock
//! `policy-server-asg-syncer` ([`lease`]). It looks at the Cloud Controller's
//! last-update stamp ([`poll`]), reads the list so that it holds together
//! ([`cloud_controller`]), turns it into the model ([`import`]) and a manifest of
//! hashes ([`reading`]), and has the store replace its set ([`cycle`],
//! [`store`]). In place of policy-server-asg-syncer; docs/compatibility/asg-syncer.md.
//!
//! What always holds:
//! - Nothing is written without the lock: the work is aborted when the lease
//!   ends, before the lock server could give the lock away, and the store refuses
//!   a fencing token older than one it has seen.
//! - What is remembered as synced was confirmed by the store.
//! - No error ends the process, and none removes rules from anybody.
//!
//! Nothing is kept on disk: a process that starts, or becomes leader, syncs
//! once and knows everything again.

pub mod app;
pub mod cloud_controller;
pub mod config;
pub mod cycle;
pub mod import;
pub mod lease;
mod log_format;
pub mod manifest;
pub mod metrics;
pub mod poll;
pub mod report;
pub mod stamp;
pub mod store;
