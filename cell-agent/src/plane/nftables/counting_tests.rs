use std::collections::BTreeSet;

use model::{
    effective::{Probe, ProbeKind, ReadGroup},
    generation::Generation,
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    ids::SpaceGuid,
    rule::RuleSpec,
};
use proptest::prelude::*;

use super::*;
use crate::{
    containers::Snapshot,
    plan::{Known, Refused, Ruleset, Settings, plan, test_settings},
    plane::nftables::render::Renderer,
};

const SPACES: u8 = 2;

/// A rule in a small universe: protocol, first and last address, first and last port.
type Spec = (bool, u8, u8, u16, u16, bool);

/// Some rules for each group; a group is global, or of one space.
fn ruleset(groups: &[(Option<u8>, Vec<Spec>)]) -> (Ruleset, Vec<ReadGroup>) {
    let spec = |(is_tcp, first, more, port, ports, log): &Spec| RuleSpec {
        protocol: if *is_tcp { "tcp".to_owned() } else { "udp".to_owned() },
        destination: format!("10.0.0.{first}-10.0.0.{}", first + more),
        ports: format!("{port}-{}", port + ports),
        log: *log,
        ..RuleSpec::default()
    };
    let space = |number: u8| SpaceGuid::parse(&format!("s{number}")).unwrap();
    let read = groups.iter().enumerate().map(|(index, (of, rules))| {
        let spaces = of.iter().map(|of| space(*of)).collect();
        let group = SecurityGroup {
            guid: GroupGuid::parse(&format!("g{index}")).unwrap(),
            name: String::new(),
            rules: rules.iter().map(spec).collect(),
            running: Scope { everywhere: of.is_none(), spaces },
            staging: Scope::default(),
        };
        ReadGroup::new(StoredGroup { id: GroupId(index as u64 + 1), group: Arc::new(group) })
    });
    let read: Vec<ReadGroup> = read.collect();
    let entry = |number: u8| {
        format!(
            r#""c{number}":{{"ip":"10.255.0.{}","metadata":{{"policy_group_id":"p","app_id":"a",
            "space_id":"s{number}","container_workload":"app"}}}}"#,
            number + 1
        )
    };
    let entries: Vec<String> = (0..SPACES).map(entry).collect();
    let snapshot = Snapshot::parse(format!("{{{}}}", entries.join(",")).as_bytes()).unwrap();
    let known = Known {
        generation: Generation(1),
        spaces: (0..SPACES).map(space).collect(),
        groups: read
            .iter()
            .map(|of| (of.stored.group.guid.clone(), Arc::new(of.clone())))
            .collect(),
        ..Known::default()
    };
    let settings = Arc::new(Settings { count_use: true, ..(*test_settings()).clone() });
    (plan(&settings, &snapshot, &known, &Refused::default()), read)
}

/// The kernel's counters of all chains.
#[derive(Debug, Default)]
struct Kernel(BTreeMap<String, Vec<BTreeMap<Vec<u8>, u64>>>);

impl Kernel {
    fn add(&mut self, segment: &Segment) -> String {
        let chains = segment::counted(segment, "");
        let name = chains[0].0.clone();
        for (name, rules) in chains {
            let keys = |rule: &Counted| match rule {
                Counted::Nothing => BTreeMap::new(),
                Counted::Rule(_) => BTreeMap::from([(Vec::new(), 0)]),
                Counted::Elements(all) => all.keys().map(|key| (key.clone(), 0)).collect(),
            };
            self.0.entry(name).or_insert_with(|| rules.iter().map(keys).collect());
        }
        name
    }

    /// A packet passes the segments of its policy.
    fn packet(&mut self, policy: &Policy, probe: Probe) {
        for segment in &policy.segments {
            self.add(segment);
            for (name, rules) in segment::counted(segment, "") {
                for (index, rule) in rules.iter().enumerate() {
                    let counters = self.0.get_mut(&name).unwrap();
                    let hit = counters[index]
                        .iter_mut()
                        .find(|(key, _)| rule.area(key).iter().any(|permit| permit.matches(probe)));
                    if let Some((_, packets)) = hit {
                        *packets += 1;
                        return;
                    }
                }
            }
        }
    }

    fn counters(
        &self,
        names: &[String],
        rules: impl Fn(&str) -> Vec<Counted>,
    ) -> Vec<(String, Vec<Counters>)> {
        let of = |name: &String| {
            let counters = self.0[name].iter().zip(rules(name)).map(|(values, rule)| match rule {
                Counted::Nothing => Counters::None,
                Counted::Rule(_) => Counters::Rule(values[&Vec::new()]),
                Counted::Elements(_) => Counters::Elements(values.clone()),
            });
            (name.clone(), counters.collect())
        };
        names.iter().map(of).collect()
    }
}

fn read(kernel: &Kernel, counting: &mut Counting) {
    let names = counting.of(kernel.0.keys());
    let counters = kernel.counters(&names, |name| counting.chains[name].rules.clone());
    counting.read(counters);
}

fn group() -> impl Strategy<Value = (Option<u8>, Vec<Spec>)> {
    let spec = (any::<bool>(), 0_u8..6, 0_u8..4, 1_u16..7, 0_u16..4, any::<bool>());
    (proptest::option::of(0..SPACES), proptest::collection::vec(spec, 1..7))
}

proptest! {
    /// Whatever the packets, resets and changes of the groups: each rule that allows a
    /// connection which was made, in a group of that container, is used; or the uses say that
    /// they are not complete.
    #[test]
    fn a_used_rule_is_never_missing(
        steps in proptest::collection::vec(
            (
                proptest::collection::vec(group(), 1..4),
                proptest::collection::vec((0..SPACES, any::<bool>(), 0_u8..10, 1_u16..11), 0..6),
                0_u8..8,
            ),
            1..5,
        ),
    ) {
        let (mut kernel, mut counting) = (Kernel::default(), Counting::new());
        let mut renderer = Renderer::default();
        prop_assert!(!counting.take(|_| true).complete, "the time before is not known");
        let mut wanted = BTreeSet::new();
        for (groups, packets, event) in steps {
            let (ruleset, read_groups) = ruleset(&groups);
            renderer.render(&ruleset, "");
            counting.expect(renderer.segments(), ruleset.policies.values(), "");
            for policy in ruleset.policies.values() {
                policy.segments.iter().for_each(|segment| _ = kernel.add(segment));
            }
            for (space, is_tcp, last, port) in packets {
                let kind = if is_tcp { ProbeKind::Tcp(port) } else { ProbeKind::Udp(port) };
                let probe = Probe { destination: [10, 0, 0, last].into(), kind };
                let belongs = ruleset.policies.keys().nth(usize::from(space)).unwrap();
                let policy = &ruleset.policies[belongs];
                kernel.packet(policy, probe);
                // The first segment whose permits match is that of the deciding group.
                let decides = policy.segments.iter().find(|segment| {
                    segment.permits.iter().any(|permit| permit.matches(probe))
                });
                let Some(decides) = decides else { continue };
                let of = read_groups.iter().find(|of| of.stored.group.guid == decides.group);
                for (_, permit) in of.unwrap().permits().filter(|(_, permit)| permit.matches(probe)) {
                    let earlier = policy.segments.iter().take_while(|other| *other != decides);
                    if earlier.flat_map(|segment| &segment.permits).all(|other| other != permit) {
                        wanted.insert((decides.group.clone(), PermitKey::of(permit)));
                    }
                }
                let others = policy.rules.permits.iter().chain(&policy.rules.repeated);
                let place = policy.segments.iter().position(|other| other == decides).unwrap();
                for (permit, source) in others.filter(|(permit, _)| permit.matches(probe)) {
                    let earlier = policy.segments[..place].iter();
                    if earlier.flat_map(|segment| &segment.permits).all(|other| other != permit) {
                        wanted.insert((source.group.clone(), PermitKey::of(permit)));
                    }
                }
            }
            match event {
                // Unused chains are swept.
                0 => {
                    read(&kernel, &mut counting);
                    let live: Vec<&str> = renderer.segments().map(|(name, _)| name).collect();
                    let gone: Vec<String> = kernel.0.keys()
                        .filter(|name| !live.iter().any(|live| name.starts_with(live)))
                        .cloned().collect();
                    counting.forget(&gone);
                    kernel.0.retain(|name, _| !gone.contains(name));
                }
                // Somebody resets all counters.
                1 => {
                    kernel.0.values_mut().flatten().flat_map(BTreeMap::values_mut).for_each(|packets| *packets = 0);
                    counting.lose();
                }
                2 | 3 => {
                    read(&kernel, &mut counting);
                    let uses = counting.take(|name| kernel.0.contains_key(name));
                    if uses.complete {
                        prop_assert!(wanted.is_subset(&uses.used), "{wanted:?} {uses:?}");
                    }
                    wanted.clear();
                }
                _ => {}
            }
        }
        read(&kernel, &mut counting);
        let uses = counting.take(|_| true);
        if uses.complete {
            prop_assert!(wanted.is_subset(&uses.used), "{wanted:?} {uses:?}");
        }
    }
}

fn counted(elements: &[&[u8]]) -> Counted {
    Counted::Elements(elements.iter().map(|key| (key.to_vec(), Vec::new())).collect())
}

fn found(elements: &[&[u8]]) -> Counters {
    Counters::Elements(elements.iter().map(|key| (key.to_vec(), 1)).collect())
}

#[test]
fn a_long_list_may_be_several_rules_and_other_rules_are_not_ours() {
    let rules = [counted(&[&[1], &[2], &[3]]), Counted::Nothing, Counted::Rule(Vec::new())];
    let ours = |found| values(&rules, found).is_some();
    let end = [Counters::None, Counters::Rule(0)];
    assert!(ours([vec![found(&[&[1], &[2], &[3]])], end.to_vec()].concat()));
    assert!(ours([vec![found(&[&[1], &[2]]), found(&[&[3]])], end.to_vec()].concat()));
    assert!(!ours([vec![found(&[&[1], &[2]])], end.to_vec()].concat()));
    assert!(!ours([vec![found(&[&[1], &[2], &[4]])], end.to_vec()].concat()));
    assert!(!ours(Vec::new()));
    let more = [vec![found(&[&[1], &[2], &[3]])], end.to_vec(), vec![Counters::None]].concat();
    assert!(!ours(more));
}
