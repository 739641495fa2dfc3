//! Locket's locks and presences as values (docs/compatibility/locket.md#grpc, #lock).

use std::{fmt, sync::Arc, time::Duration};

/// Maximum length of keys and owners, in characters (the original's columns).
pub const MAX_NAME_CHARS: usize = 255;
/// Maximum length of values, in characters (the original's column).
pub const MAX_VALUE_CHARS: usize = 4096;

/// Why a claim on a lock is rejected before any lock is read.
///
/// The variants are in the order in which the original checks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither a lock nor a presence.
    #[error("invalid-type")]
    InvalidType,
    /// The time to live is zero or negative.
    #[error("invalid-ttl")]
    InvalidTtl,
    /// The owner is empty.
    #[error("invalid-owner")]
    InvalidOwner,
    /// A text is longer than the store allows.
    #[error("{field} has {chars} characters, at most {max} are allowed")]
    TooLong {
        /// `key`, `owner` or `value`.
        field: &'static str,
        /// Length of the text.
        chars: usize,
        /// Maximum length.
        max: usize,
    },
}

fn limit(field: &'static str, text: &str, max: usize) -> Result<(), Error> {
    // The byte length is an upper bound for the characters, and is free to read.
    if text.len() <= max {
        return Ok(());
    }
    match text.chars().count() {
        chars if chars > max => Err(Error::TooLong { field, chars, max }),
        _ => Ok(()),
    }
}

/// The locked resource. Any text, including the empty one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockKey(Arc<str>);
text!(LockKey);

impl LockKey {
    /// # Errors
    /// Longer than [`MAX_NAME_CHARS`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        limit("key", text, MAX_NAME_CHARS)?;
        Ok(Self(text.into()))
    }
}

/// The client that holds a key. Never empty; compared exactly.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);
text!(Owner);

impl Owner {
    /// # Errors
    /// Empty, or longer than [`MAX_NAME_CHARS`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::InvalidOwner);
        }
        limit("owner", text, MAX_NAME_CHARS)?;
        Ok(Self(text.into()))
    }
}

/// Data that the owner publishes, such as a cell's address and size.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LockValue(Arc<str>);
text!(LockValue);

impl LockValue {
    /// # Errors
    /// Longer than [`MAX_VALUE_CHARS`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        limit("value", text, MAX_VALUE_CHARS)?;
        Ok(Self(text.into()))
    }
}

/// The two kinds of Locket entries. They differ only in how clients use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// One active client among several: a client that loses the lock stops.
    Lock,
    /// "I am alive": a client that loses the presence tries again.
    Presence,
}

impl LockKind {
    /// The canonical text for the deprecated `type` field and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Presence => "presence",
        }
    }

    /// `type_code` on the wire.
    #[must_use]
    pub fn type_code(self) -> i32 {
        match self {
            Self::Lock => 1,
            Self::Presence => 2,
        }
    }
}

/// Lifetime of a lock after its last refresh, in whole seconds, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(i64);

impl Ttl {
    /// Maximum: 100 years. The original overflows near 292 years and expires such a lock at once;
    /// longer values are reduced to this maximum.
    pub const MAX: Self = Self(100 * 365 * 24 * 60 * 60);

    /// # Errors
    /// Zero or negative.
    pub fn try_from_seconds(seconds: i64) -> Result<Self, Error> {
        if seconds <= 0 {
            return Err(Error::InvalidTtl);
        }
        Ok(Self(seconds.min(Self::MAX.0)))
    }

    /// Whole seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0
    }

    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.unsigned_abs())
    }
}

/// Rises with each change of owner of a key; never decreases, not even when the lock is deleted and
/// created again. The first owner of a key has 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// The token of the next owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A request to acquire or refresh a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key.
    pub key: LockKey,
    /// The owner.
    pub owner: Owner,
    /// Data to store with the lock.
    pub value: LockValue,
    /// Lock or presence.
    pub kind: LockKind,
    /// Lifetime without a refresh.
    pub ttl: Ttl,
}

/// A request to release a lock. Nothing is validated, as in the original: an invalid owner holds no
/// lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The key.
    pub key: String,
    /// The owner.
    pub owner: String,
}

/// A held lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The key.
    pub key: LockKey,
    /// The owner.
    pub owner: Owner,
    /// Data stored by the owner.
    pub value: LockValue,
    /// Lock or presence.
    pub kind: LockKind,
    /// Lifetime without a refresh.
    pub ttl: Ttl,
    /// The owner's token.
    pub token: FencingToken,
}

/// Filter of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// One key.
    Key(LockKey),
    /// All locks of a kind.
    Kind(LockKind),
}

impl Selector {
    /// Whether the filter selects the lock.
    #[must_use]
    pub fn matches(&self, lock: &Lock) -> bool {
        match self {
            Self::Key(key) => lock.key == *key,
            Self::Kind(kind) => lock.kind == *kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_characters_not_bytes() {
        assert!(LockKey::parse(&"ü".repeat(255)).is_ok());
        assert_eq!(
            LockKey::parse(&"ü".repeat(256)).unwrap_err().to_string(),
            "key has 256 characters, at most 255 are allowed"
        );
        assert!(LockValue::parse(&"ü".repeat(4096)).is_ok());
        assert!(LockValue::parse(&"v".repeat(4097)).is_err());
    }

    #[test]
    fn the_empty_key_is_legal_the_empty_owner_is_not() {
        assert!(LockKey::parse("").is_ok());
        assert_eq!(Owner::parse(""), Err(Error::InvalidOwner));
    }

    #[test]
    fn a_ttl_is_positive_and_never_overflows() {
        assert_eq!(Ttl::try_from_seconds(0), Err(Error::InvalidTtl));
        assert_eq!(Ttl::try_from_seconds(-1), Err(Error::InvalidTtl));
        assert_eq!(Ttl::try_from_seconds(1).map(Ttl::seconds), Ok(1));
        assert_eq!(Ttl::try_from_seconds(i64::MAX), Ok(Ttl::MAX));
    }
}
