//! Renders a segment of permits as chains of set lookups.
//!
//! All permits allow, so within a run of equal log flags their order has no meaning,
//! and they are grouped by match: single addresses with single ports into one exact
//! set; everything else into one interval set for each port range, behind a map of
//! ports when there are many. Ranges are merged here, since the kernel refuses
//! overlaps. With counters, each rule and each element of a set counts its packets, and
//! [`counted`] says which permits each counter stands for.
//!
//! Interval sets of more than one field would save a lookup, but such sets get slow
//! with size and refuse overlaps that occur in real groups
//! (docs/compatibility/vxlan-policy-agent.md#baseline).

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    effective::{Permit, Service},
    rule::{AddressRange, IcmpMatch, PortRange},
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

/// Counters of one rule in the kernel. Each stands for permits that together allow what it
/// counted: packets of several permits that are merged into one range share a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Counted {
    /// The rule counts nothing: it leads to other chains.
    Nothing,
    /// The rule has one counter.
    Rule(Vec<Permit>),
    /// Each element of its set has a counter, by the kernel's form of its key.
    Elements(BTreeMap<Vec<u8>, Vec<Permit>>),
}

/// The chains of a segment; the first is the entry. The names are hashes of their
/// content and the salt, so equal names mean equal chains.
pub(super) fn chains(segment: &Segment, salt: &str, counts: bool) -> Vec<(String, Chain)> {
    let chains = finished(segment, salt, counts).into_iter();
    chains.map(|(name, chain, _)| (name, chain)).collect()
}

/// The counters of the same chains, for each rule.
pub(super) fn counted(segment: &Segment, salt: &str) -> Vec<(String, Vec<Counted>)> {
    let chains = finished(segment, salt, true).into_iter();
    chains.map(|(name, _, counted)| (name, counted)).collect()
}

fn finished(segment: &Segment, salt: &str, counts: bool) -> Vec<(String, Chain, Vec<Counted>)> {
    let mut draft = Draft { counts, ..Draft::default() };
    let runs = segment.permits.chunk_by(|one, next| one.log == next.log);
    runs.for_each(|run| draft.run(run));
    let header = comment(&format!("group {}", segment.group));
    draft.finish(&header, salt)
}

/// Chains before their names are computed.
#[derive(Default)]
struct Draft {
    /// Whether rules and elements count their packets.
    counts: bool,
    rules: Vec<RuleLine>,
    /// Chains of one rule behind a map of ports, with their addresses and ports.
    inner: Vec<(String, Ranges, Vec<PortRange>)>,
}

/// A rule, which may jump to inner chains by their index.
enum RuleLine {
    Plain(String, Counted),
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
    /// By the element's text.
    exact: BTreeMap<Family, BTreeMap<String, Permit>>,
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
            Service::Tcp(ports) | Service::Udp(ports) => {
                self.add_ports(family, permit.service, ports, range);
            }
        }
    }

    fn add_ports(
        &mut self,
        family: Family,
        service: Service,
        ports: PortRange,
        range: AddressRange,
    ) {
        let protocol = if matches!(service, Service::Udp(_)) { "udp" } else { "tcp" };
        if range.first() == range.last() && ports.first() == ports.last() {
            let element = format!("{protocol} . {} . {ports}", range.first());
            let permit = Permit { destination: range, service, log: false };
            self.exact.entry(family).or_default().insert(element, permit);
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
            self.exact(family, elements, target);
        }
        for (family, ranges) in all {
            self.plain("", family, ranges, &[Service::All], target);
        }
        for ((family, icmp), ranges) in icmp {
            let matches = format!("{} ", icmp_match(family, icmp));
            self.plain(&matches, family, ranges, &[icmp_service(family, icmp)], target);
        }
        for ((family, protocol), specs) in ports {
            self.port_ranges(family, protocol, specs, target);
        }
    }

    /// A rule for pairs of one address and one port.
    fn exact(&mut self, family: Family, elements: BTreeMap<String, Permit>, target: &str) {
        let many = elements.len() > 1;
        let counter = if self.counts && many { " counter" } else { "" };
        let of_rule = if self.counts && !many { "counter " } else { "" };
        let texts: Vec<String> = elements.keys().map(|text| format!("{text}{counter}")).collect();
        let text = format!(
            "meta l4proto . {} daddr . th dport {{ {} }} {of_rule}{target}",
            family.keyword(),
            texts.join(", ")
        );
        let counted = match many {
            true => {
                let elements = elements.into_values();
                Counted::Elements(elements.map(|one| (exact_key(&one), vec![one])).collect())
            }
            false => Counted::Rule(elements.into_values().collect()),
        };
        self.rules.push(RuleLine::Plain(text, counted));
    }

    /// A rule for addresses, after other matches.
    fn plain(
        &mut self,
        matches: &str,
        family: Family,
        ranges: Ranges,
        services: &[Service],
        target: &str,
    ) {
        let ranges = merge(ranges);
        let to = destination(family, &ranges, self.counts);
        let counted = addresses_counted(&ranges, services);
        self.rules.push(RuleLine::Plain(format!("{matches}{to} {target}"), counted));
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
                let matches = format!("{protocol} dport {ports} ");
                self.plain(&matches, family, ranges, &[port_service(protocol, ports)], target);
            }
            return;
        };
        let mut chains: BTreeMap<Ranges, usize> = BTreeMap::new();
        let mut jumps = Vec::with_capacity(pieces.len());
        for (ports, ranges) in pieces {
            let ranges = merge(ranges);
            let chain = *chains.entry(ranges).or_insert_with_key(|ranges| {
                let to = destination(family, ranges, self.counts);
                self.inner.push((format!("{to} {target}"), ranges.clone(), Vec::new()));
                self.inner.len() - 1
            });
            self.inner[chain].2.push(ports);
            jumps.push((ports, chain));
        }
        self.rules.push(RuleLine::PortMap { protocol, jumps });
    }

    fn finish(self, header: &str, salt: &str) -> Vec<(String, Chain, Vec<Counted>)> {
        let mut content = vec![salt.to_owned(), header.to_owned()];
        content.extend(self.rules.iter().map(|line| line.text("")));
        content.extend(self.inner.iter().map(|(rule, ..)| rule.clone()));
        let content: Vec<&str> = content.iter().map(String::as_str).collect();
        let own = name("rules", &content);
        let mut inner_counted: Vec<Counted> = Vec::with_capacity(self.inner.len());
        let mut protocols: BTreeMap<usize, &'static str> = BTreeMap::new();
        for line in &self.rules {
            if let RuleLine::PortMap { protocol, jumps } = line {
                protocols.extend(jumps.iter().map(|(_, chain)| (*chain, *protocol)));
            }
        }
        for (index, (_, ranges, ports)) in self.inner.iter().enumerate() {
            let protocol = protocols.get(&index).copied().unwrap_or("tcp");
            let services: Vec<_> =
                ports.iter().map(|ports| port_service(protocol, *ports)).collect();
            inner_counted.push(addresses_counted(ranges, &services));
        }
        let rules: Vec<String> = self.rules.iter().map(|line| line.text(&own)).collect();
        let counted = self.rules.into_iter().map(RuleLine::into_counted).collect();
        let mut chains = vec![(own.clone(), Chain::of(header, rules), counted)];
        let inner = self.inner.into_iter().zip(inner_counted).enumerate();
        chains.extend(inner.map(|(index, ((rule, ..), counted))| {
            (format!("{own}-{index}"), Chain::of(header, [rule]), vec![counted])
        }));
        chains
    }
}

impl RuleLine {
    fn into_counted(self) -> Counted {
        match self {
            Self::Plain(_, counted) => counted,
            Self::PortMap { .. } => Counted::Nothing,
        }
    }

    fn text(&self, own: &str) -> String {
        match self {
            Self::Plain(rule, _) => rule.clone(),
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

/// A match of merged ranges.
fn destination(family: Family, ranges: &[AddressRange], counts: bool) -> String {
    let one = match ranges {
        [everything] if is_everything(*everything) => {
            format!("meta nfproto {}", family.protocol())
        }
        [_] => address(family.keyword(), "daddr", ranges),
        many if counts => {
            let many: Vec<String> =
                many.iter().map(|range| format!("{} counter", text(*range))).collect();
            return format!("{} daddr {{ {} }}", family.keyword(), many.join(", "));
        }
        many => return address(family.keyword(), "daddr", many),
    };
    // nft makes no set of one element, which would lose its counter.
    if counts { format!("{one} counter") } else { one }
}

/// The counters of [`destination`].
fn addresses_counted(ranges: &[AddressRange], services: &[Service]) -> Counted {
    let permits = |range: &AddressRange| -> Vec<Permit> {
        let permit =
            |service: &Service| Permit { destination: *range, service: *service, log: false };
        services.iter().map(permit).collect()
    };
    match ranges {
        [one] => Counted::Rule(permits(one)),
        many => Counted::Elements(
            many.iter().map(|range| (octets(range.first()), permits(range))).collect(),
        ),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The kernel's form of protocol, address and port: each a multiple of four bytes.
fn exact_key(permit: &Permit) -> Vec<u8> {
    let (protocol, ports) = match permit.service {
        Service::Udp(ports) => (17, Some(ports)),
        Service::Tcp(ports) => (6, Some(ports)),
        Service::All | Service::Icmp(_) | Service::Icmpv6(_) => (0, None),
    };
    let port = ports.map_or(0, PortRange::first).to_be_bytes();
    [&[protocol, 0, 0, 0], octets(permit.destination.first()).as_slice(), &port, &[0, 0]].concat()
}

fn port_service(protocol: &str, ports: PortRange) -> Service {
    if protocol == "udp" { Service::Udp(ports) } else { Service::Tcp(ports) }
}

fn icmp_service(family: Family, exact: Option<(u8, u8)>) -> Service {
    let wanted = exact.map_or(IcmpMatch::ANY, |(icmp_type, code)| IcmpMatch { icmp_type, code });
    match family {
        Family::V4 => Service::Icmp(wanted),
        Family::V6 => Service::Icmpv6(wanted),
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
