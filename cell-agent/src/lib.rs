//! The cell agent: keeps the egress rules of every container of one cell in the
//! kernel, as the security groups say.
//!
//! ```text
//! containers ─┐
//!             ├─► plan ─► Ruleset ─► render ─► Table ─► diff ─► Change ─► apply ─► kernel
//! groups ─────┘  (pure)             (pure)             (pure)
//! ```
//!
//! On the iptables plane the middle is shorter: what iptables-save shows is
//! compared with the chains of [`render::iptables`], and [`batch`] leads from one
//! to the other.
//!
//! [`reconcile`] drives the loop, [`drift`] notices what others do to the kernel,
//! `control` and `grpc` are asked by the CNI plugin and by operators, and
//! `explain` says why. [`offline`] prints what would be in force.

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
