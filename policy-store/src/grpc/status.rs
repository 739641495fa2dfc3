//! Maps errors to gRPC statuses. Clients get errors that they can act on; internal
//! details go to the log.

use model::ids::CellId;
use tonic::{Code, Status};

use crate::{
    access::Denied,
    committer::Failure,
    feed::{
        cursor,
        questions::MAX_OPEN,
        watch::{End, Violation},
    },
    groups::{decide::Refusal, manifest},
    removals::NotAccepted,
    store,
};

/// Every error that a call can end with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Access denied.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Invalid value in a field.
    #[error(transparent)]
    Field(#[from] proto::Error),
    /// The messages of a stream are out of order, or a number is out of range.
    #[error("{0}")]
    Protocol(String),
    /// Invalid manifest or groups.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// Invalid subscription.
    #[error(transparent)]
    Subscription(#[from] cursor::Error),
    /// A cell broke the protocol of its watch.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// No container or cell that was asked for.
    #[error("{0}")]
    NotFound(String),
    /// A freeze of an empty store.
    #[error("no set of security groups is stored yet: there is nothing to freeze")]
    NothingStored,
    /// A roll-out of frozen cells.
    #[error("cells are frozen: unfreeze first")]
    Frozen,
    /// A request was not passed to a cell, or not answered.
    #[error(transparent)]
    Unasked(#[from] Unasked),
    /// A refused removal was not accepted.
    #[error(transparent)]
    NotAccepted(#[from] NotAccepted),
    /// A Replace was not confirmed.
    #[error(transparent)]
    Replace(#[from] Failure),
    /// The history was not read.
    #[error(transparent)]
    Unread(#[from] store::Error),
    /// The limit of concurrent Replaces is reached.
    #[error("too many Replaces at the same time")]
    Busy,
    /// Idle timeout of a writer.
    #[error("the writer sent nothing for {0} seconds")]
    Silent(u64),
    /// Deadline of a Replace.
    #[error("the Replace took longer than {0} seconds")]
    Slow(u64),
    /// The process is shutting down.
    #[error("the store is shutting down: connect again")]
    Draining,
    /// The transport failed; its status is passed on.
    #[error(transparent)]
    Transport(Box<Status>),
}

/// Reason why there is no answer of a cell.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// No such cell.
    #[error("no cell {0} is known: no cell with this id reported within the last seven days")]
    Unknown(CellId),
    /// The cell has no watch here.
    #[error("cell {0} does not watch this instance")]
    NotConnected(CellId),
    /// The watch ended before the answer.
    #[error("the watch of cell {0} ended before the answer")]
    Ended(CellId),
    /// The agent does not support questions.
    #[error("the agent of cell {cell} answers no requests: its version is {version:?}")]
    AnswersNone {
        /// The cell.
        cell: CellId,
        /// Version of the agent.
        version: Box<str>,
    },
    /// Too many questions are open.
    #[error("cell {0} has {MAX_OPEN} open requests")]
    TooMany(CellId),
    /// The deadline has passed.
    #[error("cell {0} did not answer in time")]
    Late(CellId),
    /// The answer is an error of the agent; its status is passed on.
    #[error(transparent)]
    Agent(Box<Status>),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Transport(Box::new(status))
    }
}

impl From<End<Error>> for Error {
    fn from(end: End<Error>) -> Self {
        match end {
            End::Draining => Self::Draining,
            End::Broken(error) => error,
        }
    }
}

/// The error of an invalid field.
pub(super) fn invalid(field: &str, problem: impl std::fmt::Display) -> Error {
    Error::Protocol(format!("{field}: {problem}"))
}

/// The only mapping from errors to statuses.
#[must_use]
pub fn status(error: &Error) -> Status {
    let code = match error {
        Error::Denied(_) => Code::PermissionDenied,
        Error::Field(_)
        | Error::Protocol(_)
        | Error::Manifest(_)
        | Error::Subscription(_)
        | Error::Violation(_) => Code::InvalidArgument,
        Error::Replace(Failure::Store(error)) | Error::Unread(error) => return of_store(error),
        Error::Replace(Failure::ShuttingDown) | Error::Draining => Code::Unavailable,
        Error::NothingStored | Error::Frozen => Code::FailedPrecondition,
        Error::NotFound(_) | Error::Unasked(Unasked::Unknown(_)) => Code::NotFound,
        Error::Unasked(Unasked::NotConnected(_) | Unasked::Ended(_)) => Code::Unavailable,
        Error::Unasked(Unasked::AnswersNone { .. }) => Code::Unimplemented,
        Error::Unasked(Unasked::TooMany(_)) => Code::ResourceExhausted,
        Error::Unasked(Unasked::Late(_)) => Code::DeadlineExceeded,
        Error::Unasked(Unasked::Agent(status)) => return (**status).clone(),
        Error::NotAccepted(_) => Code::FailedPrecondition,
        Error::Busy => Code::ResourceExhausted,
        Error::Silent(_) | Error::Slow(_) => Code::DeadlineExceeded,
        Error::Transport(status) => return (**status).clone(),
    };
    Status::new(code, error.to_string())
}

/// Status of an error of the store. The error chain of a database contains paths and SQL
/// statements: it is logged, and not sent.
fn of_store(error: &store::Error) -> Status {
    let code = match error {
        store::Error::TooLarge { .. } => Code::InvalidArgument,
        store::Error::Refused(refused) => match refused.refusal {
            Refusal::OldToken { .. }
            | Refusal::TokenOfAnother { .. }
            | Refusal::TokenTooFar { .. }
            | Refusal::MassRemoval { .. } => Code::FailedPrecondition,
            Refusal::Overtaken { .. } => Code::Aborted,
        },
        store::Error::Database(error) if error.is_retryable() => {
            return Status::unavailable("the database failed, try again later");
        }
        store::Error::Database(_) | store::Error::CorruptRow { .. } => {
            return Status::internal("the database failed");
        }
    };
    Status::new(code, error.to_string())
}
