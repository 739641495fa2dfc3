//! What can go wrong with a database, sorted by what the caller can do.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rusqlite::ErrorCode;

use crate::server::Fault;

/// A failed operation on a database. The source is in the chain, not in the
/// text.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, created or set up.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file or its lock file cannot be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Another process has the database.
    #[error("the database {} is in use by another process", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// A copy would take the place of the database itself.
    #[error("{} belongs to the database itself: name another file", path.display())]
    OwnFile {
        /// The file that was named.
        path: PathBuf,
    },
    /// A copy is not whole, and so the database is not.
    #[error("the database is damaged: {problem}")]
    Damaged {
        /// The first thing that SQLite found.
        problem: String,
    },
    /// The list of migrations of this program is not 1, 2, 3 ...
    #[error("migration {found} ({name}) stands where number {expected} belongs")]
    MigrationOrder {
        /// The number it has.
        found: u32,
        /// Its name.
        name: &'static str,
        /// The number it should have.
        expected: u32,
    },
    /// The database was written by a newer release.
    #[error(
        "the database has schema version {found}, this release knows only {known}: \
         use the newer release or restore a backup"
    )]
    NewerSchema {
        /// Version in the database.
        found: u32,
        /// Newest version that this program knows.
        known: u32,
    },
    /// A migration that was applied is not the one that this program has.
    #[error(
        "migration {version} was applied as `{applied}` and differs from `{known}` of this release: \
         this is another program's database, or the migration was edited"
    )]
    ChangedMigration {
        /// Its number.
        version: u32,
        /// Its name in the database.
        applied: String,
        /// Its name in this program.
        known: &'static str,
    },
    /// A migration failed; the schema is as before.
    #[error("migration {version} ({name}) failed")]
    Migration {
        /// Its number.
        version: u32,
        /// Its name.
        name: &'static str,
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A statement failed.
    #[error("a statement failed: {}", Kind::of(source).text())]
    Statement {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The transaction could not begin or commit: nothing of it is stored.
    #[error("a transaction failed: {}", Kind::of(source).text())]
    Transaction {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// SQLite gave the transaction up because of another write in it.
    #[error("the transaction was given up because another write in it failed")]
    Abandoned,
    /// A connection string cannot be understood.
    #[error("the connection string is wrong: {problem}")]
    ConnectionString {
        /// What is wrong, without the string.
        problem: String,
    },
    /// There is no connection to the database server; nothing was sent to it.
    #[error("no connection to the database: {}", source.kind().text())]
    Connect {
        /// What the server, or the way to it, said.
        #[source]
        source: Arc<Fault>,
    },
    /// A statement failed on the database server, and had no effect. A read may
    /// also have lost its connection.
    #[error("a statement failed: {}", source.kind().text())]
    Server {
        /// What the server said.
        #[source]
        source: Arc<Fault>,
    },
    /// A write was sent and its answer never came: it is stored, or it is not.
    #[error("it is not known whether a write is stored: {}", source.kind().text())]
    OutcomeUnknown {
        /// Why there was no answer.
        #[source]
        source: Arc<Fault>,
    },
    /// The database server took too long; nothing is stored.
    #[error("the database did not answer within {after:?}")]
    Timeout {
        /// How long it had.
        after: Duration,
        /// Why it was tried so long, if that is known.
        #[source]
        source: Option<Arc<Fault>>,
    },
    /// A column is not what the program takes it for.
    #[error("column {column} is {found}, not {wanted}")]
    Column {
        /// Counted from 0.
        column: usize,
        /// What is in the row.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A statement of a migration failed on the database server.
    #[error("statement {statement} of migration {version} ({name}) failed: {}", source.kind().text())]
    Step {
        /// The migration's number.
        version: u32,
        /// Its name.
        name: &'static str,
        /// Which of its statements, from 1; those before it are done.
        statement: usize,
        /// What the server said.
        #[source]
        source: Arc<Fault>,
    },
    /// The work itself panicked; nothing of it is stored.
    #[error("the work on the database panicked")]
    Panicked,
    /// The database was closed, or its writer is gone.
    #[error("the database is closed")]
    Closed,
}

/// The cause, as far as it matters for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody else was in the way.
    Busy,
    /// No space on the disk, or the page limit is reached.
    Full,
    /// The disk does not read, write or sync.
    Io,
    /// The file is damaged or no database.
    Corrupt,
    /// No permission, or the file cannot be written.
    ReadOnly,
    /// The server takes no writes at the moment: a standby, as a rule, and
    /// another will be made primary.
    Standby,
    /// The server, or the way to it, is not there at the moment.
    Unavailable,
    /// It took too long.
    Timeout,
    /// The server does not take us, or we do not trust it.
    Refused,
    /// A constraint of the schema.
    Constraint,
    /// A value that cannot be stored: too long, or not text.
    Data,
    /// The schema does not fit this program.
    Schema,
    /// The database was closed.
    Closed,
    /// Anything else: as a rule a mistake in a statement.
    Other,
}

impl Kind {
    fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted,
            ) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => Self::Io,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt,
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::CannotOpen
                | ErrorCode::AuthorizationForStatementDenied,
            ) => Self::ReadOnly,
            Some(ErrorCode::ConstraintViolation) => Self::Constraint,
            _ => Self::Other,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Busy => "the database is busy",
            Self::Full => "the disk is full",
            Self::Io => "the disk does not answer",
            Self::Corrupt => "the database is damaged",
            Self::ReadOnly => "the database cannot be written",
            Self::Standby => "the server takes no writes",
            Self::Unavailable => "the server is not there",
            Self::Timeout => "it took too long",
            Self::Refused => "the server refuses us, or is not trusted",
            Self::Constraint => "a constraint is violated",
            Self::Data => "a value cannot be stored",
            Self::Schema => "the schema does not fit",
            Self::Closed => "the database is closed",
            Self::Other => "the database refuses it",
        }
    }
}

impl Error {
    /// The cause.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { source, .. }
            | Self::Migration { source, .. }
            | Self::Statement { source }
            | Self::Transaction { source } => Kind::of(source),
            Self::Connect { source }
            | Self::Server { source }
            | Self::OutcomeUnknown { source }
            | Self::Step { source, .. } => source.kind(),
            Self::Timeout { .. } => Kind::Timeout,
            Self::Column { .. } => Kind::Schema,
            Self::ConnectionString { .. } | Self::OwnFile { .. } => Kind::Other,
            Self::Damaged { .. } => Kind::Corrupt,
            Self::Create { .. } => Kind::ReadOnly,
            Self::InUse { .. } => Kind::Busy,
            Self::MigrationOrder { .. }
            | Self::NewerSchema { .. }
            | Self::ChangedMigration { .. } => Kind::Schema,
            Self::Abandoned => Kind::Busy,
            Self::Panicked => Kind::Other,
            Self::Closed => Kind::Closed,
        }
    }

    /// Whether the same work may succeed later, without a change to the
    /// program or a repair of the database.
    pub fn is_retryable(&self) -> bool {
        match self.kind() {
            Kind::Busy
            | Kind::Full
            | Kind::Io
            | Kind::Standby
            | Kind::Unavailable
            | Kind::Timeout => true,
            Kind::Corrupt
            | Kind::ReadOnly
            | Kind::Refused
            | Kind::Constraint
            | Kind::Data
            | Kind::Schema
            | Kind::Closed
            | Kind::Other => false,
        }
    }

    pub(crate) fn open(path: PathBuf) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Open { path, source: Arc::new(source) }
    }

    pub(crate) fn transaction(source: rusqlite::Error) -> Self {
        Self::Transaction { source: Arc::new(source) }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Statement { source: Arc::new(source) }
    }
}
