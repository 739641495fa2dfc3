//! The local cluster: every part of Portcullis as a separate process, with cells in
//! network namespaces.
//!
//! The launcher owns everything that it starts: processes, namespaces, the files below
//! its state directory. It stops everything on SIGINT, SIGTERM and SIGHUP, and when a
//! part of its own fails. A process that exits during the start or during a story ends
//! the cluster; later it is reported, and the cluster continues. After a `kill -9` of
//! the launcher the kernel ends the processes, and the next launcher of that name
//! removes the namespaces.

pub mod cloud;
mod command;
pub mod container;
pub mod control;
pub mod fixtures;
pub mod forward;
pub mod guide;
pub mod internet;
pub mod launch;
pub mod layout;
pub mod live;
pub mod network;
pub mod operator;
pub mod ports;
pub mod probe;
pub mod process;
pub mod request;
pub mod rootless;
pub mod settings;
pub mod state;
mod story;
pub mod terminal;
pub mod topology;

pub use command::{Arguments, main};
