//! Renders a segment of permits as chains of set lookups.
//!
//! All permits allow, so within a run of equal log flags their order has no meaning,
//! and they are grouped by match: single addresses with single ports into one exact
//! set; everything else into one interval set for each port range, behind a map of
//! ports when there are many. Ranges are merged here, since the kernel refuses
//! overlaps.
//!
//! Interval sets of more than one field would save a lookup, but such sets get slow
//! with size and refuse overlaps that occur in real groups
//! (docs/compatibility/vxlan-policy-agent.md#baseline).

use std::collections::{BTreeMap, BTreeSet};

use model::{
    effective::{Permit, Service},
    rule::{AddressRange, PortRange},
};

use super::{
    intervals::{disjoint, is_everything, merge, text},
    table::{Chain, comment, name},
};
use crate::plan::Segment;

/// Verdict of a logging rule.
const ACCEPT_LOGGED: &str = "goto accept_logged";
/// Maximum number of port ranges without a map.
const LINEAR: usize = 4;

/// The chains of a segment; the first is the entry. The names are hashes of their
/// content and the salt, so equal names mean equal chains.
pub(super) fn chains(segment: &Segment, salt: &str) -> Vec<(String, Chain)> {
    let mut draft = Draft::default();
    let runs = segment.permits.chunk_by(|one, next| one.log == next.log);
    runs.for_each(|run| draft.run(run));
    let header = comment(&format!("group {}", segment.group));
    draft.finish(&header, salt)
}

/// Chains before their names are computed.
#[derive(Default)]
struct Draft {
    rules: Vec<RuleLine>,
    /// Chains behind a map of ports.
    inner: Vec<Vec<String>>,
}

/// A rule, which may jump to inner chains by their index.
enum RuleLine {
    Plain(String),
    PortMap { protocol: &'static str, jumps: Vec<(PortRange, usize)> },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(range: AddressRange) -> Self {
        match range {
            AddressRange::V4(..) => Self::V4,
            AddressRange::V6(..) => Self::V6,
        }
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

type Ranges = Vec<AddressRange>;

/// The permits of a run, grouped by match.
#[derive(Default)]
struct Gathered {
    exact: BTreeMap<Family, BTreeSet<String>>,
    all: BTreeMap<Family, Ranges>,
    /// By type and code; `None` is every message.
    icmp: BTreeMap<(Family, Option<(u8, u8)>), Ranges>,
    ports: BTreeMap<(Family, &'static str), BTreeMap<PortRange, Ranges>>,
}

impl Gathered {
    fn add(&mut self, permit: &Permit) {
        let range = permit.destination;
        let family = Family::of(range);
        match permit.service {
            Service::All => self.all.entry(family).or_default().push(range),
            Service::Icmp(icmp) | Service::Icmpv6(icmp) => {
                self.icmp.entry((family, icmp.exact())).or_default().push(range);
            }
            Service::Tcp(ports) => self.add_ports(family, "tcp", ports, range),
            Service::Udp(ports) => self.add_ports(family, "udp", ports, range),
        }
    }

    fn add_ports(
        &mut self,
        family: Family,
        protocol: &'static str,
        ports: PortRange,
        range: AddressRange,
    ) {
        if range.first() == range.last() && ports.first() == ports.last() {
            let element = format!("{protocol} . {} . {ports}", range.first());
            self.exact.entry(family).or_default().insert(element);
        } else {
            let specs = self.ports.entry((family, protocol)).or_default();
            specs.entry(ports).or_default().push(range);
        }
    }
}

impl Draft {
    fn run(&mut self, run: &[Permit]) {
        let mut gathered = Gathered::default();
        run.iter().for_each(|permit| gathered.add(permit));
        let Gathered { exact, all, icmp, ports } = gathered;
        let target = target(run[0].log);
        for (family, elements) in exact {
            let keyword = family.keyword();
            let elements: Vec<String> = elements.into_iter().collect();
            self.plain(format!(
                "meta l4proto . {keyword} daddr . th dport {{ {} }} {target}",
                elements.join(", ")
            ));
        }
        for (family, ranges) in all {
            self.plain(format!("{} {target}", destination(family, ranges)));
        }
        for ((family, icmp), ranges) in icmp {
            let to = destination(family, ranges);
            self.plain(format!("{} {to} {target}", icmp_match(family, icmp)));
        }
        for ((family, protocol), specs) in ports {
            self.port_ranges(family, protocol, specs, target);
        }
    }

    fn plain(&mut self, rule: String) {
        self.rules.push(RuleLine::Plain(rule));
    }

    fn port_ranges(
        &mut self,
        family: Family,
        protocol: &'static str,
        specs: BTreeMap<PortRange, Ranges>,
        target: &str,
    ) {
        let entries: usize = specs.values().map(Vec::len).sum();
        let pieces = if specs.len() > LINEAR { disjoint(&specs, 2 * entries + 64) } else { None };
        let Some(pieces) = pieces else {
            for (ports, ranges) in specs {
                let to = destination(family, ranges);
                self.plain(format!("{protocol} dport {ports} {to} {target}"));
            }
            return;
        };
        let mut chains: BTreeMap<Ranges, usize> = BTreeMap::new();
        let mut jumps = Vec::with_capacity(pieces.len());
        for (ports, ranges) in pieces {
            let ranges = merge(ranges);
            let chain = *chains.entry(ranges).or_insert_with_key(|ranges| {
                let to = destination(family, ranges.clone());
                self.inner.push(vec![format!("{to} {target}")]);
                self.inner.len() - 1
            });
            jumps.push((ports, chain));
        }
        self.rules.push(RuleLine::PortMap { protocol, jumps });
    }

    fn finish(self, header: &str, salt: &str) -> Vec<(String, Chain)> {
        let mut content = vec![salt.to_owned(), header.to_owned()];
        content.extend(self.rules.iter().map(|line| line.text("")));
        content.extend(self.inner.iter().flatten().cloned());
        let content: Vec<&str> = content.iter().map(String::as_str).collect();
        let own = name("rules", &content);
        let rules = self.rules.iter().map(|line| line.text(&own));
        let mut chains = vec![(own.clone(), Chain::of(header, rules))];
        chains.extend(
            self.inner
                .into_iter()
                .enumerate()
                .map(|(index, rules)| (format!("{own}-{index}"), Chain::of(header, rules))),
        );
        chains
    }
}

impl RuleLine {
    fn text(&self, own: &str) -> String {
        match self {
            Self::Plain(rule) => rule.clone(),
            Self::PortMap { protocol, jumps } => {
                let jumps =
                    jumps.iter().map(|(ports, chain)| format!("{ports} : jump {own}-{chain}"));
                format!("{protocol} dport vmap {{ {} }}", jumps.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn target(log: bool) -> &'static str {
    if log { ACCEPT_LOGGED } else { "accept" }
}

fn destination(family: Family, ranges: Ranges) -> String {
    let ranges = merge(ranges);
    match ranges.as_slice() {
        [everything] if is_everything(*everything) => {
            format!("meta nfproto {}", family.protocol())
        }
        ranges => address(family.keyword(), "daddr", ranges),
    }
}

fn icmp_match(family: Family, exact: Option<(u8, u8)>) -> String {
    let keyword = match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    };
    match exact {
        None => {
            format!("meta l4proto {}", if keyword == "icmp" { "icmp" } else { "ipv6-icmp" })
        }
        Some((icmp_type, code)) => {
            format!("{keyword} type {icmp_type} {keyword} code {code}")
        }
    }
}

/// A match of one address field against ranges that do not overlap.
fn list(ranges: &[AddressRange]) -> String {
    match ranges {
        [one] => text(*one),
        many => {
            let many: Vec<String> = many.iter().map(|range| text(*range)).collect();
            format!("{{ {} }}", many.join(", "))
        }
    }
}

/// A match of an address field.
pub(super) fn address(keyword: &str, field: &str, ranges: &[AddressRange]) -> String {
    format!("{keyword} {field} {}", list(ranges))
}
