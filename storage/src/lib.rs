//! SQL databases: open, migrate, write, read.
//!
//! This crate knows no domain: it gets statements and closures. [`sqlite`] is the
//! embedded database, of one process; [`server`] is PostgreSQL, MySQL or MariaDB,
//! shared by several. Their promises are in the headers of these modules.

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
