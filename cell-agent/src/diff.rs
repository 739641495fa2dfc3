//! What to tell the kernel so that it holds the wanted table.
//!
//! Pure. Every script is one transaction of nft. What is no longer used may stay
//! until a later sweep ([`Sweep::Later`]): then no packet that is under way in an
//! old chain meets it half taken down, and what comes back is still there.

use std::collections::{BTreeMap, BTreeSet};

use crate::render::table::{Chain, Map, NAME, Table, add_elements};

/// Whether unused chains go in this transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// They stay for now.
    Later,
    /// They go.
    Now,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What to send to nft.
    pub script: String,
    /// What the kernel holds after it.
    pub after: Table,
}

/// What leads from `applied` to `wanted`; `None` when nothing is to be done.
#[must_use]
pub fn diff(applied: &Table, wanted: &Table, sweep: Sweep) -> Option<Change> {
    let mut after = wanted.clone();
    if sweep == Sweep::Later {
        for (name, chain) in &applied.chains {
            after.chains.entry(name.clone()).or_insert_with(|| chain.clone());
        }
    }
    if after == *applied {
        return None;
    }
    if !can_change_in_place(applied, wanted) {
        return Some(replace(wanted));
    }
    Some(Change { script: script(applied, &after), after })
}

/// Definitions of sets and maps, and headers of chains, are for ever.
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
    let gone = |(address, chain): &(&_, &String)| new.jumps.get(*address) != Some(*chain);
    let gone: Vec<String> =
        old.jumps.iter().filter(gone).map(|(address, _)| address.to_string()).collect();
    if !gone.is_empty() {
        script.push_str(&format!("delete element inet {NAME} {name} {{ {} }}\n", gone.join(", ")));
    }
    let come = |(address, chain): &(&_, &String)| old.jumps.get(*address) != Some(*chain);
    let mut come = new.jumps.iter().filter(come).peekable();
    if come.peek().is_some() {
        script.push_str(&add_elements(name, come));
    }
    script
}

/// First everything is emptied, so that nothing refers to what is deleted.
fn removals(applied: &Table, after: &Table) -> String {
    let mut script = String::new();
    for (name, map) in applied.maps.iter().filter(|(name, _)| !after.maps.contains_key(*name)) {
        script.push_str(&map_changes(name, map, &Map::default()));
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
    script
}

/// The table anew, whatever there was. Connection counters are lost, and while
/// the kernel switches, the old base chain ends an instant before the new one
/// begins; so this is only for what [`rewrite`] cannot mend.
#[must_use]
pub fn replace(wanted: &Table) -> Change {
    let script = format!(
        "table inet {NAME} {{}}\ndelete table inet {NAME}\n{}{}",
        wanted.block(),
        wanted.elements()
    );
    Change { script, after: wanted.clone() }
}

/// Takes the table out of the kernel, whether it is there or not.
#[must_use]
pub fn remove() -> String {
    format!("table inet {NAME} {{}}\ndelete table inet {NAME}\n")
}

/// What the table in the kernel holds, by kind (`chain`, `map`, `set`) and name,
/// from nft's listing.
#[must_use]
pub fn objects(listing: &str) -> BTreeSet<(String, String)> {
    let mut objects = BTreeSet::new();
    for line in listing.lines() {
        let Some(line) = line.strip_prefix('\t').filter(|line| !line.starts_with('\t')) else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [kind, name, "{"] = words.as_slice() {
            objects.insert(((*kind).to_owned(), (*name).to_owned()));
        }
    }
    objects
}

/// Writes everything again over a table that somebody changed, in one
/// transaction and in place: what was right is right all the time.
#[must_use]
pub fn rewrite(found: &BTreeSet<(String, String)>, wanted: &Table) -> Change {
    let mut script = format!("table inet {NAME} {{}}\nflush table inet {NAME}\n");
    let known = |kind: &str, name: &String| match kind {
        "chain" => wanted.chains.contains_key(name),
        "map" => wanted.maps.contains_key(name),
        "set" => wanted.sets.contains_key(name),
        _ => false,
    };
    for (_, name) in found.iter().filter(|(kind, _)| kind == "map") {
        script.push_str(&format!("flush map inet {NAME} {name}\n"));
    }
    let strangers = found.iter().filter(|(kind, name)| !known(kind, name));
    for (kind, name) in strangers {
        script.push_str(&format!("delete {kind} inet {NAME} {name}\n"));
    }
    script.push_str(&wanted.block());
    script.push_str(&wanted.elements());
    Change { script, after: wanted.clone() }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
