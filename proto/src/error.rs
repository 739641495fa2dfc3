//! Validation errors of received messages.

use std::fmt::Display;

/// A message that cannot be converted to the model. Displays as a sentence that names the field and
/// the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A required field is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has an invalid value.
    #[error("{field}: {problem}")]
    Invalid {
        /// The path of the field, such as `group g1: running_space_guids[3]`.
        field: String,
        /// The problem, with the value.
        problem: String,
    },
    /// A claim that Locket rejects with a status of its own; displays as the original's message.
    #[error(transparent)]
    Lock(#[from] model::lock::Error),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Display) -> Self {
        Self::Invalid { field: field.into(), problem: problem.to_string() }
    }
}
