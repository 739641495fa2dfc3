//! Copies the Cloud Controller's security groups to the policy store.
//!
//! The program runs [`app::App`]. One of several syncers leads at a time: the one that holds the
//! lock `policy-server-asg-syncer` ([`lease`]). It polls the Cloud Controller's last-update stamp
//! ([`poll`]), reads a consistent list ([`cloud_controller`]), converts it to the model
//! ([`import`]) and a manifest of hashes ([`manifest`]), and replaces the set in the store
//! ([`cycle`], [`store`]). Replaces policy-server-asg-syncer; docs/compatibility/asg-syncer.md.
//!
//! Invariants:
//! - Nothing is written without the lock: the work is aborted when the lease ends, before the lock
//!   server can grant the lock to another owner, and the store refuses a fencing token older than
//!   one it has seen.
//! - A stamp is remembered as synced only after the store has confirmed.
//! - No error ends the process, and no error removes rules from any container.
//!
//! Nothing is stored on disk: a process that starts, or becomes leader, syncs once and has its
//! state again.
//!
//! Not in this crate: locks ([`lock_server`](../lock_server/index.html)), storage and distribution
//! of groups ([`policy_store`](../policy_store/index.html)), the contracts ([`proto`]), process
//! infrastructure ([`runtime`]).

pub mod app;
pub mod cloud_controller;
pub mod config;
pub mod cycle;
pub mod import;
pub mod lease;
pub mod manifest;
pub mod metrics;
pub mod poll;
pub mod report;
pub mod stamp;
pub mod store;
