//! The cell agent: keeps the egress rules of every container of one cell in the kernel
//! in line with the security groups.
//!
//! ```text
//! containers ─┐                    ┌─ plane/nftables: render ─► diff ─► nft or netlink ───┐
//!             ├─► plan ─► Ruleset ─┤                                                      ├─► kernel
//! groups ─────┘  (pure)            └─ plane/iptables: render ─► batch ─► iptables-restore ┘
//!                                                     (pure)     (pure)
//! ```
//!
//! [`plan`] computes the rules of each container and knows no data plane. Everything that
//! belongs to one data plane is in its folder, behind [`plane::Plane`].
//!
//! [`reconcile`] drives the loop, [`isolate`] finds the rules that the kernel refuses,
//! `control` serves the CNI plugin, [`inspect`] answers operators, on the cell (`grpc`) and
//! through the store ([`questions`]), and `explain` explains verdicts. [`denied`] records denied
//! packets. [`render_command`] prints the desired rules from files.
//!
//! Main types: [`app::App`] is the program, [`plan::Ruleset`] the desired state,
//! [`containers::Snapshot`] the containers of the cell.
//!
//! Not in this crate: the effective rules of a container ([`model::effective`]), storage
//! of groups ([`policy_store`](../policy_store/index.html)), the contracts ([`proto`]),
//! process infrastructure ([`runtime`]). Facts about the original:
//! docs/compatibility/vxlan-policy-agent.md.

pub mod app;
pub mod app_log;
mod assemble;
mod c2c_logging;
pub mod config;
pub mod containers;
pub mod control;
pub mod denied;
pub mod explain;
pub mod groups;
pub mod grpc;
pub mod inspect;
pub mod interfaces;
pub mod isolate;
mod lookup;
pub mod metrics;
mod netlink;
pub mod once;
pub mod plan;
pub mod plane;
pub mod questions;
pub mod reconcile;
pub mod render_command;
pub mod route;
pub mod state;
mod underlay;
pub mod uses;
mod wire;
