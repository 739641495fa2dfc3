use std::{fs, path::PathBuf};

use super::*;
use crate::plane::iptables::batch::Saved;

fn fixture(name: &str) -> String {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spellings").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rules of our chain in a table.
fn rules(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("-A asg-c1 ")).collect()
}

const FAMILIES: [(Family, &str); 2] = [(Family::V4, "v4"), (Family::V6, "v6")];

/// `written` went through iptables-restore, and each file is the output of the same
/// version's iptables-save.
#[test]
fn every_version_prints_the_rules_that_were_written() {
    for (family, suffix) in FAMILIES {
        let written = fixture(&format!("written.{suffix}.txt"));
        let written = rules(&written);
        assert!(written.len() > 10);
        let spellings = Spellings::of(family);
        for version in ["1.8.7", "1.8.9", "1.8.11"] {
            for backend in ["legacy", "nft"] {
                let name = format!("{version}.{backend}.{suffix}.txt");
                let text = fixture(&name);
                let printed = rules(&text);
                assert_eq!(printed.len(), written.len(), "{name}");
                for (at, printed) in printed.iter().enumerate() {
                    for (other, rule) in written.iter().enumerate() {
                        let same = spellings.same(printed, rule);
                        // Some of the written rules are equivalent.
                        let expected = spellings.same(written[at], rule);
                        assert!(at != other || expected);
                        assert_eq!(same, expected, "{name}: {printed:?} for {rule:?}");
                    }
                }
                assert!(Saved::parse(&text).has_ours(), "{name}");
            }
        }
    }
}

/// Forms of other versions, and of rules that the original wrote.
#[test]
fn one_rule_has_several_spellings() {
    for (printed, written) in [
        (
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-m state --state RELATED,ESTABLISHED -j ACCEPT",
        ),
        (
            "-p 6 -m tcp --dport 80:80 -m iprange --dst-range 10.1.0.1 -j ACCEPT",
            "-p tcp -m iprange --dst-range 10.1.0.1-10.1.0.1 -m tcp --dport 80 -j ACCEPT",
        ),
        (
            "-p udp -m udp --dport :65535 -m iprange --dst-range 10.1.0.1-10.1.0.2 -j ACCEPT",
            "-p udp -m iprange --dst-range 10.1.0.1-10.1.0.2 -m udp -j ACCEPT",
        ),
        (
            "-p icmp -m icmp --icmp-type 255/255 -j ACCEPT",
            "-p icmp -m icmp --icmp-type any -j ACCEPT",
        ),
        ("-p icmp -m icmp --icmp-type 255 -j ACCEPT", "-p icmp -m icmp --icmp-type any -j ACCEPT"),
        (
            "-d 10.0.0.0/255.0.0.0 -j REJECT",
            "-d 10.0.0.0/8 -j REJECT --reject-with icmp-port-unreachable",
        ),
        ("-s 0.0.0.0/0 -m comment --comment \"a \\\" b\" -j ACCEPT", "-j ACCEPT"),
        (
            "-m limit --limit 60/min --limit-burst 1 -j LOG --log-prefix \"DENY_c1 \" --log-level 4",
            "-m limit --limit 1/sec --limit-burst 1 -j LOG --log-prefix \"DENY_c1 \"",
        ),
        (
            "-m limit --limit 300/sec -j ACCEPT",
            "-m limit --limit 303/sec --limit-burst 5 -j ACCEPT",
        ),
    ] {
        assert!(Spellings::of(Family::V4).same(printed, written), "{printed:?} for {written:?}");
        assert!(Spellings::of(Family::V4).same(written, printed), "{written:?} for {printed:?}");
    }
}

#[test]
fn other_rules_are_other_rules() {
    for (family, printed, written) in [
        (Family::V4, "-j ACCEPT", "-j DROP"),
        (Family::V4, "-j asg-c1", "-g asg-c1"),
        (Family::V4, "! -p udp -j ACCEPT", "-p udp -j ACCEPT"),
        (Family::V4, "-p tcp -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        (Family::V4, "-i eth0 -j ACCEPT", "-j ACCEPT"),
        (Family::V4, "-d 10.0.0.0/8 -j ACCEPT", "-d 10.0.0.0/9 -j ACCEPT"),
        (
            Family::V4,
            "-p icmp -m icmp --icmp-type 8 -j ACCEPT",
            "-p icmp -m icmp --icmp-type 8/0 -j ACCEPT",
        ),
        (
            Family::V6,
            "-p ipv6-icmp -m icmp6 --icmpv6-type 255/0 -j ACCEPT",
            "-p ipv6-icmp -j ACCEPT",
        ),
        (
            Family::V4,
            "-j REJECT --reject-with icmp-host-unreachable",
            "-j REJECT --reject-with icmp-port-unreachable",
        ),
        (Family::V4, "-j LOG --log-prefix \"a \"", "-j LOG --log-prefix \"b \""),
        // In that order the limit counts other packets.
        (
            Family::V4,
            "-m limit --limit 1/sec -m state --state NEW -j ACCEPT",
            "-m state --state NEW -m limit --limit 1/sec -j ACCEPT",
        ),
        (Family::V4, "-m unknown --new -j ACCEPT", "-j ACCEPT"),
    ] {
        assert!(!Spellings::of(family).same(printed, written), "{printed:?} for {written:?}");
    }
}

/// As long as the printed text is the same.
#[test]
fn a_learned_form_is_recognised() {
    let mut spellings = Spellings::of(Family::V4);
    let (printed, written) = ("--new-words -j ACCEPT", "-p tcp -j ACCEPT");
    assert!(!spellings.same(printed, written));
    spellings.learn(written, printed);
    assert!(spellings.same(printed, written));
    assert!(!spellings.same(printed, "-p udp -j ACCEPT"));
    assert!(!spellings.same("--newer-words -j ACCEPT", written));
}

#[test]
fn a_record_is_parsed() {
    let rule = "-m hashlimit --hashlimit-upto 100/sec --hashlimit-burst 100 --hashlimit-mode srcip \
                --hashlimit-name x -m limit --limit 2000/sec --limit-burst 2000 \
                -j NFLOG --nflog-group 7 --nflog-size 128";
    let same = |printed: &str| Spellings::of(Family::V4).same(printed, rule);
    assert!(same(&rule.replace("100/sec", "100/s")));
    for other in [
        rule.replace("upto", "above"),
        rule.replace("group 7", "group 8"),
        rule.replace("size 128", "size 64"),
        rule.replace("2000/sec", "200/sec"),
    ] {
        assert!(!same(&other), "{other}");
    }
}
