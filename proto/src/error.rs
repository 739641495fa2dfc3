//! What is wrong with a message that arrived.

use std::fmt::Display;

/// A message that cannot be a value of the model. Displays as a sentence that
/// names the field and the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field without which the message has no meaning is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field holds something that it must not hold.
    #[error("{field}: {problem}")]
    Invalid {
        /// The path of the field, such as `group g1: running_space_guids[3]`.
        field: String,
        /// What is wrong, with the value.
        problem: String,
    },
    /// A claim that Locket refuses with a status of its own; displays as the
    /// original's message.
    #[error(transparent)]
    Lock(#[from] model::lock::Error),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Display) -> Self {
        Self::Invalid { field: field.into(), problem: problem.to_string() }
    }
}
