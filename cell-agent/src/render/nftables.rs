//! A ruleset as an nftables table.
//!
//! A packet from a container takes this way (contracts/cell-agent.md 2.3, 8.4):
//! `forward` (the hook) - `egress`: accept within the overlay if configured,
//! accept established, drop invalid TCP, limit new connections - the container's
//! `policy-*`: deny networks, then each group's `rules-*`, last group first -
//! `denied`: log if configured, reject.
//!
//! What always holds:
//! - An address that no map knows ends in `denied`. Maps jump, so a chain that
//!   lets a packet fall through hands it to `denied` as well.
//! - Sets of intervals stand only in chains that never change: their name says
//!   what is in them. Chains that change hold no intervals (see [`crate::diff`]).
//! - The named maps change by whole elements, and a missing element never means
//!   a different verdict than the one before or after: only log lines hang on the
//!   maps of log chains.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use model::{group::Lifecycle, ids::ContainerHandle, rule::AddressRange};

use super::{
    intervals::merge,
    segment::{self, list},
    table::{Chain, Map, Table, comment, name, plain},
};
use crate::{
    containers::Belongs,
    plan::{ConnectionLimit, Planned, Policy, Ruleset, Segment, Settings, Standing},
};

/// Ahead of the filter tables of others: what they accept, we still deny.
const PRIORITY: &str = "type filter hook forward priority -10; policy accept;";
/// ICMP and ICMPv6 port unreachable, also for TCP, as the original.
const REJECT: &str = "reject with icmpx port-unreachable";
/// How a logging rule ends.
pub(super) const ACCEPT_LOGGED: &str = "goto accept_logged";
/// Longest log prefix that the original writes, without the blank.
const PREFIX_CHARS: usize = 28;

/// One address family of the containers.
struct Family {
    keyword: &'static str,
    key: &'static str,
    suffix: &'static str,
}

const V4: Family = Family { keyword: "ip", key: "ipv4_addr", suffix: "" };
const V6: Family = Family { keyword: "ip6", key: "ipv6_addr", suffix: "_v6" };

/// The table for a ruleset. The salt goes into the names of chains that are known
/// by their content; another one gives them all new names.
#[must_use]
pub fn render(ruleset: &Ruleset, salt: &str) -> Table {
    Renderer::default().render(ruleset, salt)
}

/// Renders again and again, to the same effect as [`render`]; segments that are
/// the same in memory as the last time are not rendered again.
#[derive(Debug, Default)]
pub struct Renderer {
    salt: String,
    segments: Segments,
}

/// The chains of segments, by where those are. They are held, so that nothing else
/// can be there.
type Segments = HashMap<usize, (Arc<Segment>, Vec<(String, Chain)>)>;

impl Renderer {
    /// The table for a ruleset.
    pub fn render(&mut self, ruleset: &Ruleset, salt: &str) -> Table {
        let before = std::mem::take(&mut self.segments);
        let before = if self.salt == salt { before } else { Segments::new() };
        let mut rendered = Rendered { salt, before, used: Segments::new() };
        let table = table(ruleset, &mut rendered);
        self.segments = rendered.used;
        salt.clone_into(&mut self.salt);
        table
    }
}

fn table(ruleset: &Ruleset, rendered: &mut Rendered<'_>) -> Table {
    let mut table = Table::default();
    let settings = &*ruleset.settings;
    for family in families(ruleset) {
        let mut kinds = vec!["policies", "ok_logs"];
        kinds.extend(settings.log_all.then_some("deny_logs"));
        kinds.extend(limit_logs(settings).then_some("limit_logs"));
        for kind in kinds {
            let map = Map { key: family.key.to_owned(), ..Map::default() };
            table.maps.insert(format!("{kind}{}", family.suffix), map);
        }
        let outsiders: BTreeMap<IpAddr, String> =
            outsiders(ruleset, family).map(|address| (address, "egress".to_owned())).collect();
        if !outsiders.is_empty() {
            let map = Map { key: family.key.to_owned(), jumps: outsiders };
            table.maps.insert(format!("outsiders{}", family.suffix), map);
        }
        if let Some(limit) = &settings.connection_limit {
            let definition = connections(family, limit);
            table.sets.insert(format!("connections{}", family.suffix), definition);
        }
    }
    fixed_chains(&mut table, ruleset);
    for (belongs, policy) in &ruleset.policies {
        let chain = policy_chain(&mut table, rendered, belongs, policy);
        table.chains.insert(policy_name(belongs), chain);
    }
    for (handle, planned) in &ruleset.containers {
        container(&mut table, ruleset, handle, planned);
    }
    table
}

/// IPv6 only where a container has such an address.
fn families(ruleset: &Ruleset) -> impl Iterator<Item = &'static Family> {
    let v6 = ruleset.claimed.iter().any(IpAddr::is_ipv6);
    [&V4].into_iter().chain(v6.then_some(&V6))
}

fn limit_logs(settings: &Settings) -> bool {
    settings.connection_limit.is_some_and(|limit| limit.log)
}

/// One bucket a container, destination and port, forgotten when it is full again.
fn connections(family: &Family, limit: &ConnectionLimit) -> String {
    let ConnectionLimit { per_second, burst, log: _ } = limit;
    let seconds = burst.div_ceil(*per_second);
    let key = family.key;
    format!(
        "type {key} . {key} . inet_service; size 65535; flags dynamic,timeout; timeout {seconds}s;"
    )
}

fn fixed_chains(table: &mut Table, ruleset: &Ruleset) {
    let settings = &*ruleset.settings;
    let mut forward = Chain::new(PRIORITY);
    let mut egress = Chain::new("");
    let mut accept_logged = Chain::new("");
    let mut denied = Chain::new("");
    let mut over_limit = Chain::new("");
    if settings.disable_network_policy {
        let overlay = settings.overlay;
        let keyword = family_of(overlay.addr()).keyword;
        egress.rule(format!("{keyword} saddr {overlay} {keyword} daddr {overlay} accept"));
    }
    egress.rule("ct state established,related accept");
    egress.rule("meta l4proto tcp ct state invalid drop");
    for family in families(ruleset) {
        let Family { keyword, suffix, .. } = family;
        let out = leaving(&settings.underlay);
        let overlay = settings.overlay;
        if family_of(overlay.addr()).key == family.key {
            forward.rule(format!("{out}{keyword} saddr {overlay} jump egress"));
            forward.rule(format!("{out}{keyword} saddr {overlay} {REJECT}"));
        }
        if outsiders(ruleset, family).next().is_some() {
            forward.rule(format!("{out}{keyword} saddr vmap @outsiders{suffix}"));
        }
        if let Some(ConnectionLimit { per_second, burst, log }) = settings.connection_limit {
            let over = if log { "jump over_limit" } else { REJECT };
            egress.rule(format!(
                "ct state new update @connections{suffix} {{ {keyword} saddr . {keyword} daddr . tcp dport \
                 limit rate over {per_second}/second burst {burst} packets }} {over}"
            ));
        }
        egress.rule(format!("{keyword} saddr vmap @policies{suffix}"));
        accept_logged.rule(format!("{keyword} saddr vmap @ok_logs{suffix}"));
        if settings.log_all {
            denied.rule(format!("{keyword} saddr vmap @deny_logs{suffix}"));
        }
        if limit_logs(settings) {
            over_limit.rule(format!("{keyword} saddr vmap @limit_logs{suffix}"));
        }
    }
    egress.rule("goto denied");
    accept_logged.rule("accept");
    denied.rule(REJECT);
    if limit_logs(settings) {
        over_limit.rule(REJECT);
        table.chains.insert("over_limit".to_owned(), over_limit);
    }
    let fixed = [
        ("forward", forward),
        ("egress", egress),
        ("accept_logged", accept_logged),
        ("denied", denied),
    ];
    table.chains.extend(fixed.map(|(name, chain)| (name.to_owned(), chain)));
}

fn family_of(address: IpAddr) -> &'static Family {
    if address.is_ipv4() { &V4 } else { &V6 }
}

/// Addresses of containers outside the overlay, whether somebody gets them or not.
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

/// A match of an address field.
pub(super) fn address(keyword: &str, field: &str, ranges: &[AddressRange]) -> String {
    format!("{keyword} {field} {}", list(ranges))
}

/// The chain of a policy is stable, so that a change of rules is a change of
/// this chain and of no map.
fn policy_name(belongs: &Belongs) -> String {
    name("policy", &[lifecycle(belongs.lifecycle), belongs.space.as_str()])
}

fn lifecycle(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Running => "running",
        Lifecycle::Staging => "staging",
    }
}

/// Where segments are already, which policies share.
struct Rendered<'a> {
    salt: &'a str,
    /// From the last time.
    before: Segments,
    /// In this table.
    used: Segments,
}

impl Rendered<'_> {
    /// The name of the chain to jump to.
    fn segment(&mut self, table: &mut Table, segment: &Arc<Segment>) -> String {
        let place = Arc::as_ptr(segment).addr();
        let (_, chains) = self.used.entry(place).or_insert_with(|| {
            let anew = || (Arc::clone(segment), segment::chains(segment, self.salt));
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
        chain.rule(format!("jump {name}"));
        table.chains.insert(name, deny);
    }
    for segment in &policy.segments {
        let name = rendered.segment(table, segment);
        chain.rule(format!("jump {name}"));
    }
    chain
}

/// The chain that rejects what no rule opens, if there is anything.
fn deny_chain(policy: &Policy, salt: &str) -> Option<(String, Chain)> {
    let mut chain = Chain::new(comment("denied networks"));
    for family in [&V4, &V6] {
        let deny = policy.deny.iter().filter(|net| family_of(net.addr()).key == family.key);
        let deny = merge(deny.copied().map(range).collect());
        if !deny.is_empty() {
            chain.rule(format!("{} {REJECT}", address(family.keyword, "daddr", &deny)));
        }
    }
    let mut content = vec![salt];
    content.extend(chain.rules.iter().map(String::as_str));
    let name = name("networks", &content);
    (!chain.rules.is_empty()).then_some((name, chain))
}

fn container(table: &mut Table, ruleset: &Ruleset, handle: &ContainerHandle, planned: &Planned) {
    let Some(address) = planned.address else { return };
    let settings = &*ruleset.settings;
    let (udp, denied) = (settings.udp_logs_per_second, settings.denied_logs_per_second);
    let about = comment(&format!("container {handle}"));
    let mut bind = |map: &str, chain: String, rules: Option<Vec<String>>| {
        let map = format!("{map}{}", family_of(address).suffix);
        let map = table.maps.get_mut(&map).expect("maps are made for every family of addresses");
        map.jumps.insert(address, chain.clone());
        if let Some(rules) = rules {
            table.chains.insert(chain, Chain { header: about.clone(), rules });
        }
    };
    let log_chain = |kind: &str| name(kind, &[handle.as_str()]);
    if let Standing::Bound(belongs) = &planned.standing {
        bind("policies", policy_name(belongs), None);
        if ruleset.policies.get(belongs).is_some_and(|policy| policy.logs()) {
            let log = log("OK_", handle);
            let rules = vec![
                format!("meta l4proto != udp ct state invalid,new,untracked {log}"),
                format!("meta l4proto udp limit rate {udp}/second burst {udp} packets {log}"),
            ];
            bind("ok_logs", log_chain("ok"), Some(rules));
        }
    }
    let limited = format!("limit rate {denied}/second burst {denied} packets");
    if settings.log_all {
        let rules = vec![format!("{limited} {}", log("DENY_", handle))];
        bind("deny_logs", log_chain("deny"), Some(rules));
    }
    if limit_logs(settings) {
        let rules = vec![format!("{limited} {}", log("DENY_ORL_", handle))];
        bind("limit_logs", log_chain("limit"), Some(rules));
    }
}

/// The kernel's log line begins with the prefix, cut as the original does. A
/// handle may hold what nft would take for syntax.
fn log(kind: &str, handle: &ContainerHandle) -> String {
    let text: String = format!("{kind}{handle}").chars().take(PREFIX_CHARS).collect();
    let text = plain(&text);
    format!("counter log prefix \"{text} \"")
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
