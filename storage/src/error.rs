//! Database errors, grouped by how the caller should react.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rusqlite::ErrorCode;

use crate::server::Fault;

/// A failed database operation. The source is in the error chain, not in the text.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, created or initialized.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file or its lock file cannot be created.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Another process has the database open.
    #[error("the database {} is in use by another process", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// A backup would overwrite the database itself.
    #[error("{} belongs to the database itself: name another file", path.display())]
    OwnFile {
        /// The target file.
        path: PathBuf,
    },
    /// A backup is damaged, and so is the database.
    #[error("the database is damaged: {problem}")]
    Damaged {
        /// The first problem that SQLite found.
        problem: String,
    },
    /// The migration versions of this program are not 1, 2, 3 ...
    #[error("migration {found} ({name}) is in the place of number {expected}")]
    MigrationOrder {
        /// Actual version.
        found: u32,
        /// Name of the migration.
        name: &'static str,
        /// Expected version.
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
        /// Newest version known to this program.
        known: u32,
    },
    /// An applied migration differs from the one of this program.
    #[error(
        "migration {version} was applied as `{applied}` and differs from `{known}` of this release: \
         this is another program's database, or the migration was edited"
    )]
    ChangedMigration {
        /// Version of the migration.
        version: u32,
        /// Name in the database.
        applied: String,
        /// Name in this program.
        known: &'static str,
    },
    /// A migration failed; the schema is unchanged.
    #[error("migration {version} ({name}) failed")]
    Migration {
        /// Version of the migration.
        version: u32,
        /// Name of the migration.
        name: &'static str,
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A statement failed.
    #[error("a statement failed: {}", Kind::of(source).text())]
    Statement {
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The transaction could not begin or commit; nothing of it is stored.
    #[error("a transaction failed: {}", Kind::of(source).text())]
    Transaction {
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// SQLite rolled the transaction back because of another write in it.
    #[error("the transaction was rolled back because another write in it failed")]
    Abandoned,
    /// A connection string is invalid.
    #[error("the connection string is wrong: {problem}")]
    ConnectionString {
        /// The problem, without the string.
        problem: String,
    },
    /// There is no connection to the database server; no statement was sent.
    #[error("no connection to the database: {}", source.kind().text())]
    Connect {
        /// Error from the server or the network.
        #[source]
        source: Arc<Fault>,
    },
    /// A statement failed on the database server, without effect. For a read, also a lost
    /// connection.
    #[error("a statement failed: {}", source.kind().text())]
    Server {
        /// The server's error.
        #[source]
        source: Arc<Fault>,
    },
    /// A write was sent but its response never arrived: the write may or may not be stored.
    #[error("it is not known whether a write is stored: {}", source.kind().text())]
    OutcomeUnknown {
        /// Why there is no response.
        #[source]
        source: Arc<Fault>,
    },
    /// The database server timed out; nothing is stored.
    #[error("the database did not answer within {after:?}")]
    Timeout {
        /// The timeout.
        after: Duration,
        /// The error that caused the retries, if known.
        #[source]
        source: Option<Arc<Fault>>,
    },
    /// A column does not have the expected type.
    #[error("column {column} is {found}, not {wanted}")]
    Column {
        /// Column index, from 0.
        column: usize,
        /// Type in the row.
        found: &'static str,
        /// Requested type.
        wanted: &'static str,
    },
    /// A statement of a migration failed on the database server.
    #[error("statement {statement} of migration {version} ({name}) failed: {}", source.kind().text())]
    Step {
        /// Version of the migration.
        version: u32,
        /// Name of the migration.
        name: &'static str,
        /// Which of its statements, from 1; the earlier ones are applied.
        statement: usize,
        /// The server's error.
        #[source]
        source: Arc<Fault>,
    },
    /// The closure panicked; nothing of it is stored.
    #[error("the work on the database panicked")]
    Panicked,
    /// The database was closed, or its writer thread has ended.
    #[error("the database is closed")]
    Closed,
}

/// Classification of an error by the reaction it requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Conflict with another transaction or process.
    Busy,
    /// No disk space, or the page limit is reached.
    Full,
    /// Disk read, write or sync error.
    Io,
    /// The file is damaged or not a database.
    Corrupt,
    /// No permission, or the file is not writable.
    ReadOnly,
    /// The server currently accepts no writes: usually a standby, and another server will be
    /// promoted.
    Standby,
    /// The server or the network is currently unavailable.
    Unavailable,
    /// Timeout.
    Timeout,
    /// The server rejects the client, or its certificate is not trusted.
    Refused,
    /// A constraint of the schema is violated.
    Constraint,
    /// A value that cannot be stored: too long, or not text.
    Data,
    /// The schema does not match this program.
    Schema,
    /// The database was closed.
    Closed,
    /// Any other error, usually an invalid statement.
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

    /// Whether a retry of the same operation may succeed, without a change to the program or a
    /// repair of the database.
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

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Server { source: Arc::new(fault) }
    }
}
