use proptest::prelude::*;

use super::*;

const REJECT: &str = "-j REJECT --reject-with icmp-port-unreachable";

fn v4() -> Spellings {
    Spellings::of(Family::V4)
}

fn chain(handle: &str, rules: &[&str]) -> Chain {
    let handle = ContainerHandle::parse(handle).unwrap();
    let names = Names::of(&handle).unwrap();
    Chain {
        handle,
        names,
        expected: true,
        body: Body::of(rules),
        targets: Vec::new(),
        silent: None,
    }
}

fn wanted(chains: Vec<Chain>) -> Filter {
    Filter { chains, ..Filter::default() }
}

fn table(lines: &[&str]) -> String {
    format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))
}

fn text(saved: &str, wanted: &Filter) -> Option<String> {
    Saved::parse(saved).step(wanted, &v4()).batch.map(|batch| batch.text())
}

#[test]
fn a_new_chain_gets_its_rules_and_its_jump_in_one_batch() {
    let saved =
        table(&[":netout--a - [0:0]", "-A netout--a -j LOG", &format!("-A netout--a {REJECT}")]);
    let batch = text(&saved, &wanted(vec![chain("a", &["-j ACCEPT", REJECT])])).unwrap();
    assert_eq!(
        batch,
        table(&[
            ":asg-a - [0:0]",
            ":netout--a - [0:0]",
            "-A asg-a -j ACCEPT",
            &format!("-A asg-a {REJECT}"),
            "-A netout--a -j asg-a",
            &format!("-A netout--a {REJECT}"),
        ])
    );
    // Once the chain exists, nothing is left to do.
    assert_eq!(text(&batch, &wanted(vec![chain("a", &["-j ACCEPT", REJECT])])), None);
    // The next batch has only the difference.
    assert_eq!(
        text(&batch, &wanted(vec![chain("a", &[REJECT])])).unwrap(),
        table(&[":asg-a - [0:0]", &format!("-A asg-a {REJECT}")])
    );
}

#[test]
fn old_chains_are_kept_while_the_groups_are_unknown() {
    let saved = table(&[
        ":asg-a - [0:0]",
        ":casg-a - [0:0]",
        ":asg-b - [0:0]",
        ":netout--a - [0:0]",
        ":netout--b - [0:0]",
        "-A asg-a -j ACCEPT",
        "-A netout--a -j casg-a",
        "-A netout--a -j asg-a",
        &format!("-A netout--b {REJECT}"),
    ]);
    let unknown = ["a", "b", "c"].map(|handle| chain(handle, &[REJECT])).to_vec();
    let filter = Filter { unknown, ..Filter::default() };
    let step = Saved::parse(&saved).step(&filter, &v4());
    assert!(step.batch.is_none(), "{:?}", step.batch);
    // Packets of the other containers do not reach our chains.
    assert_eq!(step.kept, BTreeSet::from([ContainerHandle::parse("a").unwrap()]));
}

/// Such a chain is never swept, but is recognised nevertheless.
#[test]
fn a_chain_with_an_odd_name_is_right_after_its_batch() {
    for handle in ["_under", ".dot", "-_-"] {
        let wanted = wanted(vec![chain(handle, &["-j ACCEPT", REJECT])]);
        let saved = table(&[&format!(":netout--{handle} - [0:0]")]);
        let batch = text(&saved, &wanted).unwrap();
        assert_eq!(text(&batch, &wanted), None, "{handle}");
        assert_eq!(Saved::parse(&batch).as_wanted().chains.len(), 1, "{handle}");
    }
}

#[test]
fn a_container_without_parent_or_log_chain_waits() {
    let saved = table(&[
        ":asg-b - [0:0]",
        ":asg-c - [0:0]",
        ":netout--c - [0:0]",
        "-A asg-b -j ACCEPT",
        "-A asg-c -j ACCEPT",
        "-A netout--c -j asg-c",
        &format!("-A netout--c {REJECT}"),
    ]);
    let mut logging = chain("c", &[REJECT]);
    logging.targets = vec!["netout--c--log".to_owned()];
    let elsewhere = Chain { expected: false, ..chain("d", &[REJECT]) };
    let filter = wanted(vec![chain("b", &[REJECT]), logging, elsewhere]);
    let step = Saved::parse(&saved).step(&filter, &v4());
    assert!(step.batch.is_none(), "{:?}", step.batch);
    let waiting: Vec<_> = step.waiting.values().map(String::as_str).collect();
    assert_eq!(
        waiting,
        [
            "its chain netout--b is not in iptables yet",
            "its chain netout--c--log is not in iptables yet"
        ]
    );
}

#[test]
fn unused_chains_are_deleted_or_flushed_if_referenced() {
    let saved = table(&[
        ":asg-gone - [0:0]",
        ":asg-held - [0:0]",
        ":asg--odd - [0:0]",
        ":xasg-odd - [0:0]",
        ":netout--gone--log - [0:0]",
        ":netout--held - [0:0]",
        "-A asg-gone -m x -g netout--gone--log",
        "-A asg-held -j ACCEPT",
        "-A netout--held -j asg-held",
    ]);
    assert_eq!(
        text(&saved, &wanted(Vec::new())).unwrap(),
        table(&[
            ":asg-held - [0:0]",
            ":asg-gone - [0:0]",
            ":netout--gone--log - [0:0]",
            "-X asg-gone",
            "-X netout--gone--log",
        ])
    );
}

#[test]
fn a_candidate_that_the_original_left_is_cleared_away() {
    let saved = table(&[
        ":casg-a - [0:0]",
        ":netout--a - [0:0]",
        "-A casg-a -j ACCEPT",
        "-A netout--a -j casg-a",
        &format!("-A netout--a {REJECT}"),
    ]);
    assert_eq!(
        text(&saved, &wanted(vec![chain("a", &[REJECT])])).unwrap(),
        table(&[
            ":asg-a - [0:0]",
            ":netout--a - [0:0]",
            ":casg-a - [0:0]",
            &format!("-A asg-a {REJECT}"),
            "-A netout--a -j asg-a",
            &format!("-A netout--a {REJECT}"),
            "-X casg-a",
        ])
    );
}

#[test]
fn a_colliding_name_stays_with_its_owner() {
    let (first, second) = ("check-b6259c48-29b6-49dd-739c-2a", "b6259c48-29b6-49dd-739c-2b");
    let parents =
        [":netout--check-b6259c48-29b6- - [0:0]", ":netout--b6259c48-29b6-49dd-7 - [0:0]"];
    let filter = wanted(vec![chain(first, &[REJECT]), chain(second, &[REJECT])]);
    let waits = |saved: &str| {
        let step = Saved::parse(saved).step(&filter, &v4());
        step.waiting.keys().map(|handle| handle.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(waits(&table(&parents)), [second]);
    let held = "-A netout--b6259c48-29b6-49dd-7 -j asg-b6259c4829b649dd739c";
    assert_eq!(waits(&table(&[parents[0], parents[1], held])), [first]);
}

#[test]
fn a_line_is_blamed_on_whose_rule_it_is() {
    let saved = table(&[":netout--a - [0:0]", ":netout--b - [0:0]"]);
    let filter = wanted(vec![chain("a", &["-j ACCEPT", REJECT]), chain("b", &[REJECT])]);
    let batch = Saved::parse(&saved).step(&filter, &v4()).batch.unwrap();
    let blamed = |line| batch.blame(line, &filter).map(|(handle, _)| handle.as_str());
    let text = batch.text();
    let lines: Vec<_> = text.lines().collect();
    for (line, text) in (1..).zip(&lines) {
        let whose = text.strip_prefix("-A ").map(|rule| {
            if rule.starts_with("asg-a") || rule.starts_with("netout--a") { "a" } else { "b" }
        });
        assert_eq!(blamed(line), whose, "{line}: {text}");
    }
    assert_eq!(blamed(0), None);
    assert_eq!(blamed(99), None);
}

#[test]
fn existing_chains_are_read_as_wanted() {
    let saved = table(&[
        ":asg-a - [0:0]",
        ":asg-loose - [0:0]",
        ":netout--a - [0:0]",
        "-A asg-a -j ACCEPT",
        "-A netout--a -j asg-a",
        &format!("-A netout--a {REJECT}"),
    ]);
    let filter = Saved::parse(&saved).as_wanted();
    assert_eq!(text(&saved, &filter), None);
    let flushed = saved.replace("-A asg-a -j ACCEPT\n", "");
    assert_eq!(text(&flushed, &filter).unwrap(), table(&[":asg-a - [0:0]", "-A asg-a -j ACCEPT"]));
}

/// Also when the rules of a chain are not adjacent.
#[test]
fn rules_are_read_in_their_order_and_kept_once() {
    let saved = Saved::parse("-A asg-a one\n-A asg-b one\n-A asg-a two\n-A asg-b two");
    assert!(saved.rules("asg-a").eq(["one", "two"]));
    assert!(Arc::ptr_eq(&saved.rules["asg-a"], &saved.rules["asg-b"]));
    assert!(saved.is_empty("asg-c") && saved.rules("asg-c").next().is_none());
}

/// iptables-save reports this with exit code 0.
#[test]
fn an_incomplete_table_is_rejected() {
    let read = |text: &str| {
        let mut reading = Reading::default();
        reading.take(text.as_bytes());
        reading.finish().map(drop)
    };
    let legacy =
        "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n";
    let odd = "# Table `filter' is incompatible, use 'nft' tool.";
    for (text, problem) in [
        ("", "nothing was printed"),
        (legacy, "nothing was printed"),
        (&format!("{legacy}{odd}\n"), odd),
        ("*filter\n:asg-a - [0:0]\n-A asg-a -j ACC", "the table has no end"),
        ("COMMIT\n", "nothing was printed"),
    ] {
        assert_eq!(read(text), Err(problem.to_owned()), "{text}");
    }
    assert_eq!(read(&format!("{legacy}*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")), Ok(()));
}

/// Applies a batch like iptables-restore; anything that it would refuse is a bug.
fn play(table: &str, batch: &str) -> String {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in table.lines().chain(batch.lines()) {
        let mut words = line.splitn(3, ' ');
        match (words.next().unwrap(), words.next(), words.next()) {
            (declared, ..) if declared.starts_with(':') => {
                chains.insert(declared[1..].to_owned(), Vec::new());
            }
            ("-A", Some(chain), Some(rule)) => {
                chains.get_mut(chain).expect("the chain is there").push(rule.to_owned());
            }
            ("-X", Some(chain), None) => {
                assert_eq!(chains.remove(chain).as_deref(), Some(&[][..]), "{chain} holds rules");
            }
            ("*filter" | "COMMIT", None, None) => {}
            _ => panic!("unknown line {line:?}"),
        }
    }
    let targets = chains.values().flatten().filter_map(|rule| rule.split("-j ").nth(1));
    for target in targets.filter(|target| target.contains("asg-")) {
        assert!(chains.contains_key(target), "a rule leads to {target}, which is not there");
    }
    let declared = chains.keys().map(|chain| format!(":{chain} - [0:0]"));
    let rules = chains
        .iter()
        .flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}")));
    table_of(declared.chain(rules))
}

fn table_of(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.map(|line| line + "\n").collect();
    format!("*filter\n{}COMMIT\n", lines.concat())
}

/// Containers with or without parents, and leftovers of an agent, the original or
/// others.
fn found() -> impl Strategy<Value = String> {
    let rules = || proptest::collection::vec("-j (ACCEPT|DROP)|-s 1.1.1.[12] -j ACCEPT", 0..3);
    let chains = proptest::collection::btree_map("c?asg-[a-d]", rules(), 0..5);
    let parents = proptest::collection::btree_map("[a-d]", (rules(), any::<bool>()), 0..5);
    (chains, parents).prop_map(|(chains, parents)| {
        let mut lines: Vec<String> = chains.keys().map(|name| format!(":{name} - [0:0]")).collect();
        lines.extend(parents.keys().map(|handle| format!(":netout--{handle} - [0:0]")));
        let of_chains = chains
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(move |rule| format!("-A {name} {rule}")));
        lines.extend(of_chains);
        for (handle, (rules, linked)) in &parents {
            let jump = format!("-j asg-{handle}");
            let jump = (*linked && chains.contains_key(&jump[3..])).then_some(&jump);
            let rules = jump.into_iter().chain(rules);
            lines.extend(rules.map(|rule| format!("-A netout--{handle} {rule}")));
        }
        table_of(lines.into_iter())
    })
}

fn filter() -> impl Strategy<Value = Filter> {
    let rules = proptest::collection::vec("-j ACCEPT|-s 1.1.1.[12] -j ACCEPT", 0..3);
    proptest::collection::btree_map("[a-d]", rules, 0..4).prop_map(|containers| {
        let chain = |(handle, rules): (&String, &Vec<String>)| {
            let rules: Vec<&str> = rules.iter().map(String::as_str).chain([REJECT]).collect();
            chain(handle, &rules)
        };
        wanted(containers.iter().map(chain).collect())
    })
}

proptest! {
    /// From any table: after one batch every container whose parent exists has its
    /// rules and its jump, the others wait, no chain without a container allows
    /// anything, and nothing is left to do.
    #[test]
    fn one_batch_leads_to_the_wanted_table(before in found(), wanted in filter()) {
        let step = Saved::parse(&before).step(&wanted, &v4());
        let batch = step.batch.as_ref().map(Batch::text).unwrap_or_default();
        let after = play(&before, &batch);
        let again = Saved::parse(&after).step(&wanted, &v4());
        prop_assert!(again.batch.is_none(), "{:?} after\n{}", again.batch, after);
        let saved = Saved::parse(&after);
        for chain in &wanted.chains {
            let waits = step.waiting.contains_key(&chain.handle);
            prop_assert_eq!(waits, !before.contains(&format!(":{} ", chain.names.netout)));
            if !waits {
                prop_assert!(saved.rules(&chain.names.asg).eq(chain.body.rules()));
                let jump = format!("-j {}", chain.names.asg);
                let parent: Vec<&str> = saved.rules(&chain.names.netout).collect();
                prop_assert_eq!(parent, [jump.as_str(), REJECT]);
            }
        }
        let names: BTreeSet<&str> = wanted.chains.iter().map(|chain| &*chain.names.asg).collect();
        for name in saved.declared.iter().filter(|name| is_ours(name)) {
            let waiting = name.strip_prefix('c').is_some_and(|asg| names.contains(asg));
            prop_assert!(names.contains(name.as_str()) || waiting || saved.is_empty(name), "{}", name);
        }
    }

    /// The result does not depend on how the pipe splits a table.
    #[test]
    fn a_table_is_the_same_in_pieces(before in found(), wanted in filter(), length in 1_usize..40) {
        let mut reading = Reading::default();
        before.as_bytes().chunks(length).for_each(|piece| reading.take(piece));
        let batch = reading.finish().unwrap().step(&wanted, &v4()).batch.map(|batch| batch.text());
        prop_assert_eq!(batch, text(&before, &wanted));
    }

    /// The batch does not depend on the order of the containers.
    #[test]
    fn the_batch_does_not_depend_on_order(before in found(), mut wanted in filter()) {
        let one = text(&before, &wanted);
        wanted.chains.reverse();
        let other = text(&before, &wanted);
        let sorted = |text: Option<String>| {
            let mut lines: Vec<String> = text.unwrap_or_default().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        prop_assert_eq!(sorted(one), sorted(other));
    }
}

/// Excluding a container must not exclude its rules from the trial: otherwise the
/// container would be blamed for them.
#[test]
fn rules_are_tried_without_the_containers_that_have_them() {
    let saved = table(&[":netout--a - [0:0]"]);
    let trial = Saved::parse(&saved).trial(&wanted(vec![chain("a", &[REJECT])]), "-j ACCEPT\n");
    let lines = trial.with_cleanup();
    let rules: Vec<&str> = lines.lines().filter(|line| line.starts_with("-A")).collect();
    assert_eq!(rules, [&*format!("-A {TRIAL} {REJECT}"), &*format!("-A {TRIAL} -j ACCEPT")]);
    assert!(lines.ends_with(&format!("-X {TRIAL}\n-X {TRIAL_LOG}\nCOMMIT\n")), "{lines}");
}
