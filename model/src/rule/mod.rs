//! A rule of a security group, in two forms.
//!
//! [`RuleSpec`] is the text that the Cloud Controller accepted. [`Rule`] is enforceable: addresses,
//! ports and ICMP types, without invalid values. [`RuleSpec::read`] converts the first to the
//! second and is total: a part that cannot be enforced becomes a value with the reason, so one bad
//! rule never affects a container's other rules, and is never dropped silently.
//!
//! Parsing follows the original agent exactly, including its oddities
//! (docs/compatibility/vxlan-policy-agent.md#rule-arguments): numbers are truncated to 16 and 8
//! bits, ICMP type 255 means any, a rule of protocol `all` with ports is void.

mod address;
mod read;

use std::fmt;

pub use address::{AddressRange, Fault};
pub use read::{Reading, Unenforceable};
use serde::{Deserialize, Serialize};

/// A rule as defined in the Cloud Controller. Absent texts are empty and absent numbers are 0, as
/// the original stores them.
///
/// Its JSON is that of the original's store: all keys, in this order
/// (docs/compatibility/policy-server-internal.md#rules-as-stored).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `all`.
    pub protocol: String,
    /// Addresses, CIDRs and ranges, separated by commas.
    pub destination: String,
    /// Ports and port ranges, separated by commas.
    pub ports: String,
    /// ICMP type; -1 and 255 mean any.
    #[serde(rename = "type")]
    pub icmp_type: i32,
    /// ICMP code.
    #[serde(rename = "code")]
    pub icmp_code: i32,
    /// Description for people.
    pub description: String,
    /// Whether new connections allowed by the rule are logged.
    pub log: bool,
}

/// An enforceable rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Protocol with its ports or ICMP type.
    pub protocol: Protocol,
    /// All destinations; at least one.
    pub destinations: Vec<AddressRange>,
    /// Whether new connections are logged.
    pub log: bool,
}

/// Protocol and ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Any protocol.
    All,
    /// TCP to any of these ports; at least one.
    Tcp(Vec<PortRange>),
    /// UDP to any of these ports; at least one.
    Udp(Vec<PortRange>),
    /// ICMP over IPv4.
    Icmp(IcmpMatch),
    /// ICMP over IPv6.
    Icmpv6(IcmpMatch),
}

/// ICMP messages of one type and code, or all messages if the type is 255. A code of 255 has no
/// special meaning: a rule with a type and code -1 matches no message that occurs.
///
/// Two matches for all messages with different codes are not equal, as in the original, which
/// removes equal rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpMatch {
    /// The type.
    pub icmp_type: u8,
    /// The code.
    pub code: u8,
}

impl IcmpMatch {
    /// All messages.
    pub const ANY: Self = Self { icmp_type: u8::MAX, code: u8::MAX };

    /// The type and code that a message must have; `None` if any matches.
    #[must_use]
    pub fn exact(self) -> Option<(u8, u8)> {
        let Self { icmp_type, code } = self;
        (icmp_type != u8::MAX).then_some((icmp_type, code))
    }

    /// Whether a message of this type and code matches.
    #[must_use]
    pub fn contains(self, icmp_type: u8, code: u8) -> bool {
        self.exact().is_none_or(|exact| exact == (icmp_type, code))
    }
}

/// Ports from `first` to `last`, inclusive, never inverted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` when `first` is greater than `last`.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the range contains `port`.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
