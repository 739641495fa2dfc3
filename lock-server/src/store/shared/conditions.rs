//! Locket's rules ([`crate::decide`]) as SQL conditions on a row of `locks`. All statements take
//! their conditions from here.
//!
//! The database evaluates the rules, so that a call is one statement. The property tests in
//! `rules_tests` compare the outcomes on PostgreSQL and MariaDB with those of `decide`:
//!
//! | `decide` | condition |
//! |---|---|
//! | no lock | `free`: the row does not exist or has no owner |
//! | `claim` is not `Collide` | `may_claim`: free, or the claimant is the owner |
//! | `release` is `Delete` | `is_owner` |
//! | `expire` is `Delete` | `is_version` |
//!
//! MySQL compares texts by the collation of the table; `BINARY` compares bytes, as `decide` does.

/// The row has no owner.
macro_rules! free {
    ($owner:literal) => {
        concat!("COALESCE(", $owner, ", '') = ''")
    };
}

/// The row has an owner.
macro_rules! held {
    ($owner:literal) => {
        concat!($owner, " <> ''")
    };
}

/// The owner is this one.
macro_rules! is_owner {
    (postgres, $owner:literal, $other:literal) => {
        concat!($owner, " = ", $other)
    };
    (mysql, $owner:literal, $other:literal) => {
        concat!("BINARY ", $owner, " = BINARY ", $other)
    };
}

/// The claimant may take the row.
macro_rules! may_claim {
    ($dialect:ident, $owner:literal, $claimant:literal) => {
        concat!(free!($owner), " OR ", is_owner!($dialect, $owner, $claimant))
    };
}

/// The row is the version with this id and this index.
macro_rules! is_version {
    () => {
        "COALESCE(modified_id, '') = ? AND COALESCE(modified_index, 0) = ?"
    };
}

pub(super) use {free, held, is_owner, is_version, may_claim};
