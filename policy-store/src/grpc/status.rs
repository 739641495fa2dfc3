//! Maps errors to gRPC statuses. Clients get errors that they can act on; internal
//! details go to the log.

use tonic::{Code, Status};

use crate::{
    access::Denied,
    committer::Failure,
    feed::{
        cursor,
        watch::{End, Violation},
    },
    groups::{decide::Refusal, manifest},
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
    /// A Replace was not confirmed.
    #[error(transparent)]
    Replace(#[from] Failure),
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
        | Error::Violation(_)
        | Error::Replace(Failure::Store(store::Error::TooLarge { .. })) => Code::InvalidArgument,
        Error::Replace(Failure::Store(store::Error::Refused(refused))) => match refused.refusal {
            Refusal::OldToken { .. }
            | Refusal::TokenOfAnother { .. }
            | Refusal::TokenTooFar { .. }
            | Refusal::MassRemoval { .. } => Code::FailedPrecondition,
            Refusal::Overtaken { .. } => Code::Aborted,
        },
        // The error chain contains paths and SQL statements; it is logged.
        Error::Replace(Failure::Store(store::Error::Database(error))) => {
            return match error.is_retryable() {
                true => Status::unavailable("the database failed, try again later"),
                false => Status::internal("the database failed"),
            };
        }
        Error::Replace(Failure::Store(store::Error::CorruptRow { .. })) => {
            return Status::internal("the database failed");
        }
        Error::Replace(Failure::ShuttingDown) | Error::Draining => Code::Unavailable,
        Error::NotFound(_) => Code::NotFound,
        Error::Busy => Code::ResourceExhausted,
        Error::Silent(_) | Error::Slow(_) => Code::DeadlineExceeded,
        Error::Transport(status) => return (**status).clone(),
    };
    Status::new(code, error.to_string())
}
