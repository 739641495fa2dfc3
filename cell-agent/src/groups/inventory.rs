//! The containers and isolated rules that the store gets: everything first, then what
//! changed. Pure.
//!
//! - Nothing is computed while the parts of the state in force are the same pointers; a
//!   container is converted again only when something of the container changed.
//! - Numbers and lengths are bounded, whatever the metadata store and the groups contain:
//!   the store ends the watch of a cell that sends more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    mem,
    sync::Arc,
};

use model::ids::{ContainerHandle, GroupGuid, MAX_CHARS};
use proto::{
    cell_v1::{Container, IsolatedRule},
    policy_v1::{IsolatedRules, Rule, watch_request::Inventory},
};

use super::bounded;
use crate::{
    containers::Snapshot,
    plan::{Known, Ruleset},
    reconcile::Enforced,
    wire,
};

/// Maximum number of containers of a message.
const CONTAINERS_MOST: usize = 1_000;
/// Maximum number of reported containers; a cell has some hundred.
const CONTAINERS_IN_ALL: usize = 5_000;
/// Maximum number of reported isolated rules.
const RULES_MOST: usize = 100;
/// Maximum length of a reason, or of a field of an isolated rule, in characters.
const TEXT_MOST: usize = 1_000;

/// What the store knows through one watch.
#[derive(Debug, Default)]
pub(super) struct Inventories {
    /// `None` before the first Inventory.
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    of: Parts,
    containers: BTreeMap<ContainerHandle, Container>,
    isolated: IsolatedRules,
}

/// The parts of the state in force that decide an Inventory.
#[derive(Debug)]
struct Parts {
    ruleset: Arc<Ruleset>,
    snapshot: Arc<Snapshot>,
    known: Arc<Known>,
    waiting: BTreeMap<ContainerHandle, String>,
    kept: BTreeSet<ContainerHandle>,
}

impl Inventories {
    /// The messages that bring the store up to date.
    pub(super) fn changes(&mut self, enforced: &Enforced) -> Vec<Inventory> {
        // Before the first reading of the metadata store the containers are unknown.
        if enforced.reading == 0 || enforced.at.is_none() {
            return Vec::new();
        }
        if self.sent.as_ref().is_some_and(|sent| sent.of.are_of(enforced)) {
            return Vec::new();
        }
        let before = self.sent.take();
        let reset = before.is_none();
        let (of, mut containers, told) = match before {
            Some(Sent { of, containers, isolated }) => (Some(of), containers, Some(isolated)),
            None => (None, BTreeMap::new(), None),
        };
        let now: BTreeSet<_> = enforced.ruleset.containers.keys().take(CONTAINERS_IN_ALL).collect();
        let gone: Vec<_> =
            containers.keys().filter(|handle| !now.contains(handle)).cloned().collect();
        let removed = gone.into_iter().map(|handle| {
            containers.remove(&handle);
            Change::Removed(handle.as_str().to_owned())
        });
        let mut changes: Vec<_> = removed.collect();
        for handle in now {
            if of.as_ref().is_some_and(|of| of.has_same(enforced, handle)) {
                continue;
            }
            let Some(container) = wire::container(enforced, handle).map(bounded_container) else {
                continue;
            };
            if containers.get(handle) != Some(&container) {
                containers.insert(handle.clone(), container.clone());
                changes.push(Change::Upserted(container));
            }
        }
        let isolated = match &told {
            Some(told) if of.is_some_and(|of| of.has_same_rules(enforced)) => told.clone(),
            _ => isolated(enforced),
        };
        let news = (told.as_ref() != Some(&isolated)).then(|| isolated.clone());
        self.sent = Some(Sent { of: Parts::of(enforced), containers, isolated });
        messages(reset, changes, news)
    }
}

enum Change {
    Removed(String),
    Upserted(Container),
}

fn messages(reset: bool, changes: Vec<Change>, isolated: Option<IsolatedRules>) -> Vec<Inventory> {
    if !reset && changes.is_empty() && isolated.is_none() {
        return Vec::new();
    }
    let mut messages = Vec::new();
    let mut message = Inventory { reset, isolated, ..Inventory::default() };
    for change in changes {
        if message.upserted.len() + message.removed_handles.len() == CONTAINERS_MOST {
            messages.push(mem::take(&mut message));
        }
        match change {
            Change::Removed(handle) => message.removed_handles.push(handle),
            Change::Upserted(container) => message.upserted.push(container),
        }
    }
    messages.push(message);
    messages
}

impl Parts {
    fn of(enforced: &Enforced) -> Self {
        Self {
            ruleset: Arc::clone(&enforced.ruleset),
            snapshot: Arc::clone(&enforced.snapshot),
            known: Arc::clone(&enforced.known),
            waiting: enforced.waiting.clone(),
            kept: enforced.kept.clone(),
        }
    }

    fn are_of(&self, enforced: &Enforced) -> bool {
        let Self { ruleset, snapshot, known: _, waiting, kept } = self;
        self.has_same_rules(enforced)
            && Arc::ptr_eq(ruleset, &enforced.ruleset)
            && Arc::ptr_eq(snapshot, &enforced.snapshot)
            && *waiting == enforced.waiting
            && *kept == enforced.kept
    }

    /// Whether the isolated rules are the same: they show names of groups, too.
    fn has_same_rules(&self, enforced: &Enforced) -> bool {
        Arc::ptr_eq(&self.ruleset, &enforced.ruleset) && Arc::ptr_eq(&self.known, &enforced.known)
    }

    /// Whether everything that a container's message is made from is the same.
    fn has_same(&self, enforced: &Enforced, handle: &ContainerHandle) -> bool {
        let Self { ruleset, snapshot, known: _, waiting, kept } = self;
        let planned = |ruleset: &Ruleset| ruleset.containers.get(handle).cloned();
        let policy = |ruleset: &'_ Ruleset| wire::policy_of(ruleset, handle).map(Arc::as_ptr);
        planned(ruleset) == planned(&enforced.ruleset)
            && policy(ruleset) == policy(&enforced.ruleset)
            && snapshot.containers.get(handle) == enforced.snapshot.containers.get(handle)
            && waiting.get(handle) == enforced.waiting.get(handle)
            && kept.contains(handle) == enforced.kept.contains(handle)
    }
}

/// Texts of the metadata store are not validated.
fn bounded_container(container: Container) -> Container {
    Container {
        app_guid: bounded(&container.app_guid, MAX_CHARS),
        workload: bounded(&container.workload, MAX_CHARS),
        reason: bounded(&container.reason, TEXT_MOST),
        ..container
    }
}

/// The isolated rules, each once.
fn isolated(enforced: &Enforced) -> IsolatedRules {
    let mut all: BTreeMap<(&GroupGuid, usize), &dyn Display> = BTreeMap::new();
    for policy in enforced.ruleset.policies.values() {
        for (group, rule, _, reason) in policy.not_enforced() {
            all.entry((group, rule)).or_insert(reason);
        }
    }
    let total = wire::count(all.len());
    let first = all.into_iter().take(RULES_MOST).map(|((group, index), reason)| {
        let (rule, mut source) = wire::written(enforced, group, index);
        source.group_name = bounded(&source.group_name, MAX_CHARS);
        let reason = bounded(&reason.to_string(), TEXT_MOST);
        IsolatedRule { rule: rule.as_ref().map(bounded_rule), source: Some(source), reason }
    });
    IsolatedRules { rules: first.collect(), total }
}

fn bounded_rule(rule: &Rule) -> Rule {
    let Rule { protocol, destination, ports, r#type, code, description, log } = rule;
    let [protocol, destination, ports, description] =
        [protocol, destination, ports, description].map(|text| bounded(text, TEXT_MOST));
    Rule { protocol, destination, ports, r#type: *r#type, code: *code, description, log: *log }
}

#[cfg(test)]
mod tests {
    use model::{
        effective::ReadGroup,
        generation::Generation,
        group::{GroupId, Scope, SecurityGroup, StoredGroup},
        ids::SpaceGuid,
        rule::RuleSpec,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Refused, plan, test_settings};

    /// A cell with these containers (a number and a space), and groups for all of them with
    /// this many rules, the last of them unreadable.
    fn enforced(containers: &[(u16, u8)], rules: u8) -> Enforced {
        let entry = |(number, space): &(u16, u8)| {
            format!(
                r#""c{number:04}":{{"ip":"10.255.{}.{}","metadata":{{"policy_group_id":"p",
                "app_id":"a","space_id":"s{space}","container_workload":"app"}}}}"#,
                number / 250,
                number % 250 + 1
            )
        };
        let entries: Vec<String> = containers.iter().map(entry).collect();
        let snapshot = Snapshot::parse(format!("{{{}}}", entries.join(",")).as_bytes()).unwrap();
        let destination = |number| match number + 1 == rules {
            true => "not an address".to_owned(),
            false => format!("10.1.{number}.0/24"),
        };
        let spec = |number| RuleSpec {
            protocol: "all".to_owned(),
            destination: destination(number),
            ..RuleSpec::default()
        };
        let group = SecurityGroup {
            guid: GroupGuid::parse("g").unwrap(),
            name: "group".to_owned(),
            rules: (0..rules).map(spec).collect(),
            running: Scope { everywhere: true, ..Scope::default() },
            staging: Scope::default(),
        };
        let read = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
        let known = Known {
            generation: Generation(1),
            spaces: (0..9).map(|n| SpaceGuid::parse(&format!("s{n}")).unwrap()).collect(),
            groups: [(GroupGuid::parse("g").unwrap(), Arc::new(read))].into(),
            ..Known::default()
        };
        let ruleset = plan(&test_settings(), &snapshot, &known, &Refused::default());
        let mut enforced = Enforced::nothing(Arc::new(ruleset));
        enforced.reading = 1;
        enforced.at = Some(std::time::SystemTime::UNIX_EPOCH);
        enforced.snapshot = Arc::new(snapshot);
        enforced.known = Arc::new(known);
        enforced
    }

    /// What a store knows after these messages.
    #[derive(Debug, Default, PartialEq)]
    struct Store(BTreeMap<String, Container>, Option<IsolatedRules>);

    impl Store {
        fn take(&mut self, messages: Vec<Inventory>) {
            for Inventory { reset, upserted, removed_handles, isolated } in messages {
                assert!(upserted.len() + removed_handles.len() <= CONTAINERS_MOST);
                if reset {
                    self.0.clear();
                }
                removed_handles.iter().for_each(|handle| _ = self.0.remove(handle).unwrap());
                self.0.extend(upserted.into_iter().map(|c| (c.handle.clone(), c)));
                self.1 = isolated.or(self.1.take());
            }
        }
    }

    fn after(states: &[Enforced]) -> Store {
        let (mut inventories, mut store) = (Inventories::default(), Store::default());
        states.iter().for_each(|state| store.take(inventories.changes(state)));
        store
    }

    proptest! {
        #[test]
        fn differences_lead_to_the_same_as_everything(
            states in proptest::collection::vec(
                (proptest::collection::btree_map(0_u16..6, 0_u8..4, 0..6), 1_u8..4), 1..5)
        ) {
            let states: Vec<_> = states.into_iter().map(|(containers, rules)| {
                enforced(&containers.into_iter().collect::<Vec<_>>(), rules)
            }).collect();
            prop_assert_eq!(after(&states), after(&states[states.len() - 1..]));
        }
    }

    #[test]
    fn everything_comes_first_and_then_only_what_changed() {
        let mut inventories = Inventories::default();
        let mut state = enforced(&[(1, 1), (2, 2)], 2);
        let unknown = Enforced { reading: 0, ..state.clone() };
        assert!(inventories.changes(&unknown).is_empty(), "the containers are not read yet");
        let first = inventories.changes(&state);
        assert!(first.len() == 1 && first[0].reset && first[0].upserted.len() == 2, "{first:?}");
        let isolated = first[0].isolated.as_ref().unwrap();
        assert_eq!((isolated.total, isolated.rules.len()), (1, 1));
        assert_eq!(isolated.rules[0].source.as_ref().unwrap().rule_index, 1);
        assert!(inventories.changes(&state).is_empty());
        state.unattributed = 7;
        state.drift_healed = 1;
        assert!(inventories.changes(&state).is_empty(), "the report has counters");
        let handle = ContainerHandle::parse("c0002").unwrap();
        state.waiting.insert(handle, "no chain".to_owned());
        let change = inventories.changes(&state);
        assert!(change.len() == 1 && !change[0].reset && change[0].isolated.is_none());
        assert_eq!(change[0].upserted[0].reason, "no chain");
        // The same content with other pointers.
        let again = Enforced { waiting: state.waiting, ..enforced(&[(1, 1), (2, 2)], 2) };
        assert!(inventories.changes(&again).is_empty());
        let gone = inventories.changes(&enforced(&[(2, 2)], 1));
        assert_eq!(gone[0].removed_handles, ["c0001"]);
        assert_eq!(gone[0].upserted[0].handle, "c0002", "no longer waits");
        assert_eq!(gone[0].isolated, Some(inventories.sent.unwrap().isolated));
    }

    #[test]
    fn a_message_and_all_of_them_are_bounded() {
        let all: Vec<_> = (0..5_500).map(|number| (number, 1)).collect();
        let mut inventories = Inventories::default();
        let messages = inventories.changes(&enforced(&all, 1));
        let lengths: Vec<_> = messages.iter().map(|message| message.upserted.len()).collect();
        assert_eq!(lengths, [1_000; 5]);
        assert_eq!(messages.iter().filter(|message| message.reset).count(), 1);
        let long = Container { workload: "w\n".repeat(300), ..Container::default() };
        let workload = bounded_container(long).workload;
        assert_eq!(workload.chars().count(), MAX_CHARS);
        assert!(!workload.contains('\n'), "{workload}");
    }
}
