//! Computes the transactions that change the applied table into the desired one.
//!
//! Pure. Every script is one nft transaction, and a difference is one or two of them:
//! the first adds chains that no packet reaches yet, the second switches to them, so
//! for packets the whole difference takes effect at once. One transaction is not
//! enough: the kernel switches chains at one instant, but finds the elements of a new
//! interval set an instant later.
//!
//! Unused objects may stay until a later sweep ([`Sweep::Later`]): then a packet in
//! flight in an old chain does not meet a partly deleted chain, and chains that are
//! needed again still exist.

use std::collections::BTreeMap;

mod parts;

pub use parts::trials;

use super::{
    netlink::NftOp,
    table::{Chain, HOOK, Key, Map, NAME, Rule, Table, add_elements},
};

/// Whether this transaction deletes unused objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// Unused objects stay.
    Later,
    /// Unused objects are deleted.
    Now,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The nft script.
    pub script: String,
    /// The same change as netlink operations; empty if it needs nft.
    pub orders: Vec<NftOp>,
    /// The same change as several transactions, each small enough for any socket; empty
    /// if the script is small, or if packets would meet a part of the change.
    pub parts: Vec<String>,
    /// The table after the transaction.
    pub after: Table,
}

/// The transactions from `applied` to `wanted`, in order; empty when they are equal.
#[must_use]
pub fn diff(applied: &Table, wanted: &Table, sweep: Sweep) -> Vec<Change> {
    let mut after = wanted.clone();
    if sweep == Sweep::Later {
        after = with_more(after, applied);
    }
    if after == *applied {
        return Vec::new();
    }
    if !can_change_in_place(applied, wanted) {
        return vec![replace(wanted)];
    }
    let prepared = with_more(applied.clone(), &unused(&after));
    let mut changes = Vec::new();
    if prepared != *applied {
        changes.push(change(applied, prepared.clone()));
    }
    if after != prepared {
        changes.push(change(&prepared, after));
    }
    changes
}

fn change(applied: &Table, after: Table) -> Change {
    let orders = orders(applied, &after).unwrap_or_default();
    let script = script(applied, &after);
    let splits = script.len() > parts::LONG && with_more(applied.clone(), &unused(&after)) == after;
    let parts = if splits { parts::parts(applied, &after) } else { Vec::new() };
    Change { script, orders, parts, after }
}

/// The table plus the objects that only `other` has.
fn with_more(mut table: Table, other: &Table) -> Table {
    for (name, chain) in &other.chains {
        table.chains.entry(name.clone()).or_insert_with(|| chain.clone());
    }
    for (name, map) in &other.maps {
        table.maps.entry(name.clone()).or_insert_with(|| map.clone());
    }
    for (name, set) in &other.sets {
        table.sets.entry(name.clone()).or_insert_with(|| set.clone());
    }
    table.counters.extend(other.counters.iter().cloned());
    table
}

/// The parts that packets do not reach by themselves: all but the hook and the map
/// elements.
fn unused(table: &Table) -> Table {
    let mut table = table.clone();
    table.chains.retain(|_, chain| !chain.header.starts_with(HOOK));
    table.maps.values_mut().for_each(|map| map.jumps.clear());
    table
}

/// Definitions of sets and maps, and chain headers, cannot change in place.
fn can_change_in_place(applied: &Table, wanted: &Table) -> bool {
    let same = |name: &String, chain: &Chain| {
        applied.chains.get(name).is_none_or(|old| old.header == chain.header)
    };
    let same_map =
        |name: &String, map: &Map| applied.maps.get(name).is_none_or(|old| old.key == map.key);
    let same_set =
        |name: &String, set: &String| applied.sets.get(name).is_none_or(|old| old == set);
    wanted.chains.iter().all(|(name, chain)| same(name, chain))
        && wanted.maps.iter().all(|(name, map)| same_map(name, map))
        && wanted.sets.iter().all(|(name, set)| same_set(name, set))
}

fn script(applied: &Table, after: &Table) -> String {
    let mut script = String::new();
    let mut block = Table::default();
    for (name, chain) in &after.chains {
        match applied.chains.get(name) {
            Some(old) if old.rules == chain.rules => continue,
            Some(_) => script.push_str(&format!("flush chain inet {NAME} {name}\n")),
            None => {}
        }
        block.chains.insert(name.clone(), chain.clone());
    }
    let new_map = |name: &&String| !applied.maps.contains_key(*name);
    for name in after.maps.keys().filter(new_map) {
        let key = after.maps[name].key.clone();
        block.maps.insert(name.clone(), Map { key, jumps: BTreeMap::new() });
    }
    let new_set = |(name, _): &(&String, _)| !applied.sets.contains_key(*name);
    block.sets.extend(after.sets.iter().filter(new_set).map(|(k, v)| (k.clone(), v.clone())));
    block.counters.extend(after.counters.difference(&applied.counters).cloned());
    if block != Table::default() || applied == &Table::default() {
        script.push_str(&block.block());
    }
    let empty = Map::default();
    for (name, map) in &after.maps {
        script.push_str(&map_changes(name, applied.maps.get(name).unwrap_or(&empty), map));
    }
    script.push_str(&removals(applied, after));
    script
}

fn map_changes(name: &str, old: &Map, new: &Map) -> String {
    let mut script = String::new();
    let gone: Vec<String> = gone(old, new).iter().map(Key::to_string).collect();
    if !gone.is_empty() {
        script.push_str(&format!("delete element inet {NAME} {name} {{ {} }}\n", gone.join(", ")));
    }
    let come = come(old, new);
    if !come.is_empty() {
        script.push_str(&add_elements(name, &come));
    }
    script
}

/// Keys to delete from a map, including those with a new jump target.
fn gone(old: &Map, new: &Map) -> Vec<Key> {
    let gone = old.jumps.iter().filter(|(key, chain)| new.jumps.get(*key) != Some(*chain));
    gone.map(|(key, _)| key.clone()).collect()
}

/// Elements to add to the map.
fn come(old: &Map, new: &Map) -> BTreeMap<Key, String> {
    let come = new.jumps.iter().filter(|(key, chain)| old.jumps.get(*key) != Some(*chain));
    come.map(|(key, chain)| (key.clone(), chain.clone())).collect()
}

/// The change as netlink operations, if no rule has to be compiled: jumps change, map
/// elements change, and chains are deleted.
fn orders(applied: &Table, after: &Table) -> Option<Vec<NftOp>> {
    let same_maps = applied.maps.keys().eq(after.maps.keys());
    let same_objects = applied.counters == after.counters;
    if !same_maps || !same_objects || !applied.sets.keys().eq(after.sets.keys()) {
        return None;
    }
    let mut orders = Vec::new();
    for (name, chain) in &after.chains {
        if applied.chains.get(name)?.rules == chain.rules {
            continue;
        }
        orders.push(NftOp::Flush(name.clone()));
        for rule in &chain.rules {
            let Rule::Jump(to) = rule else { return None };
            orders.push(NftOp::Jump { from: name.clone(), to: to.clone() });
        }
    }
    for ((name, old), new) in applied.maps.iter().zip(after.maps.values()) {
        let (keys, jumps) = (gone(old, new), come(old, new));
        if !keys.is_empty() {
            orders.push(NftOp::DeleteElements { map: name.clone(), keys });
        }
        if !jumps.is_empty() {
            orders.push(NftOp::AddElements { map: name.clone(), jumps });
        }
    }
    // Flush everything first, so that no reference to a deleted object is left.
    let gone = || applied.chains.keys().filter(|name| !after.chains.contains_key(*name)).cloned();
    orders.extend(gone().map(NftOp::Flush));
    orders.extend(gone().map(NftOp::Delete));
    Some(orders)
}

/// Flushes everything first, so that no reference to a deleted object is left.
fn removals(applied: &Table, after: &Table) -> String {
    let mut script = String::new();
    for name in applied.maps.keys().filter(|name| !after.maps.contains_key(*name)) {
        script.push_str(&format!("flush map inet {NAME} {name}\n"));
    }
    let gone: Vec<&String> =
        applied.chains.keys().filter(|name| !after.chains.contains_key(*name)).collect();
    for name in &gone {
        script.push_str(&format!("flush chain inet {NAME} {name}\n"));
    }
    for name in &gone {
        script.push_str(&format!("delete chain inet {NAME} {name}\n"));
    }
    for name in applied.maps.keys().filter(|name| !after.maps.contains_key(*name)) {
        script.push_str(&format!("delete map inet {NAME} {name}\n"));
    }
    for name in applied.sets.keys().filter(|name| !after.sets.contains_key(*name)) {
        script.push_str(&format!("delete set inet {NAME} {name}\n"));
    }
    for name in applied.counters.difference(&after.counters) {
        script.push_str(&format!("delete counter inet {NAME} {name}\n"));
    }
    script
}

/// Deletes and recreates the table, whatever its state. Connection counters are lost,
/// and during the switch the old base chain ends an instant before the new one begins;
/// so this is only for a table that cannot be changed in place.
#[must_use]
pub fn replace(wanted: &Table) -> Change {
    let script = format!("{}{}{}", remove(), wanted.block(), wanted.elements());
    Change { script, orders: Vec::new(), parts: Vec::new(), after: wanted.clone() }
}

/// Deletes the table, whether it exists or not.
#[must_use]
pub fn remove() -> String {
    format!("table inet {NAME} {{}}\ndelete table inet {NAME}\n")
}

/// The reliable part of nft's listing: the names of chains, maps and sets, and the
/// elements of our maps. The chains' rules are treated as wrong, so that each desired
/// chain is rewritten, at one instant for every packet, and correct map elements stay
/// untouched.
#[must_use]
pub fn suspect(listing: &str, wanted: &Table) -> Table {
    let mut found = Table::default();
    let mut lines = listing.lines();
    while let Some(line) = lines.next() {
        let Some([kind, name]) = block_head(line) else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "\t}").collect();
        let name = name.to_owned();
        match kind {
            "chain" => {
                let header = wanted.chains.get(&name).map(|chain| chain.header.clone());
                let unknown = Chain::of(header.unwrap_or_default(), ["unknown".to_owned()]);
                found.chains.insert(name, unknown);
            }
            "map" => _ = found.maps.insert(name, read_map(&body.join(" "))),
            "set" => {
                let definition = wanted.sets.get(&name).cloned().unwrap_or_default();
                found.sets.insert(name, definition);
            }
            "counter" => _ = found.counters.insert(name),
            _ => {}
        }
    }
    found
}

/// Kind and name from the first line of a block, such as `\tchain forward {`.
fn block_head(line: &str) -> Option<[&str; 2]> {
    let line = line.strip_prefix('\t')?.strip_suffix(" {")?;
    let (kind, name) = line.split_once(' ')?;
    (!kind.is_empty() && !name.contains(char::is_whitespace)).then_some([kind, name])
}

/// Key type and elements of a listed map. An element without a jump never equals a
/// desired one.
fn read_map(body: &str) -> Map {
    let key =
        body.trim_start().strip_prefix("type ").and_then(|rest| rest.split_whitespace().next());
    let key = key.filter(|_| body.contains(" : verdict")).unwrap_or_default().to_owned();
    let elements = body.split_once("elements = {").map_or("", |(_, rest)| rest);
    let jumps = elements.trim_end().trim_end_matches('}').split(',').filter_map(|element| {
        let (key, verdict) = element.split_once(" : ")?;
        let verdict = verdict.trim();
        let chain = verdict.strip_prefix("jump ").unwrap_or(verdict);
        Some((Key::try_from(key.trim().to_owned()).ok()?, chain.to_owned()))
    });
    Map { key, jumps: jumps.collect() }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
