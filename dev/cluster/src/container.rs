//! A container on a cell: a namespace with a process, and an entry in the cell's
//! metadata store. Added and removed in the CNI plugin's order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cni::metadata::Entry;
use cni::namespace::Resident;
use uuid::Uuid;

use super::network::Attachment;
use super::topology::Cell;

/// The kind of workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// A running app.
    App,
    /// A staging container.
    Staging,
}

impl Workload {
    /// The value of `container_workload`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Staging => "staging",
        }
    }
}

/// Parameters of a new container.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Its name, unique in the cluster.
    pub(crate) name: String,
    /// Its cell.
    pub(crate) cell: Cell,
    /// Its organization's GUID.
    pub(crate) organization: String,
    /// Its space's GUID.
    pub(crate) space: String,
    /// Its kind of workload.
    pub(crate) workload: Workload,
}

impl Wanted {
    /// The metadata that Diego would pass to the CNI plugin.
    pub(crate) fn entry(&self, handle: &str, app: &str, address: Ipv4Addr) -> Entry {
        let log_config = format!(
            r#"{{"guid":"{app}","index":0,"source_name":"{}","tags":{{}}}}"#,
            match self.workload {
                Workload::App => "APP/PROC/WEB",
                Workload::Staging => "STG",
            }
        );
        let metadata = [
            ("policy_group_id", app),
            ("app_id", app),
            ("space_id", &self.space),
            ("org_id", &self.organization),
            ("ports", "8080"),
            ("container_workload", self.workload.as_str()),
            ("log_config", &log_config),
        ];
        let metadata: BTreeMap<String, String> =
            metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Entry { handle: handle.to_owned(), ip: address.to_string(), metadata: Some(metadata) }
    }
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its parameters.
    pub(crate) wanted: Wanted,
    /// Its Garden handle.
    pub(crate) handle: String,
    /// Its attachment to the network.
    pub(crate) attachment: Attachment,
}

impl Container {
    /// A new handle and a new app GUID, like Diego's.
    pub(crate) fn new_guids() -> (String, String) {
        (Uuid::new_v4().to_string(), Uuid::new_v4().to_string())
    }

    /// The name of its process in the cluster.
    pub(crate) fn process(name: &str) -> String {
        format!("container-{name}")
    }

    /// The thread in its namespace.
    pub(crate) fn resident(&self) -> &Resident {
        self.attachment.namespace.resident()
    }
}

/// The properties that change only if an app is restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its process ID.
    pub(crate) pid: u32,
    /// The start time of the process, in ticks since boot.
    pub(crate) started: u64,
    /// Its network namespace.
    pub(crate) namespace: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_diego_says() {
        let wanted = Wanted {
            name: "appA".to_owned(),
            cell: Cell::all(1).next().unwrap(),
            organization: "o1".to_owned(),
            space: "s1".to_owned(),
            workload: Workload::Staging,
        };
        let entry = wanted.entry("h", "a", Ipv4Addr::new(10, 255, 1, 2));
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            serde_json::json!({"handle": "h", "ip": "10.255.1.2", "metadata": {
                "policy_group_id": "a", "app_id": "a", "space_id": "s1", "org_id": "o1",
                "ports": "8080", "container_workload": "staging",
                "log_config": r#"{"guid":"a","index":0,"source_name":"STG","tags":{}}"#,
            }})
        );
        serde_json::from_str::<serde_json::Value>(&entry.metadata.unwrap()["log_config"]).unwrap();
    }
}
