//! Access control: identity and roles of a peer.
//!
//! A peer is identified by its certificate; the TLS layer has verified the chain to
//! the configured CA before. A list of patterns per role selects the certificates
//! that have the role; one certificate may have several roles, and most have none. A
//! peer without a role has no access.
//!
//! | may | writer | cell | operator |
//! |---|---|---|---|
//! | Replace | yes | | |
//! | List | yes | | yes |
//! | Watch | | as itself | |
//! | Status | yes | | yes |
//! | Foundation | | | yes |
//!
//! A cell reads and reports only through Watch, which requires its identity.
//!
//! The HTTP API is compatible with the original, which admits every certificate of its
//! CA: so does this server, unless patterns restrict who may poll.

use std::fmt;

use model::ids::CellId;
pub use runtime::tls::Pattern;
use runtime::tls::{Identity, describe};

/// Action that a peer requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace the security groups.
    Replace,
    /// List security groups.
    List,
    /// Watch and report as any cell.
    WatchAsAny,
    /// Watch and report as this cell.
    Watch(CellId),
    /// Read the status.
    Status,
    /// Inspect the whole foundation.
    Inspect,
    /// Use the HTTP API.
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
            Self::Inspect => f.write_str("inspect the foundation"),
            Self::Poll => f.write_str("poll"),
        }
    }
}

/// Access denied.
pub type Denied = runtime::tls::Denied<Action>;

/// Where the certificate of a cell contains the cell id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellIdentity {
    /// In the common name.
    CommonName,
    /// In any of the DNS names.
    DnsName,
    /// Nowhere: all cells share one certificate, as the original's agents do, and the
    /// claimed id is trusted.
    Unproven,
}

/// Identities of each role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Identities that may replace the set.
    pub writers: Vec<Pattern>,
    /// Identities that may watch and report, each as itself.
    pub cells: Vec<Pattern>,
    /// Identities that may read everything.
    pub operators: Vec<Pattern>,
    /// Identities that may use the HTTP API; when absent, every certificate may.
    pub pollers: Option<Vec<Pattern>>,
    /// How the cell id is verified.
    pub cell_identity: CellIdentity,
}

impl Access {
    /// Checks that the peer may do this action.
    ///
    /// # Errors
    /// Access is denied.
    pub fn check(&self, identity: Option<&Identity>, action: Action) -> Result<(), Denied> {
        let has = |role: &[Pattern]| Pattern::any_fits(role, identity);
        let may = match &action {
            Action::Replace => has(&self.writers),
            Action::List | Action::Status => has(&self.writers) || has(&self.operators),
            Action::Inspect => has(&self.operators),
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
