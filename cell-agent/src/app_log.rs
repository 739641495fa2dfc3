//! Writes "Security group rules were updated" to the log of each affected app
//! (docs/compatibility/vxlan-policy-agent.md#logs).
//!
//! - A line is sent for a container whose rules in the kernel changed: not for its
//!   first rules, and not for the same rules from another group.
//! - The rules of each container are saved on disk, so that a restart sends no line,
//!   and changes during the restart are sent afterwards.
//! - The state is saved before a line is sent: after a crash a line may be missing, but
//!   none is sent twice.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use model::ids::ContainerHandle;
use runtime::loggregator::{AppLog, Loggregator, Stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    containers::Belongs,
    plan::{Assignment, Policy},
    plane::iptables::render::fingerprint,
    reconcile::Enforced,
    state::StateDirectory,
};

const TEXT: &str = "Security group rules were updated";
/// The state file.
const FILE: &str = "told";

/// Hash of a container's rules.
type Rules = String;

/// The task that sends the lines.
#[derive(Debug)]
pub struct AppLogs {
    loggregator: Loggregator,
    enforced: watch::Receiver<Arc<Enforced>>,
    state: StateDirectory,
    reported: Reported,
}

/// The rules that were last reported. Pure.
#[derive(Debug, Default)]
struct Reported {
    containers: BTreeMap<String, Rules>,
    /// Cache, so that an unchanged policy is not hashed again.
    policies: HashMap<Belongs, (Arc<Policy>, Rules)>,
}

/// As the executor writes it, with `null` for an empty map.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct LogConfig {
    guid: Option<String>,
    index: Option<i64>,
    source_name: Option<String>,
    tags: Option<BTreeMap<String, Value>>,
}

impl AppLogs {
    /// Continues from the saved state of an earlier process.
    #[must_use]
    pub fn new(
        loggregator: Loggregator,
        enforced: watch::Receiver<Arc<Enforced>>,
        state: StateDirectory,
    ) -> Self {
        let containers =
            state.load(FILE).and_then(|content| runtime::json::from_slice(&content).ok());
        let reported =
            Reported { containers: containers.unwrap_or_default(), ..Reported::default() };
        Self { loggregator, enforced, state, reported }
    }

    /// Sends lines until shutdown.
    ///
    /// # Errors
    /// Never; failures to save are logged.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let enforced = Arc::clone(&self.enforced.borrow_and_update());
            if enforced.at.is_some() && enforced.error.is_none() {
                self.look(&enforced).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = self.enforced.changed() => if changed.is_err() {
                    shutdown.cancelled().await;
                },
            }
        }
    }

    async fn look(&mut self, enforced: &Enforced) {
        let before = self.reported.containers.clone();
        let changed = self.reported.changed(enforced);
        if self.reported.containers != before {
            self.write().await;
        }
        for handle in changed {
            let text = enforced.snapshot.containers.get(&handle);
            let log = text.and_then(|container| line(&container.log_config, TEXT.to_owned()));
            if let Some(log) = log {
                self.loggregator.app_log(log);
            }
        }
    }

    async fn write(&self) {
        let content = serde_json::to_vec(&self.reported.containers).expect("texts");
        self.state.save(FILE, || content).await;
    }
}

impl Reported {
    /// The containers whose rules changed.
    fn changed(&mut self, enforced: &Enforced) -> Vec<ContainerHandle> {
        let ruleset = &enforced.ruleset;
        let mut policies = HashMap::new();
        for (belongs, policy) in &ruleset.policies {
            let same = self.policies.remove(belongs).filter(|(old, _)| old == policy);
            let entry = same.unwrap_or_else(|| (Arc::clone(policy), fingerprint(policy)));
            policies.insert(belongs.clone(), entry);
        }
        self.policies = policies;
        let mut changed = Vec::new();
        for (handle, planned) in &ruleset.containers {
            let Assignment::Bound(belongs) = &planned.assignment else { continue };
            let Some((_, rules)) = self.policies.get(belongs) else { continue };
            if enforced.waiting.contains_key(handle) {
                continue;
            }
            let before = self.containers.insert(handle.as_str().to_owned(), rules.clone());
            if before.is_some_and(|before| before != *rules) {
                changed.push(handle.clone());
            }
        }
        let lives = |handle: &str| {
            ContainerHandle::parse(handle)
                .is_ok_and(|handle| ruleset.containers.contains_key(&handle))
        };
        self.containers.retain(|handle, _| lives(handle));
        changed
    }
}

/// A line for an app, if its log configuration is valid.
pub(crate) fn line(log_config: &str, text: String) -> Option<AppLog> {
    let LogConfig { guid, index, source_name, tags } = runtime::json::from_str(log_config).ok()?;
    let guid = guid.filter(|guid| !guid.is_empty())?;
    let tag = |value: Value| match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut tags: BTreeMap<String, String> =
        tags.unwrap_or_default().into_iter().map(|(name, value)| (name, tag(value))).collect();
    let source_id = tags.entry("source_id".to_owned()).or_insert(guid).clone();
    let instance_id = tags
        .entry("instance_id".to_owned())
        .or_insert_with(|| index.unwrap_or_default().to_string())
        .clone();
    tags.insert("source_type".to_owned(), source_name.unwrap_or_default());
    Some(AppLog { source_id, instance_id, tags, text, stream: Stream::Out })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(log_config: &str) -> Option<AppLog> {
        super::line(log_config, TEXT.to_owned())
    }

    #[test]
    fn an_app_is_named_by_its_tags_or_by_its_guid_and_index() {
        let log =
            line(r#"{"guid":"app","index":3,"source_name":"APP/PROC/WEB","tags":{"a":"b","n":7}}"#);
        let log = log.unwrap();
        assert_eq!((log.source_id.as_str(), log.instance_id.as_str()), ("app", "3"));
        let tags = [
            ("a", "b"),
            ("instance_id", "3"),
            ("n", "7"),
            ("source_id", "app"),
            ("source_type", "APP/PROC/WEB"),
        ];
        let tags = tags.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(log.tags, BTreeMap::from(tags));
        let log = line(r#"{"guid":"app","tags":{"source_id":"s","instance_id":"9"}}"#).unwrap();
        assert_eq!((log.source_id.as_str(), log.instance_id.as_str()), ("s", "9"));
        let log = line(r#"{"guid":"app","index":null,"source_name":null,"tags":null}"#).unwrap();
        assert_eq!((log.source_id.as_str(), log.instance_id.as_str()), ("app", "0"));
        let log = line(r#"{"guid":"app","tags":{"a":null}}"#).unwrap();
        assert_eq!(log.tags["a"], "");
        for unnamed in ["", "{broken", "{}", r#"{"guid":""}"#, r#"{"guid":7}"#, "null", "[]"] {
            assert_eq!(line(unnamed), None, "{unnamed}");
        }
    }
}

#[cfg(test)]
#[path = "app_log_fuzz_tests.rs"]
mod fuzz_tests;
