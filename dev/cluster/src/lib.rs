//! The local cluster: every part of Portcullis as a separate process, with cells in
//! network namespaces.
//!
//! The launcher owns everything that it starts: processes, namespaces, the files below
//! its state directory. It stops everything on SIGINT, SIGTERM and SIGHUP, and when a
//! part of its own fails. A process that exits during the start or during a story ends
//! the cluster; later it is reported, and the cluster continues. After a `kill -9` of
//! the launcher the kernel ends the processes, and the next launcher of that name
//! removes the namespaces.
//!
//! Not in this crate: the services, which are started as executables, and the network of
//! a cell ([`cni`]).

pub mod cloud;
mod command;
mod container;
pub mod control;
mod fixtures;
mod forward;
mod guide;
pub mod internet;
mod launch;
mod layout;
mod live;
pub mod network;
mod operator;
mod ports;
pub mod probe;
pub mod process;
mod request;
mod rootless;
mod settings;
pub mod state;
mod status_line;
mod story;
mod terminal;
pub mod topology;

pub use command::{Arguments, default_directory, main};
