//! Renders the chains that denied packets meet.

use super::{BY_INTERFACE, DENIED, FAMILIES, Family, REJECT, lookup};
use crate::{
    interfaces::SILK,
    plan::{COPIED, RecordDenied, Settings},
    plane::nftables::table::{Chain, Rule, Table},
};

/// Counts and rejects a packet of a known container.
pub(super) const REJECTED: &str = "goto rejected";
/// Size of a set of containers with recorded packets, and timeout of an entry.
const RECORD_SET: &str = "size 4096; flags dynamic,timeout; timeout 1m;";

/// Decides about a packet that no rule allows.
pub(super) fn denied(settings: &Settings) -> Chain {
    let mut chain = Chain::new("");
    if settings.log_all {
        chain.rules.extend(lookup("deny_logs").map(Rule::Text));
    }
    chain.rule(REJECTED);
    chain
}

/// Counts and rejects a packet of a known container.
pub(super) fn rejected(settings: &Settings) -> Chain {
    let mut chain = Chain::of("", [format!("counter name \"{DENIED}\"")]);
    if settings.records_denied().is_some() {
        chain.jump("record");
    }
    chain.rule(REJECT);
    chain
}

/// Sends a denied packet to the agent, within the rate of its container and of the cell.
/// The container is found as in [`lookup`]: any other interface than silk's serves several
/// containers, whose packets have the containers' addresses.
pub(super) fn record(table: &mut Table, record: RecordDenied) {
    let (each, all) = (record.per_second, record.cell_per_second());
    let within = |rate: u32| format!("limit rate {rate}/second burst {rate} packets");
    let mut chain = Chain::new("");
    let mut update = |condition: &str, key: &str, (set, kind): (String, &str)| {
        chain.rule(format!("{condition}update @{set} {{ {key} {} }} goto recorded", within(each)));
        let definition = format!("type {kind}; {RECORD_SET}");
        table.sets.insert(set, definition);
    };
    let silk = format!("iifname \"{SILK}*\" ");
    update(&silk, "iifname", (format!("record_keys{BY_INTERFACE}"), "ifname"));
    let other = format!("iifname != \"{SILK}*\" ");
    for Family { keyword, key, suffix, .. } in FAMILIES {
        update(&other, &format!("{keyword} saddr"), (format!("record_keys{suffix}"), key));
    }
    table.chains.insert("record".to_owned(), chain);
    let group = record.group;
    let log = format!("{} log group {group} snaplen {COPIED}", within(all));
    table.chains.insert("recorded".to_owned(), Chain::of("", [log]));
}
