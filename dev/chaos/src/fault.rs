//! Kinds of faults. Pure.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::part::Part;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// `kill -9`; started again at the end.
    Kill(Part),
    /// SIGSTOP; SIGCONT at the end.
    Pause(Part),
    /// Packets from the first to the second part are dropped, and those back if `both`.
    Cut { from: Part, to: Part, both: bool, percent: u8 },
    /// Packets between the two parts take so many milliseconds longer, in each direction.
    Delay { from: Part, to: Part, milliseconds: u16 },
    /// Somebody removes the rules of a cell.
    Flush(u8),
    /// The certificate is replaced by a new one.
    Renew(Part),
    /// The certificate's file is half as long, until a new one is written.
    Tear(Part),
    /// The certificate has expired, until a new one is written.
    Expire(Part),
    /// The disk of a part with SQLite is full.
    Fill(Part),
    /// Each write to the disk of a part with SQLite waits.
    Slow(Part),
    /// A part with SQLite is killed, and the end of its write-ahead log is torn as by a power
    /// failure; started again at the end.
    TornFile(Part),
    /// The wall clock of a part is wrong by so many seconds; it jumps there and back.
    Step { part: Part, seconds: i32 },
    /// The primary of the database is killed, and its replica becomes the primary; the killed one
    /// returns as the replica.
    Failover,
    /// A part is replaced by its earlier release, and back at the end.
    Earlier(Part),
    /// The Cloud Controller's responses are wrong in this way.
    Err(CloudError),
}

/// The ways in which the development Cloud Controller can err
/// (docs/dev-cloud-controller.md#configuration).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CloudError {
    #[serde(rename = "401")]
    Unauthorized,
    #[serde(rename = "404")]
    NotFound,
    #[serde(rename = "429")]
    TooMany,
    #[serde(rename = "500")]
    Internal,
    #[serde(rename = "503")]
    Unavailable,
    Empty,
    Html,
    Half,
    Cut,
    Fewer,
}

impl CloudError {
    pub(crate) const ALL: [Self; 10] = [
        Self::Unauthorized,
        Self::NotFound,
        Self::TooMany,
        Self::Internal,
        Self::Unavailable,
        Self::Empty,
        Self::Html,
        Self::Half,
        Self::Cut,
        Self::Fewer,
    ];

    /// The word in the development Cloud Controller's `trouble_file`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unauthorized => "401",
            Self::NotFound => "404",
            Self::TooMany => "429",
            Self::Internal => "500",
            Self::Unavailable => "503",
            Self::Empty => "empty",
            Self::Html => "html",
            Self::Half => "half",
            Self::Cut => "cut",
            Self::Fewer => "fewer",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(part) => write!(f, "kill -9 {part}"),
            Self::Pause(part) => write!(f, "SIGSTOP {part}"),
            Self::Cut { from, to, both, percent } => {
                let arrow = if *both { "<->" } else { "->" };
                write!(f, "drop {percent}% of {from} {arrow} {to}")
            }
            Self::Delay { from, to, milliseconds } => {
                write!(f, "delay {from} <-> {to} by {milliseconds} ms each way")
            }
            Self::Flush(cell) => write!(f, "flush the rules of cell-{cell}"),
            Self::Renew(part) => write!(f, "new certificate of {part}"),
            Self::Tear(part) => write!(f, "half a certificate of {part}"),
            Self::Expire(part) => write!(f, "expired certificate of {part}"),
            Self::Fill(part) => write!(f, "full disk of {part}"),
            Self::Slow(part) => write!(f, "slow disk of {part}"),
            Self::TornFile(part) => write!(f, "torn database file of {part}"),
            Self::Step { part, seconds } => write!(f, "clock of {part} by {seconds:+} s"),
            Self::Failover => write!(f, "failover of the database"),
            Self::Earlier(part) => write!(f, "earlier release of {part}"),
            Self::Err(error) => write!(f, "errors of the cloud-controller: {}", error.word()),
        }
    }
}

impl Kind {
    /// The parts that are in trouble themselves; two faults do not share one.
    pub(crate) fn parts(self) -> Vec<Part> {
        match self {
            Self::Kill(part)
            | Self::Pause(part)
            | Self::Renew(part)
            | Self::Tear(part)
            | Self::Expire(part)
            | Self::Fill(part)
            | Self::Slow(part)
            | Self::TornFile(part)
            | Self::Step { part, .. }
            | Self::Earlier(part) => vec![part],
            Self::Failover => vec![Part::Database],
            Self::Err(_) => vec![Part::CloudController],
            Self::Cut { from, to, .. } | Self::Delay { from, to, .. } => vec![from, to],
            Self::Flush(cell) => vec![Part::Agent(cell)],
        }
    }

    /// The cell whose rules somebody else removes.
    pub(crate) fn flushed(self) -> Option<String> {
        match self {
            Self::Flush(cell) => Some(format!("cell-{cell}")),
            _ => None,
        }
    }
}

/// A fault with its time since the begin of the trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) number: u32,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) kind: Kind,
}
