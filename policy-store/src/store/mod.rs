//! Storage of security groups.
//!
//! [`Store`] is the trait; `tests/store.rs` contains the conformance suite of all
//! implementations: [`sqlite`] for one instance, [`server`] for several that share a database,
//! and an in-memory reference for tests (feature `testing`).

mod archive;
mod batch;
mod held_text;
mod plan;
mod read;
mod rows;
mod rules;
pub mod server;
mod session;
pub mod sqlite;
mod tables;
#[cfg(feature = "testing")]
pub mod testing;
mod uses;
mod write;

use std::{fmt::Debug, pin::Pin, sync::Arc};

use model::{
    generation::Point,
    ids::{CellId, GroupGuid},
};

use storage::server::Stats;

pub use self::{archive::Archive, uses::UseLog};
pub use crate::groups::contents::{Contents, Stored};

use crate::{
    groups::{
        decide::{Decision, Refused, Replacement, State},
        held::Order,
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
};

/// Reason why a store call fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Replace was refused. Nothing is stored except a new token that passed the fence.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The database failed. Nothing is stored, unless it failed in the middle of a commit:
    /// then only [`Store::load`] shows the outcome.
    #[error("the database failed")]
    Database(#[from] storage::Error),
    /// A group exceeds the statement size limit of this database.
    #[error("group {guid} has {bytes} bytes of rules, this database takes at most {most}")]
    TooLarge {
        /// Guid of the group.
        guid: GroupGuid,
        /// Size in the database.
        bytes: usize,
        /// Size limit.
        most: usize,
    },
    /// Corrupt row: a value that this program did not write.
    #[error("corrupt value in {field}: {problem}")]
    CorruptRow {
        /// Table and column.
        field: &'static str,
        /// Description of the problem.
        problem: String,
    },
}

/// Result of [`Store::news`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Another instance may have written.
    Written,
    /// Nothing can be written any more: after [`Store::close`], or when the writer thread of
    /// the store has died.
    Closed,
}

/// Result of [`Store::mend`] for the rows of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// The rows exist, or no set was ever stored.
    Nothing,
    /// The rows were lost, and are restored from memory.
    Restored,
    /// The rows were lost; a complete set has to be replaced.
    Forgotten,
}

/// Future of a store call.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Stores one set of security groups, its state, and the reports of cells.
///
/// Contract:
/// - [`Store::replace`] executes the decision of [`crate::groups::decide::decide`] on
///   the stored state atomically, serialized with other replaces, and returns after it
///   is durable. A refused replace stores only [`Refused::seen`], which is durable too;
///   an aborted one leaves no trace.
/// - It writes only changes: unchanged groups cost no write.
/// - [`Store::load`] includes every replace acknowledged before, and never a part of a
///   replace.
/// - Several instances may use one store on a shared database: the contract holds
///   across them, too.
/// - A replace that has begun is carried out even if its caller cancels.
/// - Reports are independent: they neither wait for groups nor count as changes.
pub trait Store: Send + Sync + Debug {
    /// Reads everything; or only the changes since a generation that the caller knows, if the
    /// store remembers that far back ([`Contents::since`] shows which).
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents>;

    /// Replaces the set.
    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision>;

    /// Executes the decision of [`crate::groups::held::hold`] on the stored state, with its entry
    /// in the history, as a replace does; returns the state afterwards.
    fn hold(&self, change: Arc<Order>) -> Answer<'_, State>;

    /// Stores reports received by this instance, all or nothing, and returns those that other
    /// instances have stored recently.
    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>>;

    /// Recreates lost tables and columns. When rows of the set were lost with them or by
    /// themselves, restores `served`, if it is complete and not older than the state;
    /// otherwise deletes the remaining rows, and the state is not complete
    /// ([`is_whole`](crate::groups::decide::State::is_whole)) until the next Replace. The
    /// generation and the fencing token stay or rise, as far as they are known.
    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended>;

    /// The history of the generations.
    fn history(&self) -> &dyn Archive;

    /// The uses of rules.
    fn uses(&self) -> &dyn UseLog;

    /// Reads the newest generation, without a lock; `None` if no other instance can write.
    fn newest(&self) -> Option<Answer<'_, Point>> {
        None
    }

    /// Connection pool statistics, for a database on a server. Each call resets the maxima.
    fn stats(&self) -> Option<Stats> {
        None
    }

    /// Resolves at the next notification. Cancel safe.
    fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>>;

    /// Makes everything durable and closes the store; later calls fail.
    fn close(&self) -> Answer<'_, ()>;
}
