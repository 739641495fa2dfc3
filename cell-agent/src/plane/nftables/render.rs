//! Renders a ruleset as an nftables table.
//!
//! Path of a packet from a container
//! (docs/compatibility/vxlan-policy-agent.md#differences):
//! 1. `forward` (the hook): selects container packets by overlay address, by a
//!    container's other addresses, or by the input interface.
//! 2. `egress`: accepts packets within the overlay if configured, accepts established
//!    ones, drops invalid TCP, finds the container by its interface or else by the
//!    source address.
//! 3. `container-*` if connections are limited: the container's limit.
//! 4. The container's `policy-*`: deny networks, then each group's `rules-*`, last group
//!    first.
//! 5. `denied`: logs if configured; `rejected`: counts, sends the packet to the agent's
//!    record of denied packets if configured, rejects.
//!
//! Invariants:
//! - A packet of an unknown container ends in `unattributed`: counted, rejected. The
//!   targets of the maps `policies` never return, so one container's rules decide a
//!   packet. The interface is looked up first, since a container may set any source
//!   address.
//! - Interval sets occur only in chains that never change: the chain's name is a hash
//!   of its content. Chains that change hold no intervals (see [`diff`](mod@super::diff)).
//! - The named maps change by whole elements, and a missing element never allows
//!   anything: the packet is unattributed, or a log line is missing.
//! - Each packet that is looked up is counted in `connections`, and each rejected one in
//!   either `denied` or `unattributed`: the others were allowed.
//! - A full connection set limits only its own container: a new connection passes only
//!   with an entry in the set.

mod denied;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    iter,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use model::{group::Lifecycle, ids::ContainerHandle, rule::AddressRange};

use self::denied::REJECTED;
use super::{
    intervals::merge,
    segment::{self, address},
    table::{Chain, Key, Map, Rule, Table, comment, name, plain},
};
use crate::{
    containers::Belongs,
    interfaces::SILK,
    plan::{Assignment, ConnectionLimit, Planned, Policy, Ruleset, Segment, Settings},
};

/// Before the filter tables of others: packets that they accept are still denied here.
const PRIORITY: &str = "type filter hook forward priority -10; policy accept;";
/// ICMP and ICMPv6 port unreachable, also for TCP, like the original.
const REJECT: &str = "reject with icmpx port-unreachable";
/// Maximum log prefix of the original, without the trailing blank.
const PREFIX_CHARS: usize = 28;

/// The counter of rejected packets that belong to no known container.
pub const UNATTRIBUTED: &str = "unattributed";
/// The counter of rejected packets of known containers.
pub const DENIED: &str = "denied";
/// The counter of packets of new connections, also of rejected ones.
pub const CONNECTIONS: &str = "connections";
/// Sets of the interfaces and sources of the latest unattributed packets.
pub const UNATTRIBUTED_SETS: [&str; 2] = ["unattributed_v4", "unattributed_v6"];
/// Size of such a set, and timeout of an entry.
const UNATTRIBUTED_SET: &str = "size 128; flags dynamic,timeout; timeout 10m;";

/// One address family.
struct Family {
    keyword: &'static str,
    key: &'static str,
    suffix: &'static str,
    protocol: &'static str,
    unattributed: &'static str,
}

const V4: Family = Family {
    keyword: "ip",
    key: "ipv4_addr",
    suffix: "",
    protocol: "ipv4",
    unattributed: UNATTRIBUTED_SETS[0],
};
const V6: Family = Family {
    keyword: "ip6",
    key: "ipv6_addr",
    suffix: "_v6",
    protocol: "ipv6",
    unattributed: UNATTRIBUTED_SETS[1],
};
const FAMILIES: [&Family; 2] = [&V4, &V6];
/// Name suffix of maps that are keyed by interface.
const BY_INTERFACE: &str = "_if";

/// Renders the table once. The salt is part of the names of content-named chains;
/// another salt renames all of them.
#[must_use]
pub fn render(ruleset: &Ruleset, salt: &str) -> Table {
    Renderer::default().render(ruleset, salt)
}

/// Incremental [`render`] with the same result; segments that are the same `Arc` as in
/// the previous call are not rendered again.
#[derive(Debug, Default)]
pub struct Renderer {
    salt: String,
    segments: Segments,
}

/// The chains of segments, by the segment's address. The `Arc` is held, so the address
/// is not reused.
type Segments = HashMap<usize, (Arc<Segment>, Vec<(String, Chain)>)>;

impl Renderer {
    /// Renders the table.
    pub fn render(&mut self, ruleset: &Ruleset, salt: &str) -> Table {
        let before = std::mem::take(&mut self.segments);
        let before = if self.salt == salt { before } else { Segments::new() };
        let counts = ruleset.settings.count_use;
        let mut rendered = Rendered { salt, counts, before, used: Segments::new() };
        let table = table(ruleset, &mut rendered);
        self.segments = rendered.used;
        salt.clone_into(&mut self.salt);
        table
    }

    /// The rendered segments, with the name of the entry chain of each.
    pub(super) fn segments(&self) -> impl Iterator<Item = (&str, &Arc<Segment>)> {
        let segments = self.segments.values();
        segments.map(|(segment, chains)| (chains[0].0.as_str(), segment))
    }
}

fn table(ruleset: &Ruleset, rendered: &mut Rendered<'_>) -> Table {
    let mut table = Table::default();
    let settings = &*ruleset.settings;
    let mut map = |name: String, key: &str, jumps| {
        table.maps.insert(name, Map { key: key.to_owned(), jumps });
    };
    let kinds = ["policies", "ok_logs", "deny_logs"];
    for kind in kinds.iter().filter(|kind| **kind != "deny_logs" || settings.log_all) {
        map(format!("{kind}{BY_INTERFACE}"), "ifname", BTreeMap::new());
        for family in FAMILIES {
            map(format!("{kind}{}", family.suffix), family.key, BTreeMap::new());
        }
    }
    for family in FAMILIES {
        let to_egress = |address| (Key::Address(address), "egress".to_owned());
        let outsiders: BTreeMap<Key, String> = outsiders(ruleset, family).map(to_egress).collect();
        if !outsiders.is_empty() {
            map(format!("outsiders{}", family.suffix), family.key, outsiders);
        }
        let definition = format!("type ifname . {}; {UNATTRIBUTED_SET}", family.key);
        table.sets.insert(family.unattributed.to_owned(), definition);
    }
    table.counters.extend([UNATTRIBUTED, DENIED, CONNECTIONS].map(str::to_owned));
    let fixed = [
        ("forward", forward(ruleset)),
        ("egress", egress(settings)),
        ("accept_logged", after_lookup("ok_logs", "accept")),
        ("denied", denied::denied(settings)),
        ("rejected", denied::rejected(settings)),
        ("unattributed", unattributed()),
    ];
    table.chains.extend(fixed.map(|(name, chain)| (name.to_owned(), chain)));
    if let Some(record) = settings.records_denied() {
        denied::record(&mut table, record);
    }
    for (belongs, policy) in &ruleset.policies {
        let chain = policy_chain(&mut table, rendered, belongs, policy);
        table.chains.insert(policy_name(belongs), chain);
    }
    for (handle, planned) in &ruleset.containers {
        container(&mut table, ruleset, handle, planned);
    }
    table
}

/// The hook: selects container packets from all forwarded packets.
fn forward(ruleset: &Ruleset) -> Chain {
    let settings = &*ruleset.settings;
    let mut forward = Chain::new(PRIORITY);
    let overlay = settings.overlay;
    let family_of_overlay = family_of(overlay.addr()).key;
    for family in FAMILIES {
        let Family { keyword, suffix, protocol, .. } = family;
        let mut confined = String::new();
        if family.key == family_of_overlay || family.key == V4.key {
            confined = leaving(&settings.underlay);
        }
        if family.key == family_of_overlay {
            // Container network policy decides about packets between containers.
            if settings.underlay.is_empty() {
                confined = format!("{keyword} daddr != {overlay} ");
            }
            forward.rule(format!("{confined}{keyword} saddr {overlay} jump egress"));
            forward.rule(format!("{confined}{keyword} saddr {overlay} {REJECT}"));
        }
        if outsiders(ruleset, family).next().is_some() {
            forward.rule(format!("{confined}{keyword} saddr vmap @outsiders{suffix}"));
        }
        for from in coming(&ruleset.interfaces) {
            let from = format!("{confined}meta nfproto {protocol} iifname {from}");
            forward.rule(format!("{from} jump egress"));
            forward.rule(format!("{from} goto denied"));
        }
    }
    forward
}

/// Matches of the containers' interfaces.
fn coming(interfaces: &BTreeSet<String>) -> Vec<String> {
    let others: Vec<String> = interfaces.iter().map(|name| format!("\"{name}\"")).collect();
    let silk = format!("\"{SILK}*\"");
    match others.as_slice() {
        [] => vec![silk],
        [one] => vec![silk, one.clone()],
        many => vec![silk, format!("{{ {} }}", many.join(", "))],
    }
}

fn egress(settings: &Settings) -> Chain {
    let mut egress = Chain::new("");
    if settings.disable_network_policy {
        let overlay = settings.overlay;
        let keyword = family_of(overlay.addr()).keyword;
        egress.rule(format!("{keyword} saddr {overlay} {keyword} daddr {overlay} accept"));
    }
    egress.rule("ct state established,related accept");
    egress.rule("meta l4proto tcp ct state invalid drop");
    egress.rule(format!("counter name \"{CONNECTIONS}\""));
    egress.rules.extend(lookup("policies").map(Rule::Text));
    egress.rule("goto unattributed");
    egress
}

/// Looks up the container's element: by the interface, or else by the source address.
fn lookup(map: &str) -> impl Iterator<Item = String> {
    let by_address = move |Family { keyword, suffix, .. }: &Family| {
        format!("{keyword} saddr vmap @{map}{suffix}")
    };
    let by_interface = format!("iifname vmap @{map}{BY_INTERFACE}");
    iter::once(by_interface).chain(FAMILIES.into_iter().map(by_address))
}

fn after_lookup(map: &str, end: &str) -> Chain {
    let mut chain = Chain::of("", lookup(map));
    chain.rule(end);
    chain
}

/// Counts the packet, and records its source if the set has a free entry.
fn unattributed() -> Chain {
    let mut chain = Chain::new("");
    chain.rule(format!("counter name \"{UNATTRIBUTED}\""));
    for Family { keyword, unattributed, .. } in FAMILIES {
        chain.rule(format!("update @{unattributed} {{ iifname . {keyword} saddr }}"));
    }
    chain.rule(REJECT);
    chain
}

fn family_of(address: IpAddr) -> &'static Family {
    if address.is_ipv4() { &V4 } else { &V6 }
}

/// Container addresses outside the overlay, assigned or not.
fn outsiders<'a>(
    ruleset: &'a Ruleset,
    family: &'a Family,
) -> impl Iterator<Item = IpAddr> + use<'a> {
    let addresses = ruleset.claimed.iter().copied();
    addresses.filter(|address| {
        family_of(*address).key == family.key && !ruleset.settings.overlay.contains(address)
    })
}

fn range(net: IpNet) -> AddressRange {
    AddressRange::try_new(net.network(), net.broadcast()).expect("the ends of a network")
}

fn leaving(underlay: &[String]) -> String {
    let quoted: Vec<String> = underlay.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => format!("oifname {one} "),
        many => format!("oifname {{ {} }} ", many.join(", ")),
    }
}

/// A policy's chain has a stable name, so a change of rules changes this chain and no
/// map.
fn policy_name(belongs: &Belongs) -> String {
    name("policy", &[lifecycle(belongs.lifecycle), belongs.space.as_str()])
}

fn lifecycle(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Running => "running",
        Lifecycle::Staging => "staging",
    }
}

/// Rendered segments, which policies share.
struct Rendered<'a> {
    salt: &'a str,
    counts: bool,
    /// From the previous call.
    before: Segments,
    /// Used in this table.
    used: Segments,
}

impl Rendered<'_> {
    /// The name of the segment's chain.
    fn segment(&mut self, table: &mut Table, segment: &Arc<Segment>) -> String {
        let place = Arc::as_ptr(segment).addr();
        let (_, chains) = self.used.entry(place).or_insert_with(|| {
            let anew = || (Arc::clone(segment), segment::chains(segment, self.salt, self.counts));
            let held = self.before.remove(&place).unwrap_or_else(anew);
            table.chains.extend(held.1.iter().cloned());
            held
        });
        chains[0].0.clone()
    }
}

fn policy_chain(
    table: &mut Table,
    rendered: &mut Rendered<'_>,
    belongs: &Belongs,
    policy: &Policy,
) -> Chain {
    let Belongs { space, lifecycle: life } = belongs;
    let mut chain = Chain::new(comment(&format!("space {space} {}", lifecycle(*life))));
    if let Some((name, deny)) = deny_chain(policy, rendered.salt) {
        chain.jump(name.as_str());
        table.chains.insert(name, deny);
    }
    for segment in &policy.segments {
        let name = rendered.segment(table, segment);
        chain.jump(name.as_str());
    }
    chain.jump("denied");
    chain
}

/// The chain that rejects denied networks, if there are any.
fn deny_chain(policy: &Policy, salt: &str) -> Option<(String, Chain)> {
    let mut chain = Chain::new(comment("denied networks"));
    for family in [&V4, &V6] {
        let deny = policy.deny.iter().filter(|net| family_of(net.addr()).key == family.key);
        let deny = merge(deny.copied().map(range).collect());
        if !deny.is_empty() {
            let networks = address(family.keyword, "daddr", &deny);
            chain.rule(format!("{networks} {REJECTED}"));
        }
    }
    let rules: Vec<String> = chain.rules.iter().map(Rule::to_string).collect();
    let content: Vec<&str> = iter::once(salt).chain(rules.iter().map(String::as_str)).collect();
    let name = name("networks", &content);
    (!chain.rules.is_empty()).then_some((name, chain))
}

fn container(table: &mut Table, ruleset: &Ruleset, handle: &ContainerHandle, planned: &Planned) {
    if planned.addresses().next().is_none() {
        return;
    }
    let settings = &*ruleset.settings;
    let (udp, denied) = (settings.udp_logs_per_second, settings.denied_logs_per_second);
    let about = comment(&format!("container {handle}"));
    let limited = format!("limit rate {denied}/second burst {denied} packets");
    let own = |kind: &str| name(kind, &[handle.as_str()]);
    let mut decides = "denied".to_owned();
    if let Assignment::Bound(belongs) = &planned.assignment {
        decides = policy_name(belongs);
        if let Some(limit) = &settings.connection_limit {
            let chain = limit_chain(table, handle, planned, limit, &limited);
            table.chains.insert(own("limit"), Chain::of(about.as_str(), chain));
            let mut container = Chain::new(about.as_str());
            container.jump(own("limit"));
            container.jump(decides);
            decides = own("container");
            table.chains.insert(decides.clone(), container);
        }
        if ruleset.policies.get(belongs).is_some_and(|policy| policy.logs()) {
            let log = log("OK_", handle);
            let rules = [
                format!("meta l4proto != udp ct state invalid,new,untracked {log}"),
                format!("meta l4proto udp limit rate {udp}/second burst {udp} packets {log}"),
                "accept".to_owned(),
            ];
            bind(table, "ok_logs", planned, &own("ok"));
            table.chains.insert(own("ok"), Chain::of(about.as_str(), rules));
        }
    }
    bind(table, "policies", planned, &decides);
    if settings.log_all {
        let rules = [format!("{limited} {}", log("DENY_", handle)), REJECTED.to_owned()];
        bind(table, "deny_logs", planned, &own("deny"));
        table.chains.insert(own("deny"), Chain::of(about, rules));
    }
}

/// Maps all keys of a container to a chain.
fn bind(table: &mut Table, map: &str, planned: &Planned, chain: &str) {
    let addresses =
        planned.addresses().map(|address| (family_of(address).suffix, Key::Address(address)));
    let interface = planned.interface().map(|name| (BY_INTERFACE, Key::Interface(name)));
    for (suffix, key) in addresses.chain(interface) {
        let map = table.maps.get_mut(&format!("{map}{suffix}")).expect("the maps are made first");
        map.jumps.insert(key, chain.to_owned());
    }
}

/// The counter of connections that found a container's set full.
#[must_use]
pub fn full(handle: &ContainerHandle) -> String {
    name("full", &[handle.as_str()])
}

/// Returns a new TCP connection that is within the container's limit. The connection
/// needs an entry in the container's set: without one it is over the limit.
fn limit_chain(
    table: &mut Table,
    handle: &ContainerHandle,
    planned: &Planned,
    limit: &ConnectionLimit,
    logged: &str,
) -> Vec<String> {
    let ConnectionLimit { per_second, burst, log: is_logged, destinations } = limit;
    let seconds = burst.div_ceil(*per_second);
    let within = format!("limit rate {per_second}/second burst {burst} packets");
    let full = full(handle);
    let mut rules =
        vec!["meta l4proto != tcp return".to_owned(), "ct state != new return".to_owned()];
    let mut homeless = Vec::new();
    for family in FAMILIES {
        let Family { keyword, key, suffix, protocol, .. } = family;
        if planned.addresses().all(|address| family_of(address).key != *key) {
            // Even an empty set uses memory.
            rules.push(format!("meta nfproto {protocol} {within} return"));
            continue;
        }
        let set = format!("{}{suffix}", name("connections", &[handle.as_str()]));
        let bucket = format!("{keyword} daddr . tcp dport");
        rules.push(format!("update @{set} {{ {bucket} {within} }} return"));
        homeless.push(format!("{bucket} != @{set} counter name \"{full}\""));
        let definition = format!(
            "type {key} . inet_service; size {destinations}; flags dynamic,timeout; timeout {seconds}s;"
        );
        table.sets.insert(set, definition);
    }
    rules.extend(homeless);
    table.counters.insert(full);
    if *is_logged {
        rules.push(format!("{logged} {}", log("DENY_ORL_", handle)));
    }
    rules.push(REJECTED.to_owned());
    rules
}

/// The prefix of the kernel's log line, truncated like the original's. A handle may
/// contain nft syntax, so it is escaped.
fn log(kind: &str, handle: &ContainerHandle) -> String {
    let text: String = format!("{kind}{handle}").chars().take(PREFIX_CHARS).collect();
    let text = plain(&text);
    format!("counter log prefix \"{text} \"")
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
