use super::*;

const REJECT: &str = "-j REJECT --reject-with icmp-port-unreachable";

fn chain(handle: &str, rules: &[&str]) -> Chain {
    let handle = ContainerHandle::parse(handle).unwrap();
    let names = Names::of(&handle).unwrap();
    Chain { handle, names, expected: true, body: Body::of(rules), targets: Vec::new() }
}

fn wanted(chains: Vec<Chain>) -> Filter {
    Filter { chains, ..Filter::default() }
}

fn table(lines: &[&str]) -> String {
    format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))
}

fn text(saved: &str, wanted: &Filter) -> Option<String> {
    Saved::parse(saved).step(wanted, Family::V4).batch.map(|batch| batch.text)
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
    // Once it is there, nothing is left to do.
    assert_eq!(text(&batch, &wanted(vec![chain("a", &["-j ACCEPT", REJECT])])), None);
    // Only what differs is in the next one.
    assert_eq!(
        text(&batch, &wanted(vec![chain("a", &[REJECT])])).unwrap(),
        table(&[":asg-a - [0:0]", &format!("-A asg-a {REJECT}")])
    );
}

#[test]
fn who_has_no_parent_or_no_log_chain_waits_and_keeps_what_it_has() {
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
    let step = Saved::parse(&saved).step(&filter, Family::V4);
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
fn what_nobody_has_goes_with_its_log_chain_and_what_is_held_is_emptied() {
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
fn a_name_is_for_one_and_who_has_it_keeps_it() {
    let (first, second) = ("check-b6259c48-29b6-49dd-739c-2a", "b6259c48-29b6-49dd-739c-2b");
    let parents =
        [":netout--check-b6259c48-29b6- - [0:0]", ":netout--b6259c48-29b6-49dd-7 - [0:0]"];
    let filter = wanted(vec![chain(first, &[REJECT]), chain(second, &[REJECT])]);
    let waits = |saved: &str| {
        let step = Saved::parse(saved).step(&filter, Family::V4);
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
    let batch = Saved::parse(&saved).step(&filter, Family::V4).batch.unwrap();
    let blamed = |line| batch.blame(line, &filter).map(|(handle, _)| handle.as_str());
    let lines: Vec<_> = batch.text.lines().collect();
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
fn what_an_agent_left_is_read_as_what_is_wanted() {
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
