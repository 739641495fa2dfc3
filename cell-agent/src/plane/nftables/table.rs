//! One nftables table as plain data: named chains, maps and sets, each with its lines.
//!
//! A name identifies the content (`rules-<hash>`) or the owner (`policy-<hash>`), so
//! the difference of two tables is a difference of names and a few lines. Texts are
//! compared: equal text is equal behaviour.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::{AddrParseError, IpAddr},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::plane::TO_STRING;

/// The name of our table, in family inet.
pub const NAME: &str = "portcullis";

/// How the header of a base chain begins.
pub const HOOK: &str = "type ";

/// The content of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Maps from a container's key to a verdict.
    pub maps: BTreeMap<String, Map>,
    /// Named counters; they outlive the chains that use them.
    #[serde(default)]
    pub counters: BTreeSet<String>,
    /// Sets that the kernel fills: their definition, without elements.
    pub sets: BTreeMap<String, String>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain {
    /// Its hook, or a comment. Cannot change.
    pub header: String,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule. In the state file, and for nft, a rule is one text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Rule {
    /// Jumps to this chain, whatever the packet; needs no rule compiler.
    Jump(String),
    /// Any other rule, in nft's syntax.
    Text(String),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

impl From<String> for Rule {
    /// Parses a rule of the state file.
    fn from(text: String) -> Self {
        match text.strip_prefix("jump ") {
            Some(chain) => Self::Jump(chain.to_owned()),
            None => Self::Text(text),
        }
    }
}

/// A map from container keys to verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Map {
    /// `ipv4_addr`, `ipv6_addr` or `ifname`.
    pub key: String,
    /// The jump target of each key.
    pub jumps: BTreeMap<Key, String>,
}

/// Key of a container in a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Key {
    /// The source address of its packets.
    Address(IpAddr),
    /// The input interface of its packets.
    Interface(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(name) => write!(f, "\"{name}\""),
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl TryFrom<String> for Key {
    type Error = AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(name) => Ok(Self::Interface(name.to_owned())),
            None => text.parse().map(Self::Address),
        }
    }
}

impl Chain {
    /// A chain without rules.
    #[must_use]
    pub fn new(header: impl Into<String>) -> Self {
        Self { header: header.into(), rules: Vec::new() }
    }

    /// A chain of rules in nft's syntax, without unconditional jumps.
    #[must_use]
    pub fn of(header: impl Into<String>, rules: impl IntoIterator<Item = String>) -> Self {
        Self { header: header.into(), rules: rules.into_iter().map(Rule::Text).collect() }
    }

    /// Appends a rule in nft's syntax, except an unconditional jump.
    pub fn rule(&mut self, rule: impl Into<String>) {
        self.rules.push(Rule::Text(rule.into()));
    }

    /// Appends an unconditional jump.
    pub fn jump(&mut self, chain: impl Into<String>) {
        self.rules.push(Rule::Jump(chain.into()));
    }
}

impl Map {
    fn elements<'a>(jumps: impl IntoIterator<Item = (&'a Key, &'a String)>) -> String {
        let jumps = jumps.into_iter().map(|(key, chain)| format!("{key} : jump {chain}"));
        jumps.collect::<Vec<_>>().join(", ")
    }
}

impl Table {
    /// The block that adds these chains and rules to the existing ones, and the maps
    /// and sets without elements.
    #[must_use]
    pub fn block(&self) -> String {
        let mut text = format!("table inet {NAME} {{\n");
        for name in &self.counters {
            writeln!(text, "counter {name} {{ }}").expect(TO_STRING);
        }
        for (name, Map { key, .. }) in &self.maps {
            writeln!(text, "map {name} {{ type {key} : verdict; }}").expect(TO_STRING);
        }
        for (name, definition) in &self.sets {
            writeln!(text, "set {name} {{ {definition} }}").expect(TO_STRING);
        }
        for (name, Chain { header, rules }) in &self.chains {
            write!(text, "chain {name} {{\n{header}\n").expect(TO_STRING);
            for rule in rules {
                writeln!(text, "{rule}").expect(TO_STRING);
            }
            text.push_str("}\n");
        }
        text.push_str("}\n");
        text
    }

    /// The commands that add these elements to the maps.
    #[must_use]
    pub fn elements(&self) -> String {
        let filled = self.maps.iter().filter(|(_, map)| !map.jumps.is_empty());
        filled.map(|(name, map)| add_elements(name, &map.jumps)).collect()
    }
}

/// The command that adds elements to a map.
#[must_use]
pub fn add_elements<'a>(
    map: &str,
    jumps: impl IntoIterator<Item = (&'a Key, &'a String)>,
) -> String {
    format!("add element inet {NAME} {map} {{ {} }}\n", Map::elements(jumps))
}

/// A unique name for each content.
#[must_use]
pub fn name(kind: &str, content: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in content {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    let mut name = format!("{kind}-");
    for byte in &hash[..8] {
        write!(name, "{byte:02x}").expect(TO_STRING);
    }
    name
}

/// A comment line of a chain; nft takes at most 128 characters.
#[must_use]
pub fn comment(text: &str) -> String {
    let text: String = text.chars().take(100).collect();
    format!("comment \"{}\"", plain(&text))
}

/// The text without characters that are special inside nft's quotes.
pub(super) fn plain(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_.:/@+=,".contains(c);
    text.chars().map(|c| if plain(c) { c } else { '?' }).collect()
}
