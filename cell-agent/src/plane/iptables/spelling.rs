//! Decides whether a rule that iptables-save prints is a rule that the agent wrote.
//!
//! Versions of iptables print the same rule differently: defaults are printed or left
//! out, matches change their order, ICMP type 255 is `255/0` or `any`. So rules are
//! compared as parsed values. A rule with a word that this parser does not know has no
//! value; such a rule equals another one only by its text, or because this cell's
//! iptables printed the one for the other before ([`Spellings::learn`]).
//!
//! Pure.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    arguments::{HASHLIMIT_SCALE, LIMIT_SCALE},
    chains::Family,
};

/// How the cell's iptables prints the rules of one family.
#[derive(Debug)]
pub struct Spellings {
    family: Family,
    /// The printed form of rules that cannot be parsed.
    learned: HashMap<String, String>,
}

impl Spellings {
    /// No learned forms yet.
    #[must_use]
    pub fn of(family: Family) -> Self {
        Self { family, learned: HashMap::new() }
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Records the printed form of a rule that was written alone.
    pub fn learn(&mut self, written: &str, printed: &str) {
        self.learned.insert(written.to_owned(), printed.to_owned());
    }

    /// Whether `printed` is a form of the rule `written`.
    #[must_use]
    pub fn same(&self, printed: &str, written: &str) -> bool {
        if printed == written || self.learned.get(written).is_some_and(|known| known == printed) {
            return true;
        }
        let parse = |text| Rule::parse(text, self.family);
        parse(printed).is_some_and(|printed| parse(written) == Some(printed))
    }
}

/// Comparisons with a cache: chains repeat each other's rules.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    spellings: &'a Spellings,
    known: HashMap<(&'a str, &'a str), bool>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(spellings: &'a Spellings) -> Self {
        Self { spellings, known: HashMap::new() }
    }

    pub(crate) fn same(&mut self, printed: &'a str, written: &'a str) -> bool {
        printed == written
            || *self
                .known
                .entry((printed, written))
                .or_insert_with(|| self.spellings.same(printed, written))
    }

    /// Whether these are the same rules in the same order.
    pub(crate) fn same_rules(
        &mut self,
        mut printed: impl Iterator<Item = &'a str>,
        mut written: impl Iterator<Item = &'a str>,
    ) -> bool {
        loop {
            match (printed.next(), written.next()) {
                (None, None) => return true,
                (Some(printed), Some(written)) if self.same(printed, written) => {}
                _ => return false,
            }
        }
    }
}

/// The parsed value of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Rule {
    protocol: Option<u8>,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    /// Stateless matches, sorted: their order has no meaning.
    matches: Vec<Match>,
    /// Matches that count packets, after all others.
    limits: Vec<Limit>,
    target: Option<Target>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    States(Vec<String>),
    Range(IpAddr, IpAddr),
    Port(u16, u16),
    Icmp { kind: u8, codes: (u8, u8) },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Limit {
    /// Period in units of the module, and burst.
    All { period: u64, burst: u32 },
    /// Whether packets above the rate match, instead of those within.
    Each { above: bool, period: u64, burst: u32, mode: Vec<String>, name: String, expire: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Jump(String),
    Goto(String),
    Reject(String),
    Log { level: u8, prefix: String },
    Record { group: u16, size: u32 },
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// The ICMP type that the kernel takes for all types; in ICMPv6 it is a normal type.
const ANY_ICMP: u8 = 255;
/// Default values of the modules.
const BURST: u32 = 5;
const LOG_LEVEL: u8 = 4;

impl Rule {
    fn parse(text: &str, family: Family) -> Option<Self> {
        let mut rule = Self::default();
        let words = words(text)?;
        let mut words = Words(&words);
        while let Some(word) = words.next() {
            match word {
                "-p" | "--protocol" => rule.protocol = protocol(words.next()?)?,
                "-s" | "--source" => rule.source = network(words.next()?)?,
                "-d" | "--destination" => rule.destination = network(words.next()?)?,
                "-m" | "--match" => rule.module(words.next()?, &mut words)?,
                "-j" | "--jump" => rule.target = Some(target(words.next()?, &mut words, family)?),
                "-g" | "--goto" => rule.target = Some(Target::Goto(words.next()?.to_owned())),
                _ => return None,
            }
        }
        rule.matches.sort_unstable();
        Some(rule)
    }

    fn module(&mut self, name: &str, words: &mut Words<'_>) -> Option<()> {
        match name {
            // A comment matches every packet.
            "comment" => words.take("--comment").map(drop),
            "tcp" | "udp" => self.ports(if name == "tcp" { TCP } else { UDP }, words),
            "icmp" => self.icmp(ICMP, "--icmp-type", words),
            "icmp6" => self.icmp(ICMPV6, "--icmpv6-type", words),
            "state" => self.states("--state", words),
            "conntrack" => self.states("--ctstate", words),
            "iprange" => {
                let range = words.take("--dst-range")?;
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                self.stateless(Match::Range(first.parse().ok()?, last.parse().ok()?))
            }
            "limit" => {
                self.limits.push(limit(words)?);
                Some(())
            }
            "hashlimit" => {
                self.limits.push(hashlimit(words)?);
                Some(())
            }
            _ => None,
        }
    }

    /// Adds a match before those that count packets; after them it would have another
    /// meaning.
    fn stateless(&mut self, condition: Match) -> Option<()> {
        self.limits.is_empty().then(|| self.matches.push(condition))
    }

    /// Without an option the module repeats `-p`.
    fn ports(&mut self, protocol: u8, words: &mut Words<'_>) -> Option<()> {
        (self.protocol == Some(protocol)).then_some(())?;
        let Some(ports) = words.take("--dport") else { return Some(()) };
        let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
        let first = if first.is_empty() { 0 } else { first.parse().ok()? };
        let last = if last.is_empty() { u16::MAX } else { last.parse().ok()? };
        match (first, last) {
            (0, u16::MAX) => Some(()),
            _ => self.stateless(Match::Port(first, last)),
        }
    }

    fn icmp(&mut self, protocol: u8, option: &str, words: &mut Words<'_>) -> Option<()> {
        (self.protocol == Some(protocol)).then_some(())?;
        let given = words.take(option)?;
        if given == "any" {
            return Some(());
        }
        let (kind, codes) = match given.split_once('/') {
            Some((kind, code)) => {
                let code = code.parse().ok()?;
                (kind, (code, code))
            }
            None => (given, (0, u8::MAX)),
        };
        let kind = kind.parse().ok()?;
        if protocol == ICMP && kind == ANY_ICMP {
            return Some(());
        }
        self.stateless(Match::Icmp { kind, codes })
    }

    fn states(&mut self, option: &str, words: &mut Words<'_>) -> Option<()> {
        let mut states: Vec<String> = words.take(option)?.split(',').map(str::to_owned).collect();
        states.sort_unstable();
        self.stateless(Match::States(states))
    }
}

fn limit(words: &mut Words<'_>) -> Option<Limit> {
    let (period, _) = period(words.take("--limit")?, LIMIT_SCALE)?;
    let burst = words.take("--limit-burst").map_or(Some(BURST), |burst| burst.parse().ok())?;
    Some(Limit::All { period, burst })
}

fn hashlimit(words: &mut Words<'_>) -> Option<Limit> {
    let (above, rate) = match words.take("--hashlimit-above") {
        Some(rate) => (true, rate),
        None => (false, words.take("--hashlimit-upto")?),
    };
    let (period, unit) = period(rate, HASHLIMIT_SCALE)?;
    let burst = words.take("--hashlimit-burst").map_or(Some(BURST), |burst| burst.parse().ok())?;
    let mut mode: Vec<String> =
        words.take("--hashlimit-mode")?.split(',').map(str::to_owned).collect();
    mode.sort_unstable();
    let name = words.take("--hashlimit-name")?.to_owned();
    let expire = words.take("--hashlimit-htable-expire");
    // The default is the unit of the printed rate.
    let expire = expire.map_or(Some(1000 * unit), |expire| expire.parse().ok())?;
    Some(Limit::Each { above, period, burst, mode, name, expire })
}

/// The kernel's period for a rate such as `100/sec`, and the seconds of the unit.
fn period(rate: &str, scale: u64) -> Option<(u64, u64)> {
    let (count, unit) = rate.split_once('/')?;
    let count: u64 = count.parse().ok()?;
    let seconds = match unit {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3600,
        "d" | "day" => 86_400,
        _ => return None,
    };
    Some(((scale * seconds).checked_div(count)?, seconds))
}

fn target(name: &str, words: &mut Words<'_>, family: Family) -> Option<Target> {
    match name {
        "REJECT" => {
            let with = words.take("--reject-with");
            let default = match family {
                Family::V4 => "icmp-port-unreachable",
                Family::V6 => "icmp6-port-unreachable",
            };
            let with = match with {
                None | Some("port-unreach") => default,
                Some(with) => with,
            };
            Some(Target::Reject(with.to_owned()))
        }
        "LOG" => {
            let (mut level, mut prefix) = (LOG_LEVEL, String::new());
            while let Some(option) = words.next_if(|word| word.starts_with("--")) {
                match option {
                    "--log-prefix" => words.next()?.clone_into(&mut prefix),
                    "--log-level" => {
                        level = match words.next()? {
                            "warning" | "warn" => LOG_LEVEL,
                            number => number.parse().ok()?,
                        }
                    }
                    _ => return None,
                }
            }
            Some(Target::Log { level, prefix })
        }
        "NFLOG" => {
            // Group 0 is not printed.
            let group = words.take("--nflog-group").map_or(Some(0), |group| group.parse().ok())?;
            let size = words.take("--nflog-size")?.parse().ok()?;
            Some(Target::Record { group, size })
        }
        // Other targets may have options, but are never rules of ours.
        _ => Some(Target::Jump(name.to_owned())),
    }
}

fn protocol(text: &str) -> Option<Option<u8>> {
    Some(match text {
        "all" => None,
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        "icmp" => Some(ICMP),
        "ipv6-icmp" | "icmpv6" | "icmp6" => Some(ICMPV6),
        number => Some(number.parse().ok()?).filter(|number| *number != 0),
    })
}

/// A network, also with a netmask; none for all addresses.
fn network(text: &str) -> Option<Option<IpNet>> {
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().ok()?),
        Some((address, mask)) => match mask.parse::<IpAddr>() {
            Ok(mask) => IpNet::with_netmask(address.parse().ok()?, mask).ok()?,
            Err(_) => text.parse().ok()?,
        },
    };
    Some(Some(net.trunc()).filter(|net| net.prefix_len() != 0))
}

/// Splits a rule into words. A word in double quotes may contain blanks, and a
/// backslash before a quote.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut word = String::new();
        let end = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                word.push_str(&rest[..end]);
                end
            }
            Some(quoted) => {
                let mut characters = quoted.char_indices();
                loop {
                    match characters.next()? {
                        (at, '"') => break at + 2,
                        (_, '\\') => word.push(characters.next()?.1),
                        (_, character) => word.push(character),
                    }
                }
            }
        };
        words.push(word);
        rest = rest[end..].trim_start();
    }
    Some(words)
}

/// The remaining words of a rule.
struct Words<'a>(&'a [String]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, is_wanted: impl Fn(&str) -> bool) -> Option<&'a str> {
        let (first, rest) = self.0.split_first()?;
        is_wanted(first).then(|| {
            self.0 = rest;
            first.as_str()
        })
    }

    /// The value of an option, if it is the next word.
    fn take(&mut self, option: &str) -> Option<&'a str> {
        self.next_if(|word| word == option).and_then(|_| self.next())
    }
}

#[cfg(test)]
#[path = "spelling_tests.rs"]
mod tests;
