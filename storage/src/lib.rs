//! SQL databases: open, migrate, write in groups, read beside the writer.
//!
//! This crate knows no domain: it gets statements and closures. [`sqlite`] is
//! the embedded database; its promise is in the header of that module.

mod error;
mod migration;
pub mod sqlite;

pub use self::{
    error::{Error, Kind},
    migration::Migration,
};
