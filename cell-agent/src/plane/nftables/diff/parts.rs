//! Splits a large change into several transactions.
//!
//! One transaction is one message to the kernel. Its size is limited by the send buffer
//! of the socket, which nft can only raise with CAP_NET_ADMIN in the initial user
//! namespace: elsewhere 212,992 bytes are the default, some 5,000 networks. Chains that
//! no packet reaches yet may be added in several transactions: chains are declared
//! first, rules are added to them, and a rule with a long list becomes several rules.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range};

use crate::plane::{
    TO_STRING,
    nftables::table::{Chain, Map, NAME, Table, add_elements},
};

/// Maximum script length that always fits into one message: the message is at most 15
/// times as long as the text.
pub(super) const LONG: usize = 12 << 10;

/// The transactions that add the objects that only `after` has, and that no packet
/// reaches.
pub(super) fn parts(applied: &Table, after: &Table) -> Vec<String> {
    let mut new = after.clone();
    new.maps.retain(|name, _| !applied.maps.contains_key(name));
    new.sets.retain(|name, _| !applied.sets.contains_key(name));
    new.counters.retain(|name| !applied.counters.contains(name));
    new.chains.retain(|name, _| !applied.chains.contains_key(name));
    let declarations = new.declarations();
    gather(declarations.chain(rules(&new)))
}

/// Scripts that together try a whole table, each complete by itself.
#[must_use]
pub fn trials(table: &Table) -> Vec<String> {
    let mut head = super::remove();
    head.extend(table.declarations());
    let elements = table.maps.iter().flat_map(|(name, Map { key: _, jumps })| {
        let jumps: Vec<_> = jumps.iter().collect();
        let scripts = jumps.chunks(256).map(|jumps| add_elements(name, jumps.iter().copied()));
        scripts.collect::<Vec<_>>()
    });
    let parts = gather(rules(table).chain(elements));
    parts.into_iter().map(|part| format!("{head}{part}")).collect()
}

impl Table {
    /// Counters, and empty maps, sets and chains, one command each.
    fn declarations(&self) -> impl Iterator<Item = String> {
        let empty = |(name, Map { key, .. }): (&String, &Map)| {
            (name.clone(), Map { key: key.clone(), jumps: BTreeMap::new() })
        };
        let maps = self.maps.iter().map(empty);
        let maps = maps.map(|map| Self { maps: [map].into(), ..Self::default() });
        let sets = self.sets.iter().map(|(name, set)| (name.clone(), set.clone()));
        let sets = sets.map(|set| Self { sets: [set].into(), ..Self::default() });
        let counters = self.counters.iter().map(|name| [name.clone()].into());
        let counters = counters.map(|counters| Self { counters, ..Self::default() });
        let chains =
            self.chains.iter().map(|(name, chain)| (name.clone(), Chain::new(&chain.header)));
        let chains = chains.map(|chain| Self { chains: [chain].into(), ..Self::default() });
        counters.chain(maps).chain(sets).chain(chains).map(|table| table.block())
    }
}

/// The commands that fill the chains.
fn rules(table: &Table) -> impl Iterator<Item = String> {
    table.chains.iter().flat_map(|(name, chain)| {
        let pieces = chain.rules.iter().flat_map(|rule| split(&rule.to_string()));
        pieces.map(move |rule| format!("add rule inet {NAME} {name} {rule}\n"))
    })
}

/// Groups commands into scripts below the size limit.
fn gather(commands: impl Iterator<Item = String>) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    for command in commands {
        if part.len() + command.len() > LONG && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
        }
        part.push_str(&command);
    }
    parts.push(part);
    parts
}

/// Splits a rule into several rules that together match the same packets, by splitting
/// its list.
fn split(rule: &str) -> Vec<String> {
    let list = list(rule).filter(|_| rule.len() > LONG / 2);
    let Some(list) = list else { return vec![rule.to_owned()] };
    let (head, tail) = (&rule[..list.start], &rule[list.end..]);
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for element in rule[list.clone()].split(", ") {
        if piece.len() + element.len() > LONG / 2 && !piece.is_empty() {
            pieces.push(format!("{head}{piece}{tail}"));
            piece.clear();
        }
        let comma = if piece.is_empty() { "" } else { ", " };
        write!(piece, "{comma}{element}").expect(TO_STRING);
    }
    // nft makes no set of one element, which would lose its counter.
    if !piece.contains(", ")
        && let Some(last) = pieces.pop()
    {
        let list = last.strip_suffix(tail).unwrap_or(&last);
        pieces.push(format!("{list}, {piece}{tail}"));
    } else {
        pieces.push(format!("{head}{piece}{tail}"));
    }
    pieces
}

/// Position of the only list of a rule, without its braces.
fn list(rule: &str) -> Option<Range<usize>> {
    let start = rule.find("{ ")? + 2;
    let end = rule.rfind(" }")?;
    let alone = rule.matches('{').count() == 1 && !rule.contains("!=");
    (alone && start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_becomes_several_rules_with_the_same_elements() {
        let elements: Vec<String> =
            (0..3000).map(|n| format!("10.{}.{}.0/25", n / 250, n % 250)).collect();
        let rule = format!("ip daddr {{ {} }} accept", elements.join(", "));
        let pieces = split(&rule);
        assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() < LONG));
        let inner = pieces.iter().map(|piece| {
            piece.strip_prefix("ip daddr { ").unwrap().strip_suffix(" } accept").unwrap()
        });
        let all: Vec<&str> = inner.flat_map(|inner| inner.split(", ")).collect();
        assert_eq!(all, elements);
    }

    #[test]
    fn a_rule_without_list_is_not_split() {
        let long = "a, ".repeat(LONG);
        let negated = format!("ip daddr != {{ {long}b }} drop");
        let two = format!("ip daddr {{ {long}b }} tcp dport {{ 1, 2 }} accept");
        for rule in ["accept", "ip daddr { 10.0.0.1 } accept", &negated, &two] {
            assert_eq!(split(rule), [rule]);
        }
    }
}
