//! The cell agent: keeps the egress rules of every container of one cell in the kernel
//! in line with the security groups.
//!
//! ```text
//! containers ─┐
//!             ├─► plan ─► Ruleset ─► render ─► Table ─► diff ─► Change ─► apply ─► kernel
//! groups ─────┘  (pure)             (pure)             (pure)
//! ```
//!
//! The iptables plane has no diff step: the output of iptables-save is compared with
//! the chains of [`render::iptables`], and [`batch`] computes the changes.
//!
//! [`reconcile`] drives the loop, [`drift`] detects foreign changes of the kernel,
//! `control` serves the CNI plugin and `grpc` operators, and `explain` explains
//! verdicts. [`render_command`] prints the desired rules from files.

pub mod app;
pub mod app_log;
pub mod apply;
mod assemble;
pub mod batch;
mod c2c_logging;
mod change_detector;
pub mod config;
pub mod containers;
pub mod control;
pub mod diff;
pub mod drift;
pub mod explain;
pub mod groups;
pub mod grpc;
pub mod interfaces;
pub mod metrics;
pub mod netlink;
pub mod once;
pub mod plan;
pub mod reconcile;
pub mod render;
pub mod render_command;
pub mod spelling;
pub mod state;
mod underlay;
