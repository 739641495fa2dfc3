//! SQL databases: open, migrate, write, read.
//!
//! - [`sqlite`]: the embedded database, for one process; [`sqlite::Database`].
//! - [`server`]: PostgreSQL, MySQL or MariaDB, shared by several processes; [`server::Server`].
//! - [`Migration`], [`Table`]: the schema; missing tables and columns are recreated.
//!
//! The module headers state their guarantees. Not in this crate: domain code; callers pass
//! statements and closures. Users: [`lock_server`](../lock_server/index.html) and
//! [`policy_store`](../policy_store/index.html), each with tables of its own. Connections come from
//! [`net`], verification of certificates from [`trust`].
//!
//! # Example
//!
//! ```
//! use storage::{Error, Migration, sqlite::{Database, Options}};
//!
//! const MIGRATIONS: &[Migration] = &[Migration {
//!     version: 1,
//!     name: "notes",
//!     sql: "CREATE TABLE notes (text TEXT NOT NULL) STRICT",
//! }];
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("notes.db");
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let database = Database::open(path, &Options::default(), MIGRATIONS)?;
//! // In one transaction, together with the other waiting writes.
//! database
//!     .write(|transaction| {
//!         transaction.execute("INSERT INTO notes VALUES (?1)", ["on disk"])?;
//!         Ok::<_, Error>(())
//!     })
//!     .await?;
//! let count: i64 = database
//!     .read(|connection| {
//!         let sql = "SELECT count(*) FROM notes";
//!         Ok::<_, Error>(connection.query_row(sql, [], |row| row.get(0))?)
//!     })
//!     .await?;
//! assert_eq!(count, 1);
//! database.close().await?;
//! # Ok(())
//! # })
//! # }
//! ```

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
