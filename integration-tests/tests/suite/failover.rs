//! Failover between syncer processes that share one lock: the writer, and the writes that
//! the policy store accepts.

use std::collections::BTreeMap;

use integration_tests::{process::Process, services::ControlPlane, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOURCE: &str = "cfnetworking.policy-server-asg-syncer";

/// Two syncers of one control plane.
struct Pair {
    plane: ControlPlane,
    syncers: BTreeMap<String, Process>,
}

impl Pair {
    fn start() -> Self {
        let plane = ControlPlane::start();
        let names = ["syncer-a", "syncer-b"];
        let syncers = names.map(|name| (name.to_owned(), plane.syncer(name))).into();
        let pair = Self { plane, syncers };
        pair.plane.wait_until_synced();
        pair
    }

    /// The names of the leader and of the standby.
    fn roles(&self) -> (String, String) {
        let leader = wait::until("a leader", || self.plane.leader().ok_or("nobody".to_owned()));
        let standby = self.syncers.keys().find(|name| **name != leader);
        let standby = standby.expect("there are two").clone();
        (leader, standby)
    }

    fn get(&mut self, name: &str) -> &mut Process {
        self.syncers.get_mut(name).expect("it was started")
    }

    fn wait_for_leader(&self, name: &str) {
        wait::until(&format!("{name} to lead"), || match self.plane.leader() {
            Some(leader) if leader == name => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Fencing token of the newest write in the policy store.
    fn written_token(&self) -> u64 {
        let status = self.plane.store_status();
        let token = status["writer"]["fencingToken"].as_str().and_then(|text| text.parse().ok());
        token.unwrap_or_else(|| panic!("no token in {status}"))
    }
}

/// Message and data keys are those of policy-server-asg-syncer
/// (docs/compatibility/asg-syncer.md#logs).
#[test]
fn the_standby_logs_the_collision_and_waits() {
    let mut pair = Pair::start();
    let (leader, standby) = pair.roles();
    let line = pair.get(&standby).wait_for("locket-lock.failed-to-acquire-lock");
    assert_eq!(line["source"], SOURCE);
    assert_eq!(line["message"], format!("{SOURCE}.locket-lock.failed-to-acquire-lock"));
    assert_eq!(line["level"], "error");
    let data = &line["data"];
    assert_eq!(data["error"], "rpc error: code = AlreadyExists desc = lock-collision");
    assert_eq!(data["lock-owner"], Value::from(leader.as_str()));
    assert_eq!(
        data["lock"],
        serde_json::json!({
            "key": "policy-server-asg-syncer", "owner": standby, "type": "lock", "type_code": 1,
        })
    );
    assert!(data["request-uuid"].is_string(), "{line}");
    assert_eq!(pair.get(&standby).count("successfully-fetched-security-groups"), 0);
}

/// After kill -9 of the leader the standby leads within the time to live, with a higher
/// token, and the next change arrives.
#[test]
fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let mut pair = Pair::start();
    let (leader, standby) = pair.roles();
    let token = pair.written_token();
    pair.get(&leader).kill();
    pair.plane.cloud.create_group("made-without-a-leader", "10.1.2.3");
    pair.wait_for_leader(&standby);
    pair.plane.wait_until_synced();
    assert!(pair.written_token() > token);
}

/// On SIGTERM the leader releases the lock, so the standby leads at once.
#[test]
fn a_leader_that_is_asked_to_stop_releases_the_lock() {
    let mut pair = Pair::start();
    let (leader, standby) = pair.roles();
    assert_eq!(pair.get(&leader).terminate().code(), Some(0));
    assert_eq!(pair.get(&leader).count("locket-lock.released-lock"), 1);
    pair.wait_for_leader(&standby);
    pair.plane.cloud.create_group("after-the-release", "10.1.2.3");
    pair.plane.wait_until_synced();
}

/// Law 3: a leader that is paused beyond its lease writes nothing when it continues.
#[test]
fn a_paused_leader_writes_nothing() {
    let mut pair = Pair::start();
    let (leader, standby) = pair.roles();
    pair.get(&leader).signal(Signal::SIGSTOP);
    pair.wait_for_leader(&standby);
    let guid = pair.plane.cloud.create_group("while-the-old-leader-slept", "10.1.2.3");
    pair.plane.wait_until_synced();
    let token = pair.written_token();

    pair.get(&leader).signal(Signal::SIGCONT);
    pair.get(&leader).wait_for("locket-lock.lost-lock");
    pair.plane.cloud.delete_group(&guid);
    pair.plane.wait_until_synced();
    assert_eq!(pair.written_token(), token, "the store was written by another leader");
    assert_eq!(pair.plane.leader().as_deref(), Some(standby.as_str()));
    assert!(pair.get(&leader).is_running());
}

/// Laws 3 and 4: the store keeps the token and the groups across kill -9.
#[test]
fn a_killed_store_keeps_token_and_groups() {
    let mut pair = Pair::start();
    let (token, names) = (pair.written_token(), pair.plane.stored_names());
    let generation = pair.plane.store_status()["generation"].clone();
    pair.plane.policy_store.kill();
    pair.plane.restart_store();
    assert_eq!(pair.plane.stored_names(), names);
    assert_eq!(pair.written_token(), token);
    assert_eq!(pair.plane.store_status()["generation"], generation);
    pair.plane.cloud.create_group("after-the-store-came-back", "10.1.2.3");
    pair.plane.wait_until_synced();
}

/// The syncer survives an outage of the lock server and continues afterwards.
#[test]
fn an_outage_of_the_lock_server_stops_writes_but_not_the_process() {
    let mut pair = Pair::start();
    let (leader, _) = pair.roles();
    pair.plane.lock_server.process.kill();
    pair.get(&leader).wait_for("locket-lock.lost-lock");
    pair.plane.cloud.create_group("while-the-lock-server-was-away", "10.1.2.3");
    pair.plane.lock_server.restart();
    pair.plane.wait_until_synced();
    assert!(pair.syncers.values_mut().all(Process::is_running));
}
