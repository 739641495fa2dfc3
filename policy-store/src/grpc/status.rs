//! What a caller is told when something cannot be done. Callers learn what they
//! can change; what is wrong inside is for the log.

use tonic::{Code, Status};

use crate::{
    access::Denied,
    committer::Failure,
    feed::{cursor, watch::End},
    groups::{decide::Refusal, manifest},
    store,
};

/// Everything that a call can end with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A field holds something that it must not hold.
    #[error(transparent)]
    Field(#[from] proto::Error),
    /// The messages of a stream are out of order, or a number is out of range.
    #[error("{0}")]
    Protocol(String),
    /// A manifest or its groups.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A subscription.
    #[error(transparent)]
    Subscription(#[from] cursor::Error),
    /// A Replace was not confirmed.
    #[error(transparent)]
    Replace(#[from] Failure),
    /// Too many Replaces at the same time.
    #[error("too many Replaces at the same time")]
    Busy,
    /// A writer said nothing for too long.
    #[error("the writer said nothing for {0} seconds")]
    Silent(u64),
    /// A Replace did not come to its end in time.
    #[error("the Replace took longer than {0} seconds")]
    Slow(u64),
    /// The process is about to end.
    #[error("the store is shutting down: connect again")]
    Draining,
    /// The connection or the transport failed; the status is its own.
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

/// The one place where errors become statuses.
#[must_use]
pub fn status(error: &Error) -> Status {
    let code = match error {
        Error::Denied(_) => Code::PermissionDenied,
        Error::Field(_)
        | Error::Protocol(_)
        | Error::Manifest(_)
        | Error::Subscription(_)
        | Error::Replace(Failure::Store(store::Error::TooLarge { .. })) => Code::InvalidArgument,
        Error::Replace(Failure::Store(store::Error::Refused(refused))) => match refused.refusal {
            Refusal::OldToken { .. }
            | Refusal::TokenOfAnother { .. }
            | Refusal::TokenTooFar { .. }
            | Refusal::MassRemoval { .. } => Code::FailedPrecondition,
            Refusal::Overtaken { .. } => Code::Aborted,
        },
        // The chain has paths and statements, and is in the log.
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
        Error::Busy => Code::ResourceExhausted,
        Error::Silent(_) | Error::Slow(_) => Code::DeadlineExceeded,
        Error::Transport(status) => return (**status).clone(),
    };
    Status::new(code, error.to_string())
}
