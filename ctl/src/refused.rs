//! Errors of servers and connections, with the message and the code apart.

use std::fmt;

use runtime::client;
use tonic::{Code, Status};

/// An error of a server or of the connection: a message, and the code separately.
#[derive(Debug)]
pub(crate) struct Refused {
    sentence: String,
    /// The code's name as in Go.
    pub(crate) name: String,
    code: Code,
}

impl Refused {
    pub(crate) fn new(status: &Status) -> Self {
        // `rpc error: code = NotFound desc = resource-not-found`
        let text = client::describe(status);
        let described = text.strip_prefix("rpc error: code = ");
        let (code, sentence) =
            described.and_then(|text| text.split_once(" desc = ")).unwrap_or(("Unknown", &text));
        let sentence = if sentence.is_empty() { "no reason given" } else { sentence };
        Self { sentence: sentence.to_owned(), name: code.to_owned(), code: status.code() }
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

/// The status code of a server's error.
pub(crate) fn code(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<Refused>()).map(Refused::code)
}

/// Whether a retry, or another instance, would give the same error.
pub(crate) fn is_final(error: &anyhow::Error) -> bool {
    code(error).is_some_and(|code| {
        !matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
    })
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_and_the_code_are_apart() {
        let refused = Refused::new(&Status::not_found("there is no container c on this cell"));
        assert_eq!(refused.to_string(), "there is no container c on this cell");
        assert_eq!((refused.code, refused.name.as_str()), (Code::NotFound, "NotFound"));
        assert_eq!(Refused::new(&Status::cancelled("")).to_string(), "no reason given");
    }
}
