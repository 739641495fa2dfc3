//! The containers of this cell, as the CNI plugin recorded them.
//!
//! Parsing is pure and total: a bad entry is isolated and named, and never affects
//! another container (docs/compatibility/vxlan-policy-agent.md#metadata-store).
//! Metadata without influence on rules, `log_config` above all, is not validated.

mod addresses;
mod file;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use model::{
    group::Lifecycle,
    ids::{ContainerHandle, SpaceGuid},
};
use serde_json::{Map, Value};

pub use file::{Error, StoreFile};
pub use watch::{Containers, Feed};

/// One container, with errors for the unusable parts of its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Garden's name of the container.
    pub handle: ContainerHandle,
    /// Its address, or the error.
    pub address: Result<IpAddr, String>,
    /// Its other addresses, without those that another entry claims.
    pub more: BTreeSet<IpAddr>,
    /// The other containers that claim the address, as a sentence.
    pub shared: Option<String>,
    /// Which groups apply, or why none do.
    pub belongs: Result<Belongs, String>,
    /// Whether the original ignores the container: it has no policy group ID or no
    /// space. This affects only which chains exist.
    pub ignored: bool,
    /// App name for messages; empty when absent.
    pub app: String,
    /// Workload for messages, unparsed; empty when absent.
    pub workload: String,
    /// Log configuration, unparsed: only the app log writer needs it valid.
    pub log_config: String,
}

/// The space and lifecycle, which decide which groups apply.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Belongs {
    /// Its space.
    pub space: SpaceGuid,
    /// Its lifecycle.
    pub lifecycle: Lifecycle,
}

/// All containers of the cell at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Containers by handle.
    pub containers: BTreeMap<ContainerHandle, Container>,
    /// Every address in an entry, also those that are assigned to no container.
    pub claimed: BTreeSet<IpAddr>,
    /// Entries without a usable handle, each as a sentence.
    pub problems: Vec<String>,
}

impl Snapshot {
    /// Parses a metadata store. An empty text is an empty store, and only the first
    /// JSON value counts.
    ///
    /// # Errors
    /// The text does not begin with a JSON object or `null`.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
        let entries = match values.next() {
            None | Some(Ok(Value::Null)) => Map::new(),
            Some(Ok(Value::Object(entries))) => entries,
            Some(Ok(_)) => return Err("it is not a JSON object".to_owned()),
            Some(Err(error)) => return Err(error.to_string()),
        };
        let mut snapshot = Self::default();
        for (key, entry) in &entries {
            if let Err(problem) = snapshot.add(key, entry) {
                snapshot.problems.push(format!("entry {key:?}: {problem}"));
            }
        }
        snapshot.note_shared_addresses();
        Ok(snapshot)
    }

    fn add(&mut self, key: &str, entry: &Value) -> Result<(), String> {
        let Value::Object(entry) = entry else {
            return Err("it is not an object".to_owned());
        };
        // Also without an owner: then the address is denied.
        self.claimed.extend(addresses::primary(entry).ok());
        self.claimed.extend(addresses::all(entry));
        let handle = text(entry, "handle").unwrap_or(key);
        let handle = ContainerHandle::parse(handle).map_err(|error| error.to_string())?;
        match self.containers.entry(handle.clone()) {
            Entry::Occupied(_) => Err(format!("the handle {handle} stands in another entry, too")),
            Entry::Vacant(vacant) => {
                vacant.insert(Container::read(handle, entry));
                Ok(())
            }
        }
    }

    /// The owner of packets from an address that two containers claim is unknown.
    fn note_shared_addresses(&mut self) {
        let mut owners: BTreeMap<IpAddr, Vec<ContainerHandle>> = BTreeMap::new();
        for container in self.containers.values() {
            for address in container.address.iter().chain(&container.more) {
                owners.entry(*address).or_default().push(container.handle.clone());
            }
        }
        for (address, owners) in owners.into_iter().filter(|(_, owners)| owners.len() > 1) {
            let names: Vec<&str> = owners.iter().map(ContainerHandle::as_str).collect();
            let problem = format!("the address {address} is claimed by {}", names.join(" and "));
            self.share(address, &owners, &problem);
        }
    }

    /// An additional address that several containers claim belongs to no container, or
    /// to the one whose primary address it is.
    fn share(&mut self, address: IpAddr, owners: &[ContainerHandle], problem: &str) {
        let is_first = |container: &Container| container.address == Ok(address);
        let first = owners.iter().filter(|owner| self.containers.get(*owner).is_some_and(is_first));
        let firsts = first.count();
        for owner in owners {
            let Some(container) = self.containers.get_mut(owner) else { continue };
            if container.more.remove(&address) {
                self.problems.push(format!("entry {:?}: {problem}", owner.as_str()));
            } else if firsts > 1 {
                container.shared = Some(problem.to_owned());
            }
        }
    }
}

impl Container {
    fn read(handle: ContainerHandle, entry: &Map<String, Value>) -> Self {
        let empty = Map::new();
        let metadata = entry.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        let address = addresses::primary(entry);
        let mut more = addresses::all(entry);
        more.retain(|other| address != Ok(*other));
        Self {
            handle,
            address,
            more,
            shared: None,
            belongs: belongs(metadata),
            ignored: ["policy_group_id", "space_id"]
                .iter()
                .any(|key| text(metadata, key).is_none()),
            app: text(metadata, "app_id").unwrap_or_default().to_owned(),
            workload: text(metadata, "container_workload").unwrap_or_default().to_owned(),
            log_config: text(metadata, "log_config").unwrap_or_default().to_owned(),
        }
    }
}

/// The original ignores a container without a policy group ID; without a space or with
/// an unknown workload no group applies (1.1, 1.4).
fn belongs(metadata: &Map<String, Value>) -> Result<Belongs, String> {
    if text(metadata, "policy_group_id").is_none() {
        return Err("its metadata has no policy_group_id".to_owned());
    }
    let space = text(metadata, "space_id").ok_or("its metadata has no space_id")?;
    let space = SpaceGuid::parse(space).map_err(|error| error.to_string())?;
    let workload = text(metadata, "container_workload").unwrap_or_default();
    let lifecycle = Lifecycle::of_workload(workload)
        .ok_or_else(|| format!("its workload {workload:?} is not app, task or staging"))?;
    Ok(Belongs { space, lifecycle })
}

/// A string that is present and not empty.
fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Snapshot {
        Snapshot::parse(text.as_bytes()).unwrap()
    }

    fn handle(text: &str) -> ContainerHandle {
        ContainerHandle::parse(text).unwrap()
    }

    const GOOD: &str = r#"{"handle":"c1","ip":"10.255.1.1","metadata":{"policy_group_id":"app",
        "app_id":"app","space_id":"s1","container_workload":"task","ports":"8080"}}"#;

    #[test]
    fn a_good_entry_is_read() {
        let snapshot = parse(&format!(r#"{{"c1":{GOOD}}}"#));
        assert!(snapshot.problems.is_empty());
        let container = &snapshot.containers[&handle("c1")];
        assert_eq!(container.address, Ok("10.255.1.1".parse().unwrap()));
        let space = SpaceGuid::parse("s1").unwrap();
        assert_eq!(container.belongs, Ok(Belongs { space, lifecycle: Lifecycle::Running }));
        assert_eq!((container.app.as_str(), container.workload.as_str()), ("app", "task"));
    }

    #[test]
    fn nothing_is_an_empty_store_and_only_the_first_value_counts() {
        assert_eq!(parse(""), Snapshot::default());
        assert_eq!(parse(" \n"), Snapshot::default());
        assert_eq!(parse("null"), Snapshot::default());
        assert_eq!(parse(&format!(r#"{{"c1":{GOOD}}}{{torn"#)).containers.len(), 1);
    }

    #[test]
    fn a_torn_store_is_an_error() {
        for torn in [r#"{"c1":{"handle":"c1","#, "[]", "3", "{\"c1\"", "\u{0}"] {
            Snapshot::parse(torn.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn one_bad_entry_does_not_affect_others() {
        let snapshot = parse(&format!(
            r#"{{"c1":{GOOD},"c2":3,"c3":{{"handle":"a\nb"}},"c4":{{"handle":"c4","ip":"x"}},
                "c5":{{"handle":"c1"}},"c6":{{"ip":7,"metadata":null}},
                "c7":{{"ip":"10.255.1.7","metadata":{{"policy_group_id":"p","space_id":"s",
                       "container_workload":"app","log_config":"{{broken"}}}}}}"#
        ));
        assert_eq!(snapshot.problems.len(), 3, "{:?}", snapshot.problems);
        let read = |name| &snapshot.containers[&handle(name)];
        assert!(read("c1").belongs.is_ok());
        assert!(read("c4").address.as_ref().unwrap_err().contains("\"x\""));
        assert!(read("c6").address.is_err());
        assert!(read("c7").address.is_ok() && read("c7").belongs.is_ok());
        let unusable = parse(
            r#"{"c\n":{"ip":"10.0.0.9"},"a":{"ip":"10.0.0.8"},"b":{"handle":"a","ip":"10.0.0.7"}}"#,
        );
        assert_eq!((unusable.problems.len(), unusable.claimed.len()), (2, 3));
        let mapped = parse(r#"{"c":{"ip":"::ffff:10.255.1.5"}}"#);
        assert_eq!(mapped.claimed, BTreeSet::from(["10.255.1.5".parse().unwrap()]));
    }

    #[test]
    fn a_container_without_groups_has_a_reason() {
        let why = |metadata: &str| {
            let store = parse(&format!(r#"{{"c":{{"ip":"10.0.0.1","metadata":{metadata}}}}}"#));
            store.containers[&handle("c")].belongs.clone().unwrap_err()
        };
        assert!(why("null").contains("policy_group_id"));
        assert!(why(r#"{"policy_group_id":7,"space_id":"s"}"#).contains("policy_group_id"));
        assert!(why(r#"{"policy_group_id":"p","space_id":""}"#).contains("space_id"));
        let workload = r#"{"policy_group_id":"p","space_id":"s","container_workload":"App"}"#;
        assert!(why(workload).contains("\"App\""));
    }

    #[test]
    fn every_address_of_an_entry_belongs_to_its_container() {
        let store = r#"{"a":{"ip":"10.0.0.1","ipv6":"fd00::1","more":["fd00:0:0::2","10.0.0.1","x"],
            "gateway":"10.0.0.254","dns_servers":["8.8.8.8"],"subnet":"fd00::/64",
            "metadata":{"address6":"fd00::3/64","app_id":"app"}},
            "b":{"ip":"","ips":["fd00::b"]},"c":{"ipv6":"fe80::1","x":["::1","ff02::1","0.0.0.0"]}}"#;
        let snapshot = parse(store);
        let read = |name: &str| &snapshot.containers[&handle(name)];
        let texts = |name| read(name).more.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts("a"), ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(read("b").address, Ok("fd00::b".parse().unwrap()));
        assert!(read("c").address.is_err() && read("c").more.is_empty());
        assert_eq!(snapshot.claimed.len(), 5);
    }

    #[test]
    fn a_further_address_that_others_claim_belongs_to_no_container() {
        let store = r#"{"a":{"ip":"10.0.0.1","v6":["fd00::1","fd00::2"]},
            "b":{"ip":"10.0.0.2","v6":["fd00::1","10.0.0.1"]}}"#;
        let snapshot = parse(store);
        let (a, b) = (&snapshot.containers[&handle("a")], &snapshot.containers[&handle("b")]);
        assert_eq!(a.more, BTreeSet::from(["fd00::2".parse().unwrap()]));
        assert!(b.more.is_empty() && a.shared.is_none() && b.shared.is_none());
        assert_eq!(snapshot.problems.len(), 3, "{:?}", snapshot.problems);
    }

    #[test]
    fn containers_with_the_same_address_are_reported() {
        let snapshot =
            parse(r#"{"a":{"ip":"10.0.0.1"},"b":{"ip":"10.0.0.1"},"c":{"ip":"10.0.0.2"}}"#);
        for name in ["a", "b"] {
            let problem = snapshot.containers[&handle(name)].shared.clone().unwrap();
            assert_eq!(problem, "the address 10.0.0.1 is claimed by a and b");
        }
        assert_eq!(snapshot.containers[&handle("c")].shared, None);
    }
}

#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod fuzz_tests;
