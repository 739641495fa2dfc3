use std::collections::BTreeMap;

use model::{
    effective::{EffectiveRules, Permit, Service},
    group::Lifecycle,
    ids::{GroupGuid, SpaceGuid},
    rule::{AddressRange, IcmpMatch, PortRange},
};

use super::*;
use crate::{
    containers::Belongs,
    plan::{ConnectionLimit, DenyNetworks, RecordDenied, Segment},
};

const HANDLE: &str = "00000001-aaaa-bbbb-cccc-0123456789ab";

fn handle(text: &str) -> ContainerHandle {
    ContainerHandle::parse(text).unwrap()
}

fn permit(first: &str, last: &str, service: Service, log: bool) -> Permit {
    let destination = AddressRange::try_new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
    Permit { destination, service, log }
}

fn ruleset(settings: Settings, assignment: Assignment, permits: Vec<Permit>) -> Ruleset {
    let mut ruleset = Ruleset::empty(Arc::new(settings));
    let address = "10.255.1.1".parse().ok();
    ruleset
        .containers
        .insert(handle(HANDLE), Planned { address, more: BTreeSet::new(), assignment });
    let segment = Segment { group: GroupGuid::parse("g").unwrap(), permits };
    let policy = Policy {
        deny: vec!["10.11.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
        segments: vec![Arc::new(segment)],
        rules: EffectiveRules::default(),
        refused: Vec::new(),
    };
    ruleset.policies.insert(belongs(), Arc::new(policy));
    ruleset
}

fn belongs() -> Belongs {
    Belongs { space: SpaceGuid::parse("s1").unwrap(), lifecycle: Lifecycle::Running }
}

fn settings() -> Settings {
    Settings {
        by_address: false,
        overlay: "10.255.0.0/16".parse().unwrap(),
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks::default(),
        log_all: false,
        denied_logs_per_second: 3,
        udp_logs_per_second: 100,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    }
}

fn rules(filter: &Filter) -> Vec<&str> {
    filter.chains[0].body.rules().collect()
}

#[test]
fn every_part_of_a_chain_is_at_its_place() {
    let settings = Settings {
        disable_network_policy: true,
        log_all: true,
        connection_limit: Some(ConnectionLimit {
            per_second: 100,
            burst: 1000,
            log: true,
            destinations: 9,
        }),
        ..settings()
    };
    let udp = Service::Udp(PortRange::new(53, 54).unwrap());
    let permits = vec![
        permit("10.1.0.0", "10.1.255.255", udp, true),
        permit("10.2.0.1", "10.2.0.1", Service::Icmp(IcmpMatch::ANY), true),
        permit("fd01::", "fd01::ffff", Service::Icmpv6(IcmpMatch::ANY), true),
    ];
    let ruleset = ruleset(settings, Assignment::Bound(belongs()), permits);
    let v4 = render(&ruleset, Family::V4);
    assert_eq!(
        rules(&v4),
        [
            "-s 10.255.0.0/16 -d 10.255.0.0/16 -j ACCEPT",
            "-m state --state RELATED,ESTABLISHED -j ACCEPT",
            "-p tcp -m state --state INVALID -j DROP",
            "-p tcp -m conntrack --ctstate NEW -m hashlimit --hashlimit-above 100/sec \
             --hashlimit-burst 1000 --hashlimit-mode dstip,dstport \
             --hashlimit-name 00000001-aaaa-bbbb-cccc-0123456789ab \
             --hashlimit-htable-expire 10000 -j netout--00000001-aaa--rl-log",
            "-d 10.11.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
            "-p udp -m iprange --dst-range 10.1.0.0-10.1.255.255 -m udp --dport 53:54 -g netout--00000001-aaaa-b--log",
            "-p icmp -m iprange --dst-range 10.2.0.1-10.2.0.1 -m icmp --icmp-type any -g netout--00000001-aaaa-b--log",
            "-m limit --limit 3/sec --limit-burst 3 -j LOG --log-prefix \"DENY_00000001-aaaa-bbbb-cccc \"",
            "-j REJECT --reject-with icmp-port-unreachable",
        ]
    );
    let chain = &v4.chains[0];
    assert_eq!(chain.targets, ["netout--00000001-aaa--rl-log", "netout--00000001-aaaa-b--log"]);
    assert!(chain.expected);
    assert_eq!(
        [4, 5, 6, 7].map(|place| chain.body.part(place)),
        [Part::Fixed, Part::Permit(0), Part::Permit(1), Part::Fixed]
    );
    let v6 = render(&ruleset, Family::V6);
    assert!(!v6.chains[0].expected);
    assert_eq!(
        rules(&v6)[3..5],
        [
            "-d fd00::/8 -j REJECT --reject-with icmp6-port-unreachable",
            "-p ipv6-icmp -m iprange --dst-range fd01::-fd01::ffff -g netout--00000001-aaaa-b--log",
        ]
    );
}

#[test]
fn no_rules_deny_and_unknown_groups_keep_the_chain() {
    let reason = || "odd".to_owned();
    let of = |assignment| render(&ruleset(settings(), assignment, Vec::new()), Family::V4);
    let reject = "-j REJECT --reject-with icmp-port-unreachable";
    assert_eq!(rules(&of(Assignment::Isolated(reason()))), [arguments::ESTABLISHED, reject]);
    let ungrouped = of(Assignment::Ungrouped(reason()));
    assert_eq!(rules(&ungrouped), [arguments::ESTABLISHED, arguments::INVALID, reject]);
    let mut unknown = of(Assignment::Unknown(SpaceGuid::parse("s1").unwrap()));
    assert!(unknown.chains.is_empty());
    unknown.close(&BTreeSet::from(["asg-of-another".to_owned()]));
    assert_eq!((unknown.chains.len(), unknown.unknown.len()), (0, 1));
    // This process wrote those rules, and they are no longer known to be right.
    unknown.close(&BTreeSet::from(["asg-00000001aaaabbbbcccc".to_owned()]));
    assert!(unknown.unknown.is_empty());
    assert_eq!(rules(&unknown), rules(&ungrouped));
}

#[test]
fn names_are_cut_as_the_original_does() {
    let names: BTreeMap<&str, Option<[String; 4]>> =
        ["some-handle", "check-b6259c48-29b6-49dd-739c-2a4418fd137c", "check---", "a b"]
            .map(|text| {
                let names = Names::of(&handle(text)).ok();
                (text, names.map(|n| [n.asg, n.netout, n.log, n.limit_log]))
            })
            .into();
    let made = |names: [&str; 4]| Some(names.map(str::to_owned));
    assert_eq!(
        names["some-handle"],
        made([
            "asg-somehandle",
            "netout--some-handle",
            "netout--some-handle--log",
            "netout--some-handle--rl-log"
        ])
    );
    assert_eq!(
        names["check-b6259c48-29b6-49dd-739c-2a4418fd137c"],
        made([
            "asg-b6259c4829b649dd739c",
            "netout--check-b6259c48-29b6-",
            "netout--check-b6259c48---log",
            "netout--check-b6259c--rl-log"
        ])
    );
    assert_eq!((&names["check---"], &names["a b"]), (&None, &None));
}

/// The original's rules stay, with a jump before each reject.
#[test]
fn a_record_adds_jumps_before_rejects() {
    let record = RecordDenied { group: 7, per_second: 100, asked_for: true };
    let recorded = |asked_for| {
        let record_denied = Some(RecordDenied { asked_for, ..record });
        let deny = DenyNetworks {
            always: vec!["10.9.0.0/16".parse().unwrap()],
            ..DenyNetworks::default()
        };
        let settings = Settings { log_all: true, record_denied, deny_networks: deny, ..settings() };
        let mut ruleset = Ruleset::empty(Arc::new(settings));
        let handle = ContainerHandle::parse("c1").unwrap();
        let assignment = Assignment::Ungrouped("no".to_owned());
        let address = Some("10.255.1.1".parse().unwrap());
        let planned = Planned { address, more: BTreeSet::new(), assignment };
        ruleset.containers.insert(handle, planned);
        render(&ruleset, Family::V4)
    };
    let (with, without) = (recorded(true), recorded(false));
    assert_eq!(without.record, None);
    let expected: Vec<&str> =
        rules(&with).into_iter().filter(|rule| !rule.ends_with(TO_RECORD)).collect();
    assert_eq!(rules(&without), expected);
    let before = |n: usize| rules(&with)[n - 1];
    let rejects: Vec<usize> =
        (0..rules(&with).len()).filter(|n| rules(&with)[*n].contains("REJECT")).collect();
    assert_eq!(rejects.len(), 2);
    assert_eq!(before(rejects[0]), "-d 10.9.0.0/16 -j portcullis-denied");
    assert!(before(rejects[1]).contains("LOG"));
    assert_eq!(before(rejects[1] - 1), TO_RECORD);
    assert_eq!(
        with.record.unwrap()[0],
        "-m hashlimit --hashlimit-upto 100/sec --hashlimit-burst 100 --hashlimit-mode srcip \
         --hashlimit-name portcullis-denied -m limit --limit 2000/sec --limit-burst 2000 \
         -j NFLOG --nflog-group 7 --nflog-size 128"
    );
}
