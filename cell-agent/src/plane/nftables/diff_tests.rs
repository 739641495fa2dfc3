use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::plane::nftables::table::NAME;

fn table() -> impl Strategy<Value = Table> {
    let rules = proptest::collection::vec("accept|drop|jump [ab]".prop_map(Rule::from), 0..3);
    let chains = proptest::collection::btree_map("[a-d]", rules, 0..4);
    let jumps = proptest::collection::btree_map(1_u8..5, "[a-d]", 0..4);
    (chains, jumps, any::<bool>()).prop_map(|(chains, jumps, limited)| {
        let chain = |rules| Chain { header: String::new(), rules };
        let jump = |(n, chain): (u8, String)| (Key::from(IpAddr::from([10, 0, 0, n])), chain);
        let jumps = jumps.into_iter().map(jump).collect();
        let map = Map { key: "ipv4_addr".to_owned(), jumps };
        let set = limited.then(|| ("connections".to_owned(), "type ipv4_addr;".to_owned()));
        Table {
            chains: chains.into_iter().map(|(name, rules)| (name, chain(rules))).collect(),
            maps: BTreeMap::from([("policies".to_owned(), map)]),
            sets: set.into_iter().collect(),
            counters: limited.then(|| "full".to_owned()).into_iter().collect(),
        }
    })
}

/// Applies our commands like nft; anything else is a bug.
fn play(mut table: Table, script: &str) -> Table {
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let line = line.replace(&format!(" inet {NAME}"), "");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", "{"] => block(&mut table, &mut lines),
            ["flush", "chain", name] => table.chains.get_mut(*name).unwrap().rules.clear(),
            ["flush", "map", name] => table.maps.get_mut(*name).unwrap().jumps.clear(),
            ["delete", "chain", name] => {
                assert!(table.chains.remove(*name).unwrap().rules.is_empty(), "{name} holds rules");
            }
            ["delete", "map", name] => assert!(table.maps.remove(*name).is_some()),
            ["delete", "counter", name] => assert!(table.counters.remove(*name)),
            ["delete", "set", name] => assert!(table.sets.remove(*name).is_some()),
            ["delete", "element", map, ..] => {
                let jumps = &mut table.maps.get_mut(*map).unwrap().jumps;
                for address in inside(&line).split(", ") {
                    assert!(jumps.remove(&key(address)).is_some(), "{address}");
                }
            }
            ["add", "element", map, ..] => {
                let jumps = &mut table.maps.get_mut(*map).unwrap().jumps;
                for element in inside(&line).split(", ") {
                    let (address, chain) = element.split_once(" : jump ").unwrap();
                    let old = jumps.insert(key(address), chain.to_owned());
                    assert_eq!(old, None, "{address} was there");
                }
            }
            _ => panic!("unknown command {line:?}"),
        }
    }
    table
}

fn key(text: &str) -> Key {
    Key::try_from(text.to_owned()).unwrap()
}

fn inside(line: &str) -> &str {
    line.split_once("{ ").unwrap().1.strip_suffix(" }").unwrap()
}

fn block<'a>(table: &mut Table, lines: &mut impl Iterator<Item = &'a str>) {
    while let Some(line) = lines.next().filter(|line| *line != "}") {
        let (head, rest) = line.split_once(" {").unwrap();
        let (kind, name) = head.split_once(' ').unwrap();
        let rest = rest.trim().trim_end_matches(" }").to_owned();
        match kind {
            "map" => {
                let key = rest["type ".len()..].split(' ').next().unwrap().to_owned();
                table.maps.entry(name.to_owned()).or_default().key = key;
            }
            "counter" => _ = table.counters.insert(name.to_owned()),
            "set" => _ = table.sets.insert(name.to_owned(), rest),
            "chain" => {
                let header = lines.next().unwrap().to_owned();
                let chain = table.chains.entry(name.to_owned()).or_default();
                chain.header = header;
                let lines = lines.take_while(|line| *line != "}").map(str::to_owned);
                chain.rules.extend(lines.map(Rule::from));
            }
            other => panic!("unknown kind {other}"),
        }
    }
}

/// Applies netlink operations like the kernel.
fn obey(mut table: Table, orders: &[NftOp]) -> Table {
    for order in orders {
        match order.clone() {
            NftOp::Flush(chain) => table.chains.get_mut(&chain).unwrap().rules.clear(),
            NftOp::Jump { from, to } => {
                table.chains.get_mut(&from).unwrap().jump(to);
            }
            NftOp::Delete(chain) => {
                let gone = table.chains.remove(&chain).unwrap();
                assert!(gone.rules.is_empty(), "{chain} holds rules");
            }
            NftOp::DeleteElements { map, keys } => {
                let jumps = &mut table.maps.get_mut(&map).unwrap().jumps;
                assert!(keys.iter().all(|key| jumps.remove(key).is_some()));
            }
            NftOp::AddElements { map, jumps } => {
                let map = &mut table.maps.get_mut(&map).unwrap().jumps;
                assert!(jumps.into_iter().all(|(address, to)| map.insert(address, to).is_none()));
            }
        }
    }
    table
}

/// Applies the transactions in order, each by its preferred method.
fn play_all(mut table: Table, changes: &[Change]) -> Table {
    for change in changes {
        if !change.orders.is_empty() {
            assert_eq!(obey(table.clone(), &change.orders), change.after);
        }
        table = play(table, &change.script);
        assert_eq!(table, change.after);
    }
    table
}

proptest! {
    /// From any table to any other, with both kinds of sweep.
    #[test]
    fn the_scripts_lead_to_the_wanted_table(from in table(), to in table()) {
        let at_once = diff(&from, &to, Sweep::Now);
        prop_assert_eq!(at_once.is_empty(), from == to);
        prop_assert_eq!(&play_all(from.clone(), &at_once), &to);

        let later = diff(&from, &to, Sweep::Later);
        let between = play_all(from.clone(), &later);
        for (name, chain) in &to.chains {
            prop_assert_eq!(between.chains.get(name), Some(chain), "wanted is there before the sweep");
        }
        prop_assert!(from.chains.keys().all(|name| between.chains.contains_key(name)));
        prop_assert_eq!(diff(&between, &to, Sweep::Later), vec![]);
        prop_assert_eq!(&play_all(between.clone(), &diff(&between, &to, Sweep::Now)), &to);
        prop_assert_eq!(diff(&to, &to, Sweep::Now), vec![]);
    }

    /// A transaction that adds chains does nothing else; the rules that packets meet
    /// change in one transaction.
    #[test]
    fn chains_are_added_before_the_switch(from in table(), to in table()) {
        let changes = diff(&from, &to, Sweep::Later);
        prop_assert!(changes.len() <= 2);
        let mut before = &from;
        let mut switches = 0;
        for change in &changes {
            let old = |(name, chain): (&String, &Chain)| before.chains.get(name).is_some_and(|old| old != chain);
            let switch = change.after.chains.iter().any(old) || change.after.maps != before.maps;
            let adds = change.after.chains.keys().any(|name| !before.chains.contains_key(name));
            prop_assert!(!(switch && adds));
            switches += usize::from(switch);
            before = &change.after;
        }
        prop_assert!(switches <= 1);
    }
}

/// The most frequent changes need no rule compiler, and so no process.
#[test]
fn changes_of_jumps_need_no_nft() {
    let chain = |rules: &[&str]| Chain {
        header: String::new(),
        rules: rules.iter().map(|rule| Rule::from((*rule).to_owned())).collect(),
    };
    let table = |policy: &[&str], addresses: &[u8]| {
        let jump = |n: &u8| (Key::from(IpAddr::from([10, 0, 0, *n])), "policy".to_owned());
        let jumps = addresses.iter().map(jump).collect();
        let chains = [("policy", chain(policy)), ("a", chain(&["accept"])), ("b", chain(&[]))];
        Table {
            chains: chains.map(|(name, chain)| (name.to_owned(), chain)).into(),
            maps: [("policies".to_owned(), Map { key: "ipv4_addr".to_owned(), jumps })].into(),
            ..Table::default()
        }
    };
    let needs_nft = |from: &Table, to: &Table| {
        let changes = diff(from, to, Sweep::Now);
        assert!(!changes.is_empty());
        changes.iter().any(|change| change.orders.is_empty())
    };
    let before = table(&["jump a"], &[1, 2]);
    assert!(!needs_nft(&before, &table(&["jump b", "jump a"], &[1, 2])));
    assert!(!needs_nft(&before, &table(&["jump a"], &[2, 3])));
    assert!(needs_nft(&before, &table(&["accept"], &[1, 2])));
    let mut without = before.clone();
    without.chains.remove("b");
    assert!(!needs_nft(&before, &without));
    assert!(needs_nft(&without, &before));
}

#[test]
fn the_hook_comes_last() {
    let chain = |header: &str| Chain {
        header: header.to_owned(),
        rules: vec![Rule::Text("accept".to_owned())],
    };
    let chains = [("forward", chain("type filter")), ("other", chain(""))];
    let chains = chains.map(|(name, chain)| (name.to_owned(), chain)).into();
    let wanted = Table { chains, ..Table::default() };
    let changes = diff(&Table::default(), &wanted, Sweep::Later);
    let [prepare, switch] = changes.as_slice() else { panic!("{changes:?}") };
    assert!(!prepare.script.contains("forward") && prepare.script.contains("other"));
    assert!(switch.script.contains("forward") && !switch.script.contains("other"));
}

#[test]
fn another_shape_replaces_the_table() {
    let chain = |header: &str| {
        let chains = BTreeMap::from([("forward".to_owned(), Chain::new(header))]);
        Table { chains, ..Table::default() }
    };
    let changes = diff(&chain("type filter"), &chain("type route"), Sweep::Later);
    let [change] = changes.as_slice() else { panic!("{changes:?}") };
    assert!(change.script.contains("delete table inet portcullis\n"), "{}", change.script);
    assert_eq!(change.after, chain("type route"));
}

const LISTING: &str = "table inet portcullis {
\tmap policies {
\t\ttype ipv4_addr : verdict
\t\telements = { 10.255.1.1 : jump policy-a, 10.255.1.2 : goto policy-a,
\t\t\t     10.255.1.3 : jump policy-b }
\t}

\tmap strange {
\t\ttype ipv4_addr : ipv4_addr
\t}

\tset connections {
\t\ttype ipv4_addr . ipv4_addr . inet_service
\t\telements = { 10.255.1.1 . 10.0.0.1 . 80 }
\t}

\tchain policy-a {
\t\tcomment \"space s1\"
\t\ttcp dport vmap { 80 : jump x, 81 : jump y }
\t}

\tchain policy-b {
\t}

\tchain stranger {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
";

#[test]
fn a_listing_is_read_and_its_rules_are_not_relied_on() {
    let mut wanted = Table::default();
    let mut policy = Chain::new("comment \"space s1\"");
    policy.rule("accept");
    wanted.chains.insert("policy-a".to_owned(), policy);
    wanted.sets.insert("connections".to_owned(), "definition".to_owned());
    let jumps = [([10, 255, 1, 1], "policy-a"), ([10, 255, 1, 2], "policy-a")];
    let jumps = jumps.map(|(address, chain)| (Key::from(IpAddr::from(address)), chain.to_owned()));
    let map = Map { key: "ipv4_addr".to_owned(), jumps: jumps.into() };
    wanted.maps.insert("policies".to_owned(), map);

    let found = suspect(LISTING, &wanted);
    let names: Vec<&String> = found.chains.keys().collect();
    assert_eq!(names, ["policy-a", "policy-b", "stranger"]);
    assert_eq!(found.maps["policies"].jumps.len(), 3);
    assert_eq!(found.sets, wanted.sets);
    let changes = diff(&found, &wanted, Sweep::Later);
    let [change] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(
        change.script,
        "flush chain inet portcullis policy-a\n\
         table inet portcullis {\nchain policy-a {\ncomment \"space s1\"\naccept\n}\n}\n\
         delete element inet portcullis policies { 10.255.1.2, 10.255.1.3 }\n\
         add element inet portcullis policies { 10.255.1.2 : jump policy-a }\n"
    );
    let sweep = diff(&change.after, &wanted, Sweep::Now);
    assert_eq!(
        sweep[0].script,
        "flush map inet portcullis strange\n\
         flush chain inet portcullis policy-b\nflush chain inet portcullis stranger\n\
         delete chain inet portcullis policy-b\ndelete chain inet portcullis stranger\n\
         delete map inet portcullis strange\n"
    );
    assert_eq!(suspect("", &wanted), Table::default());
}

/// The state file of an earlier version has the same texts.
#[test]
fn the_state_file_keeps_rules_as_texts() {
    let mut chain = Chain::new("");
    chain.jump("denied");
    chain.rule("ip daddr 10.0.0.1 jump denied");
    let text = r#"{"header":"","rules":["jump denied","ip daddr 10.0.0.1 jump denied"]}"#;
    assert_eq!(serde_json::to_string(&chain).unwrap(), text);
    assert_eq!(serde_json::from_str::<Chain>(text).unwrap(), chain);
}
