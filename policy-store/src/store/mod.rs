//! Where security groups are kept.
//!
//! [`Store`] is the seam; `tests/store.rs` holds the suite that each
//! implementation passes: [`memory`] for tests, [`sqlite`] for one instance,
//! [`server`] for several that share a database.

pub mod memory;
mod plan;
mod rows;
mod rules;
pub mod server;
pub mod sqlite;

use std::{fmt::Debug, pin::Pin, sync::Arc};

use model::{
    generation::Point,
    ids::{CellId, GroupGuid},
};

pub use crate::groups::contents::{Contents, Hashed};

use crate::{
    groups::{
        decide::{Decision, Refused, Replacement},
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It must not happen. Nothing is stored but the token, if it is new and
    /// passed the fence.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The database failed. Nothing is stored, unless it failed in the middle
    /// of a commit: only [`Store::load`] knows then.
    #[error("the database failed")]
    Database(#[from] storage::Error),
    /// A group is more than this database takes in one statement.
    #[error("group {guid} has {bytes} bytes of rules, this database takes at most {most}")]
    TooLarge {
        /// Which group.
        guid: GroupGuid,
        /// How much it is in the database.
        bytes: usize,
        /// How much it may be.
        most: usize,
    },
    /// The database holds something that this program did not write.
    #[error("the database holds a senseless value in {field}: {problem}")]
    CorruptRow {
        /// Table and column.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// What [`Store::news`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Another instance may have written.
    Written,
    /// Nothing can be written any more: after [`Store::close`], or when the
    /// writer behind the store has died.
    Closed,
}

/// What [`Store::mend`] did about the rows of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// They are there, or there never were any.
    Nothing,
    /// They were lost, and are back from memory.
    Restored,
    /// They were lost; a whole set has to come.
    Forgotten,
}

/// What a store answers, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Keeps one set of security groups, what it was made from, and what cells
/// reported.
///
/// Promises:
/// - [`Store::replace`] does what [`crate::groups::decide::decide`] decides on
///   the stored state, all of it or nothing, in one step that no other replace
///   comes between, and answers after it is durable. Refused, it leaves nothing
///   but what [`Refused::seen`] says, which is durable too; broken off, it leaves
///   no trace.
/// - It writes only what changed: unchanged groups cost no write.
/// - [`Store::load`] sees every replace that was answered before, and no part
///   of a replace.
/// - Several instances may have one store, if it is on a shared database: all
///   promises hold between them, too.
/// - A replace that was begun is carried out even if its caller gives up.
/// - Reports are kept apart: they neither wait for groups nor count as change.
pub trait Store: Send + Sync + Debug {
    /// Reads everything; or only what changed since a generation that the caller
    /// knows, if the store remembers that far back ([`Contents::since`] says so).
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents>;

    /// Replaces the set.
    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision>;

    /// Writes down what cells said here, all or nothing, and answers what other
    /// instances have written lately.
    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>>;

    /// Makes tables and columns again that were lost. When rows of the set were lost with
    /// them or by themselves, `served` takes their place, if it is a whole set and not
    /// older than the state; otherwise what is left is forgotten, and the state is not
    /// whole ([`is_whole`](crate::groups::decide::State::is_whole)) until a Replace brings everything. The generation and
    /// the fencing token stay or rise, as far as they are known.
    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended>;

    /// Resolves when there is something to know. May be dropped and called
    /// again: nothing is missed by that.
    fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>>;

    /// Makes everything durable and gives the store up; nothing works after it.
    fn close(&self) -> Answer<'_, ()>;
}
