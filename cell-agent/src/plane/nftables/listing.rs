//! Compares listings of our table.
//!
//! The kernel numbers each change to the packet filter of a network namespace
//! (nf_tables generation). While the number is the one after our own last change, no
//! other process has changed anything, and reading it costs two system calls. When it
//! differs, nft's listing of our table is compared with the one taken after our last
//! change.
//!
//! Pure. Only hashes of the listing are kept ([`Outline`]): a full cell has some 10 MB
//! of rules.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
};

use sha2::{Digest as _, Sha256};

use super::table::{NAME, Rule, Table};
use crate::plane::drift::{Drift, middle};

/// A listing of our table as hashes of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline(BTreeMap<String, Vec<u64>>);

impl Outline {
    /// The outline of a listing.
    #[must_use]
    pub fn of(listing: &str) -> Self {
        let hashed = |lines: Vec<&str>| lines.into_iter().map(hash).collect();
        let blocks = blocks(listing).into_iter();
        Self(blocks.map(|(place, lines)| (place.to_owned(), hashed(lines))).collect())
    }

    /// The differences in a later listing. The written table supplies the texts of
    /// deleted rules.
    #[must_use]
    pub fn drift(&self, listing: &str, written: &Table) -> Drift {
        let mut drift = Drift::default();
        let found = blocks(listing);
        if found.is_empty() && !self.0.is_empty() {
            drift.note(&format!("table inet {NAME}"), Some("the table"), None);
            return drift;
        }
        for (place, lines) in &self.0 {
            let Some(found) = found.get(place.as_str()) else {
                drift.note(place, Some("the definition"), None);
                continue;
            };
            let hashes: Vec<_> = found.iter().map(|line| hash(line)).collect();
            let (old, new) = middle(lines.len(), hashes.len(), |i, j| lines[i] == hashes[j]);
            let texts = texts(written, place);
            for index in 0..old.len().max(new.len()) {
                let gone = old.clone().nth(index).map(|at| text(&texts, lines, at));
                let found = new.clone().nth(index).map(|at| found[at]);
                drift.note(place, gone, found);
            }
        }
        for place in found.keys().filter(|place| !self.0.contains_key(**place)) {
            drift.note(place, None, Some("the definition"));
        }
        drift
    }
}

/// The text of a deleted line. nft may print a rule differently, so a rule whose text
/// is not found is looked up by position: rules are the last lines of a chain.
fn text<'a>(texts: &'a [String], lines: &[u64], at: usize) -> &'a str {
    let by_text = texts.iter().find(|text| hash(text) == lines[at]);
    let by_place = || texts.get((at + texts.len()).checked_sub(lines.len())?);
    by_text.or_else(by_place).map_or("a line of the definition", String::as_str)
}

/// The rules of a chain, or the elements of a map.
fn texts(written: &Table, place: &str) -> Vec<String> {
    let chain = place.strip_prefix("chain ").and_then(|name| written.chains.get(name));
    let map = place.strip_prefix("map ").and_then(|name| written.maps.get(name));
    let jumps = map.into_iter().flat_map(|map| &map.jumps);
    let jumps = jumps.map(|(key, chain)| format!("{key} : jump {chain}"));
    chain
        .into_iter()
        .flat_map(|chain| chain.rules.iter().map(Rule::to_string))
        .chain(jumps)
        .collect()
}

fn hash(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

/// The lines of each block, and the elements of maps; without set elements that the
/// kernel itself added.
fn blocks(listing: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut blocks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let (mut place, mut in_elements) = (None, false);
    for line in listing.lines() {
        if let Some(header) = line.strip_prefix('\t')
            && !header.starts_with('\t')
        {
            place = header.strip_suffix(" {").or(place.filter(|_| header != "}"));
            in_elements = false;
            place.map(|place| blocks.entry(place).or_default());
            continue;
        }
        let Some(place) = place else { continue };
        let line = line.trim();
        in_elements |= line.starts_with("elements = ");
        let lines = blocks.entry(place).or_default();
        match in_elements {
            true if place.starts_with("set ") => {}
            true => {
                let line = line.trim_start_matches("elements = {").trim_end_matches('}');
                let elements = line.split(',').map(str::trim);
                lines.extend(elements.filter(|element| !element.is_empty()));
            }
            false => lines.push(line),
        }
    }
    blocks
}

/// Hash of nft's listing of a table, without set elements that the kernel itself added
/// (connection buckets).
#[must_use]
pub fn fingerprint(listing: &str) -> String {
    let mut hash = Sha256::new();
    let mut in_set = false;
    let mut in_elements = false;
    for line in listing.lines() {
        if line.starts_with("\tset ") {
            in_set = true;
        } else if line == "\t}" {
            (in_set, in_elements) = (false, false);
        }
        in_elements |= in_set && line.trim_start().starts_with("elements = ");
        if !in_elements {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
    }
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::{
        drift::Difference,
        nftables::table::{Chain, Key, Map},
    };

    /// The table as nft lists it, and as it was written.
    fn table() -> (String, Table) {
        let listing = "table inet portcullis {\n\tmap policies {\n\t\ttype ipv4_addr : verdict\n\
             \t\telements = { 10.0.0.1 : jump a,\n\t\t\t     10.0.0.2 : jump b }\n\t}\n\n\
             \tset seen {\n\t\telements = { 10.9.9.9 }\n\t}\n\n\
             \tchain a {\n\t\tcomment \"x\"\n\t\tct state established,related accept\n\
             \t\tip daddr 10.1.0.0/16 accept\n\t\treject\n\t}\n}\n";
        let mut chain = Chain::new("comment \"x\"");
        for rule in ["ct state related,established accept", "ip daddr 10.1.0.0/16 accept"] {
            chain.rule(rule);
        }
        chain.rule("reject");
        let jumps = [("10.0.0.1", "a"), ("10.0.0.2", "b")];
        let jumps =
            jumps.map(|(key, chain)| (Key::try_from(key.to_owned()).unwrap(), chain.into()));
        let map = Map { key: "ipv4_addr".into(), jumps: jumps.into() };
        let mut written = Table::default();
        written.chains.insert("a".into(), chain);
        written.maps.insert("policies".into(), map);
        (listing.to_owned(), written)
    }

    fn drifted(change: impl FnOnce(&str) -> String) -> Vec<(String, String, String)> {
        let (listing, written) = table();
        let drift = Outline::of(&listing).drift(&change(&listing), &written);
        assert_eq!(drift.differences, drift.shown.len());
        let shown = drift.shown.into_iter();
        shown
            .map(|Difference { place, expected, found }| {
                (place, expected.unwrap_or_default(), found.unwrap_or_default())
            })
            .collect()
    }

    fn difference(place: &str, expected: &str, found: &str) -> (String, String, String) {
        (place.to_owned(), expected.to_owned(), found.to_owned())
    }

    #[test]
    fn a_difference_names_its_place_and_what_was_expected_and_found() {
        let accept = "ip daddr 10.1.0.0/16 accept";
        let is = |change: &dyn Fn(&str) -> String, differences: &[_]| {
            assert_eq!(drifted(change), differences);
        };
        is(&str::to_owned, &[]);
        is(&|all| all.replace("10.9.9.9", "10.9.9.8"), &[]);
        let removed = format!("\t\t{accept}\n");
        is(&|all| all.replace(&removed, ""), &[difference("chain a", accept, "")]);
        is(
            &|all| all.replace("\t\treject", "\t\taccept\n\t\treject"),
            &[difference("chain a", "", "accept")],
        );
        is(
            &|all| all.replace("state established,related", "state established"),
            &[difference(
                "chain a",
                "ct state related,established accept",
                "ct state established accept",
            )],
        );
        is(
            &|all| all.replace("10.0.0.2 : jump b", "10.0.0.2 : accept"),
            &[difference("map policies", "10.0.0.2 : jump b", "10.0.0.2 : accept")],
        );
        is(&|_| String::new(), &[difference("table inet portcullis", "the table", "")]);
        is(
            &|all| all.replace("\tchain a {", "\tchain b {"),
            &[
                difference("chain a", "the definition", ""),
                difference("chain b", "", "the definition"),
            ],
        );
    }

    #[test]
    fn buckets_do_not_count_and_everything_else_does() {
        let listing = |bucket: &str, element: &str| {
            format!(
                "table inet portcullis {{\n\tmap policies {{\n\t\telements = {{ {element} }}\n\t}}\n\
                 \tset connections {{\n\t\tsize 65535\n{bucket}\t}}\n\tchain a {{\n\t}}\n}}\n"
            )
        };
        let bucket = "\t\telements = { 10.0.0.1 . 10.0.0.2 . 80 limit rate over 1/second,\n\t\t\t     10.0.0.3 . 1 }\n";
        let plain = fingerprint(&listing("", "10.0.0.1 : jump p"));
        assert_eq!(fingerprint(&listing(bucket, "10.0.0.1 : jump p")), plain);
        assert_ne!(fingerprint(&listing("", "10.0.0.2 : jump p")), plain);
    }
}

#[cfg(test)]
#[path = "listing_fuzz_tests.rs"]
mod fuzz_tests;
