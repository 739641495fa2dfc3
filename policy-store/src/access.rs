//! Who a peer is, and what it may do.
//!
//! A peer is what its certificate says; the chain to our certificate authority
//! is checked before anybody asks here. A list of patterns for each role says
//! which certificates have it; one certificate may have several roles, and most
//! have none. Who has no role may do nothing.
//!
//! | may | writer | cell | operator |
//! |---|---|---|---|
//! | Replace | yes | | |
//! | List | yes | | yes |
//! | Watch | | as itself | |
//! | Status | yes | | yes |
//!
//! A cell reads and reports by Watch alone, where it has to say who it is.
//!
//! The HTTP API is of the original, which lets in every certificate of its
//! authority: so does this, unless patterns say who may poll.

use std::{fmt, str::FromStr};

use model::ids::CellId;
use runtime::tls::Identity;
pub use runtime::tls::Pattern;

/// What somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace the security groups.
    Replace,
    /// Read security groups.
    List,
    /// Be kept up to date, and report, as whatever cell.
    WatchAsAny,
    /// The same as this cell.
    Watch(CellId),
    /// See how far everything has come.
    Status,
    /// Ask the HTTP API.
    Poll,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace => f.write_str("replace security groups"),
            Self::List => f.write_str("list security groups"),
            Self::WatchAsAny => f.write_str("watch as a cell"),
            Self::Watch(cell) => write!(f, "watch as cell {cell}"),
            Self::Status => f.write_str("see the status"),
            Self::Poll => f.write_str("poll"),
        }
    }
}

/// Why somebody may not; says who, so that the log and the peer agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} may not {action}")]
pub struct Denied {
    /// The peer, by its certificate.
    pub peer: String,
    /// What it wanted.
    pub action: Action,
}

/// How a cell's certificate says which cell it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellIdentity {
    /// By its common name.
    CommonName,
    /// By any of its DNS names.
    DnsName,
    /// Not at all: all cells share one certificate, as the original's agents do,
    /// and each is believed.
    Unproven,
}

impl FromStr for CellIdentity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cn" => Ok(Self::CommonName),
            "dns" => Ok(Self::DnsName),
            "any" => Ok(Self::Unproven),
            other => Err(format!("{other:?} is not one of cn, dns and any")),
        }
    }
}

/// Who has which role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Those that may replace the set.
    pub writers: Vec<Pattern>,
    /// Those that may watch and report, each as itself.
    pub cells: Vec<Pattern>,
    /// Those that may see everything.
    pub operators: Vec<Pattern>,
    /// Those that may use the HTTP API; all that have a certificate when absent.
    pub pollers: Option<Vec<Pattern>>,
    /// Which cell a cell is.
    pub cell_identity: CellIdentity,
}

impl Access {
    /// Whether the peer may.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, identity: Option<&Identity>, action: Action) -> Result<(), Denied> {
        let has = |role: &[Pattern]| {
            identity.is_some_and(|identity| role.iter().any(|pattern| pattern.fits(identity)))
        };
        let may = match &action {
            Action::Replace => has(&self.writers),
            Action::List | Action::Status => has(&self.writers) || has(&self.operators),
            Action::WatchAsAny => has(&self.cells),
            Action::Watch(cell) => {
                has(&self.cells) && identity.is_some_and(|identity| self.is_cell(identity, cell))
            }
            Action::Poll => self.pollers.as_deref().map_or(identity.is_some(), has),
        };
        match may {
            true => Ok(()),
            false => Err(Denied { peer: describe(identity), action }),
        }
    }

    fn is_cell(&self, identity: &Identity, cell: &CellId) -> bool {
        match self.cell_identity {
            CellIdentity::CommonName => identity.common_name.as_deref() == Some(cell.as_str()),
            CellIdentity::DnsName => identity.dns_names.iter().any(|name| name == cell.as_str()),
            CellIdentity::Unproven => true,
        }
    }
}

fn describe(identity: Option<&Identity>) -> String {
    let Some(identity) = identity else {
        return "a peer without a certificate".to_owned();
    };
    match identity.to_string().as_str() {
        "" => "a peer whose certificate names nobody".to_owned(),
        names => format!("the peer {names}"),
    }
}
