//! Identifiers from other systems.
//!
//! Identifiers are opaque: Portcullis compares and prints them and never parses them. Cloning is
//! cheap, since one space guid occurs in thousands of groups.

use std::sync::Arc;

/// Maximum length of an identifier in characters; longer texts are rejected.
pub const MAX_CHARS: usize = 255;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// Kind of identifier.
        what: &'static str,
    },
    /// The text has more than [`MAX_CHARS`] characters.
    #[error("{what} has {chars} characters, at most {MAX_CHARS} are allowed")]
    TooLong {
        /// Kind of identifier.
        what: &'static str,
        /// Length of the text.
        chars: usize,
    },
    /// The text contains a control character, such as a newline.
    #[error("{what} {text:?} holds a control character")]
    ControlCharacter {
        /// Kind of identifier.
        what: &'static str,
        /// The text.
        text: String,
    },
}

fn check(what: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty { what });
    }
    let chars = text.chars().count();
    if chars > MAX_CHARS {
        return Err(Error::TooLong { what, chars });
    }
    if text.chars().any(char::is_control) {
        return Err(Error::ControlCharacter { what, text: text.to_owned() });
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a text from outside.
            ///
            /// # Errors
            /// Empty, longer than [`MAX_CHARS`] or containing a control character.
            pub fn parse(text: &str) -> Result<Self, Error> {
                check($what, text)?;
                Ok(Self(text.into()))
            }
        }

        text!($name);
    };
}

identifier!(
    /// A Cloud Foundry space.
    SpaceGuid, "space guid"
);
identifier!(
    /// A security group of the Cloud Controller.
    GroupGuid, "security group guid"
);
identifier!(
    /// Garden's name for a container on a cell.
    ContainerHandle, "container handle"
);
identifier!(
    /// A cell: a VM that runs app containers.
    CellId, "cell id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_identifiers_are_explained() {
        assert_eq!(SpaceGuid::parse("").unwrap_err().to_string(), "space guid is empty");
        assert_eq!(
            CellId::parse("a\nb").unwrap_err().to_string(),
            "cell id \"a\\nb\" holds a control character"
        );
        assert_eq!(
            GroupGuid::parse(&"ü".repeat(256)).unwrap_err(),
            Error::TooLong { what: "security group guid", chars: 256 }
        );
    }

    #[test]
    fn length_is_counted_in_characters() {
        assert!(GroupGuid::parse(&"ü".repeat(255)).is_ok());
    }
}
