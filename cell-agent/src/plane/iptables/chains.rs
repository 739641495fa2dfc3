//! Families of iptables, and the names of a container's chains.

use std::{fmt, net::IpAddr};

use model::ids::ContainerHandle;

/// One address family: iptables or ip6tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The target that ends every chain, also for TCP: no reset.
    #[must_use]
    pub fn reject(self) -> &'static str {
        match self {
            Self::V4 => "-j REJECT --reject-with icmp-port-unreachable",
            Self::V6 => "-j REJECT --reject-with icmp6-port-unreachable",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        })
    }
}

/// The names of one container's chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Ours.
    pub asg: String,
    /// The parent.
    pub netout: String,
    /// Jump target of logging rules.
    pub log: String,
    /// Jump target of connections over the limit, if those are logged.
    pub limit_log: String,
}

impl Names {
    /// The names for a container.
    ///
    /// # Errors
    /// The handle contains a character that is invalid in a chain name.
    pub fn of(handle: &ContainerHandle) -> Result<Self, String> {
        let text = handle.as_str();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let own: String = text.strip_prefix("check-").unwrap_or(text).replace('-', "");
        if own.is_empty() || !text.bytes().all(fits) {
            return Err(format!("no chain can be named after the handle {text:?}"));
        }
        let netout = cut(&format!("netout--{text}"), 28).to_owned();
        Ok(Self {
            asg: format!("asg-{}", cut(&own, 20)),
            log: format!("{}--log", cut(&netout, 23)),
            limit_log: format!("{}--rl-log", cut(&netout, 20)),
            netout,
        })
    }

    /// The name under which the original fills a chain before it replaces the old one.
    #[must_use]
    pub fn candidate(&self) -> String {
        format!("c{}", self.asg)
    }
}

/// The first `most` characters; ASCII only.
fn cut(text: &str, most: usize) -> &str {
    text.get(..most).unwrap_or(text)
}
