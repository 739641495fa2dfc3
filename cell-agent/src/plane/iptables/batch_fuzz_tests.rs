//! Fuzz test of the output of iptables-save.

use fuzz::{Fuzz, Language};

use super::*;

/// The parsed table does not depend on the pieces in which it arrives; the table as it is needs no
/// change; equality of rules is symmetric.
#[test]
fn fuzz_iptables_save() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "iptables_save", Language::Text);
    let fuzz = fuzz.tokens(&[
        "*filter",
        "COMMIT",
        ":",
        "-A",
        "netout--a",
        "asg-a",
        "casg-a",
        "FORWARD",
        "-j",
        "-g",
        "REJECT",
        "--reject-with",
        "icmp-port-unreachable",
        "-m",
        "comment",
        "--comment",
        "limit",
        "hashlimit",
        "--hashlimit-above",
        "1/sec",
        "10000000000/day",
        "--hashlimit-burst",
        "conntrack",
        "--ctstate",
        "-p",
        "tcp",
        "--dport",
        "1:65535",
        "icmp",
        "--icmp-type",
        "8/0",
        "255",
        "LOG",
        "--log-prefix",
        "\"a b\"",
        "NFLOG",
        "--nflog-group",
        "iprange",
        "--dst-range",
        "10.0.0.0-10.0.0.9",
        "10.0.0.0/255.0.0.0",
        "-d",
        "portcullis-guard",
        "#",
    ]);
    let spellings = Spellings::of(Family::V4);
    fuzz.expects(&["complete", "nothing was printed", "the table has no end"]).run(|input| {
        let mut whole = Reading::default();
        whole.take(input);
        let mut pieces = Reading::default();
        input.chunks(7).for_each(|piece| pieces.take(piece));
        let (whole, pieces) = (whole.finish(), pieces.finish());
        let saved = match (whole, pieces) {
            (Ok(whole), Ok(pieces)) => {
                assert_eq!((&whole.declared, &whole.rules), (&pieces.declared, &pieces.rules));
                assert_eq!((&whole.guarded, whole.forward), (&pieces.guarded, pieces.forward));
                whole
            }
            (Err(whole), Err(pieces)) => {
                assert_eq!(whole, pieces);
                let is_remark = whole.starts_with('#');
                return if is_remark { "a remark".to_owned() } else { whole };
            }
            (whole, pieces) => panic!("{whole:?}, in pieces {pieces:?}"),
        };
        let text = String::from_utf8_lossy(input);
        let rules: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("-A ")).collect();
        for (one, other) in rules.iter().zip(rules.iter().skip(1)) {
            assert!(spellings.same(one, one));
            assert_eq!(spellings.same(one, other), spellings.same(other, one), "{one:?} {other:?}");
        }
        let wanted = saved.as_wanted();
        let step = saved.step(&wanted, &spellings);
        let written = step.batch.map(|batch| batch.text()).unwrap_or_default();
        format!("complete, {} chains, batch of {}", wanted.chains.len(), written.len())
    });
}
