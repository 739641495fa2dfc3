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
//! | List | yes | yes | yes |
//! | Watch | | as itself | |
//! | Status | yes | | yes |

use std::{fmt, str::FromStr};

use model::ids::CellId;
use runtime::tls::Identity;

/// What somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace the security groups.
    Replace,
    /// Read security groups.
    List,
    /// Be kept up to date, and report, as this cell.
    Watch(CellId),
    /// See how far everything has come.
    Status,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace => f.write_str("replace security groups"),
            Self::List => f.write_str("list security groups"),
            Self::Watch(cell) => write!(f, "watch as cell {cell}"),
            Self::Status => f.write_str("see the status"),
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

/// A part of a certificate that says something about its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    CommonName,
    OrganizationalUnit,
    DnsName,
    Uri,
}

impl Field {
    const ALL: [(&'static str, Self); 4] = [
        ("cn", Self::CommonName),
        ("ou", Self::OrganizationalUnit),
        ("dns", Self::DnsName),
        ("uri", Self::Uri),
    ];

    fn values(self, identity: &Identity) -> impl Iterator<Item = &str> {
        let (one, many): (_, &[String]) = match self {
            Self::CommonName => (identity.common_name.as_deref(), &[]),
            Self::OrganizationalUnit => (None, &identity.organizational_units),
            Self::DnsName => (None, &identity.dns_names),
            Self::Uri => (None, &identity.uris),
        };
        one.into_iter().chain(many.iter().map(String::as_str))
    }
}

/// Which certificates: conditions such as `cn=syncer` or `ou=cell,dns=*.cf`,
/// all of which have to hold. A value may hold one `*`, which stands for any
/// text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<(Field, String)>);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let condition = |condition: &str| {
            let (name, value) = condition
                .split_once('=')
                .ok_or_else(|| format!("{condition:?} is not of the form cn=NAME"))?;
            let field = Field::ALL.into_iter().find(|(known, _)| *known == name.trim());
            let (_, field) =
                field.ok_or_else(|| format!("{name:?} is not one of cn, ou, dns and uri"))?;
            match value.trim() {
                "" => Err(format!("{condition:?} has no value")),
                value if value.matches('*').count() > 1 => {
                    Err(format!("{condition:?} has more than one *"))
                }
                value => Ok((field, value.to_owned())),
            }
        };
        text.split(',').map(condition).collect::<Result<_, _>>().map(Self)
    }
}

impl Pattern {
    fn fits(&self, identity: &Identity) -> bool {
        let holds = |(field, wanted): &(Field, String)| {
            field.values(identity).any(|value| fits(wanted, value))
        };
        self.0.iter().all(holds)
    }
}

fn fits(wanted: &str, value: &str) -> bool {
    match wanted.split_once('*') {
        None => wanted == value,
        Some((start, end)) => {
            value.len() >= start.len() + end.len()
                && value.starts_with(start)
                && value.ends_with(end)
        }
    }
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
            Action::List => has(&self.writers) || has(&self.cells) || has(&self.operators),
            Action::Watch(cell) => {
                has(&self.cells) && identity.is_some_and(|identity| self.is_cell(identity, cell))
            }
            Action::Status => has(&self.writers) || has(&self.operators),
        };
        match may {
            true => Ok(()),
            false => Err(Denied { peer: describe(identity), action }),
        }
    }

    fn is_cell(&self, identity: &Identity, cell: &CellId) -> bool {
        let field = match self.cell_identity {
            CellIdentity::CommonName => Field::CommonName,
            CellIdentity::DnsName => Field::DnsName,
            CellIdentity::Unproven => return true,
        };
        field.values(identity).any(|value| value == cell.as_str())
    }
}

fn describe(identity: Option<&Identity>) -> String {
    let Some(identity) = identity else {
        return "a peer without a certificate".to_owned();
    };
    let mut parts = Vec::new();
    for (name, field) in Field::ALL {
        parts.extend(field.values(identity).map(|value| format!("{name}={value}")));
    }
    match parts.is_empty() {
        true => "a peer whose certificate names nobody".to_owned(),
        false => format!("the peer {}", parts.join(",")),
    }
}
