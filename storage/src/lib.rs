//! SQL databases: open, migrate, write, read.
//!
//! This crate contains no domain code: it gets statements and closures. [`sqlite`] is the embedded
//! database, for one process; [`server`] is PostgreSQL, MySQL or MariaDB, shared by several. The
//! module headers state their guarantees.

mod error;
mod migration;
mod schema;
pub mod server;
pub mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;

pub use self::{
    error::{Error, Kind},
    migration::Migration,
    schema::{Column, Lost, Mending, Table},
};
