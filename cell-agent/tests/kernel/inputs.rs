//! Failures of the agent's inputs, during which containers keep their rules: laws 4, 5
//! and 7.

use std::{env, fs, time::Duration};

use proto::cell_v1::EffectiveRulesRequest;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, listing},
    lab::{Lab, lab},
    packets::{Fate, connection},
    planes::{Plane, Programs, on_all_planes_at_once, on_every_plane},
    stage::{C1, C2, CLOSED, OPEN, OTHER, cell, lose_the_groups, restart_unknowing},
};

#[test]
fn a_torn_metadata_store_changes_nothing_and_is_reported() {
    on_every_plane(torn);
}

async fn torn(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    for torn in ["{\"c1\":{\"handle\":\"c1\",", "", "[1]"] {
        fs::write(cell.store_path(), torn).unwrap();
        let told = || {
            let text = cell.log.text();
            text.matches("container-store-unreadable.keeping-last-good-state").count()
        };
        eventually("the torn store is told", async || told() > 0).await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{torn:?}");
        let (status, body) = cell.force("c1").await;
        assert_eq!(status, 500, "{body}");
        assert!(body.starts_with("failed to update asgs for container c1: "), "{body}");
    }
    cell.add_app("c1", "10.255.1.1", "s1").await;
    assert!(cell.log.text().contains("container-store-readable-again"));
    cell.stop().await;
}

#[test]
fn a_restart_touches_nothing_that_is_right() {
    on_every_plane(restarted);
}

async fn restarted(plane: Plane, lab: Lab) {
    let programs = Programs::new(plane, "[ -z \"$input\" ] || echo \"$0 $*\" >> writes", "");
    let (mut cell, prober) = cell(&lab, programs.config(json!({}))).await;
    cell.settled().await;
    let applied = |cell: &Cell| cell.log.text().matches("rules-applied").count();
    let before = (programs.lines("writes"), applied(&cell), plane.ours());
    cell.stop().await;
    cell.start().await;
    cell.add_app("c1", "10.255.1.1", "s1").await;
    eventually("the store is watched", async || cell.status().await.store_connected).await;
    let after = (programs.lines("writes"), applied(&cell), plane.ours());
    assert_eq!(after, before, "the kernel was written to");
    cell.stop().await;
    // The change during the outage is the only change.
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16"), all("10.2.0.0/16")])]);
    cell.start().await;
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
    assert!(programs.lines("writes") > before.0, "writes are counted");
    cell.stop().await;
}

#[test]
fn a_cell_fails_static_while_the_store_is_down() {
    on_every_plane(without_a_store);
}

async fn without_a_store(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    cell.settled().await;
    cell.stop().await;
    cell.store.down().await;
    cell.shorten_force_timeout();
    cell.start().await;
    assert_eq!(cell.force("c1").await.0, 200);
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    assert!(!cell.status().await.store_connected);
    // A known space goes on working; an unknown one is denied, with the reason.
    cell.add_app("c2", "10.255.1.2", "s1").await;
    assert_eq!(prober.probe(C2, OPEN, connection(80)).await, Fate::Accept);
    cell.delete_entry("c2");
    cell.plug("c3", "10.255.1.2");
    cell.add_entry("c3", "10.255.1.2", &app("s2"));
    let (status, body) = cell.force("c3").await;
    assert_eq!(status, 500);
    assert!(body.contains("has not sent the security groups of space s2"), "{body}");
    assert_eq!(prober.probe(C2, OPEN, connection(80)).await, Fate::Reject);
    // A kernel without the rules gets them back from disk.
    let whole = plane.ours();
    plane.wreck();
    eventually("healed", async || plane.ours() == whole).await;
    cell.store.up().await;
    cell.store.set(vec![global("g1", vec![all("10.2.0.0/16")])]);
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
    assert_eq!(prober.probe(C2, OTHER, connection(80)).await, Fate::Accept);
    cell.stop().await;
}

#[test]
fn a_store_that_lost_its_data_takes_nothing_away() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.store.forget();
        let told = async || cell.log.text().contains("policy-store-is-empty");
        eventually("the empty store is told", told).await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        cell.store.set(vec![global("g1", vec![all("10.2.0.0/16")])]);
        eventually("the next real state counts", async || listing().contains("10.2.0.0/16")).await;
        cell.stop().await;
    });
}

#[test]
fn without_its_state_the_agent_keeps_what_the_kernel_has() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.shorten_force_timeout();
        restart_unknowing(&mut cell, lose_the_groups).await;
        assert!(cell.log.text().contains("state-unreadable"));
        let (status, body) = cell.force("c1").await;
        assert_eq!(status, 500);
        assert!(body.ends_with("c1: no security groups are known yet"), "{body}");
        let request = EffectiveRulesRequest { handle: "c1".to_owned() };
        let told = cell.client().effective_rules(request).await.unwrap_err();
        assert!(told.message().contains("the kernel keeps what it has"), "{told}");
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        cell.store.up().await;
        eventually("the store is watched", async || cell.status().await.store_connected).await;
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

/// Law 5: an agent that cannot read its containers at the start keeps their rules.
#[test]
fn a_metadata_store_torn_at_the_start_removes_no_rules() {
    on_every_plane(torn_at_the_start);
}

async fn torn_at_the_start(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    let tear = async |cell: &mut Cell| fs::write(cell.store_path(), "{\"c1\":{").unwrap();
    restart_unknowing(&mut cell, tear).await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject);
    cell.add_app("c1", "10.255.1.1", "s1").await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    cell.stop().await;
}

/// Law 6: reported by name, and once.
#[test]
fn an_unreadable_rule_is_reported_when_it_appears() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        let bad = all("10.9.0.0/255.255.0.0,10.1.0.0/16,x");
        let told = || {
            let text = cell.log.text();
            text.lines().filter(|line| line.contains("rule-isolated")).count()
        };
        for (more, expected) in [("10.2.0.0/16", 1), ("10.3.0.0/16", 1)] {
            cell.store.set(vec![bound("g1", "s1", vec![all(more), bad.clone()])]);
            cell.caught_up().await;
            assert_eq!(told(), expected);
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        }
        let line = cell.log.data_of("cfnetworking.vxlan-policy-agent.rule-isolated").unwrap();
        assert_eq!((&line["security-group"], &line["rule"]), (&json!("g1"), &json!(1)));
        assert_eq!(line["containers"], json!(["c1"]));
        let error = "destination \"10.9.0.0/255.255.0.0\" is not a CIDR with a prefix length";
        assert_eq!(line["error"], json!(format!("{error}, and 1 more")));
        // After a repair and a new error, the rule is reported again.
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
        cell.caught_up().await;
        cell.store.set(vec![bound("g1", "s1", vec![all("10.2.0.0/16"), bad.clone()])]);
        cell.caught_up().await;
        assert_eq!(told(), 2);
        cell.stop().await;
    });
}

/// The number of changes, and the duration of all of them.
fn burst() -> (u32, Duration) {
    let changes = env::var("PORTCULLIS_BURST_CHANGES").map_or(1_000, |text| text.parse().unwrap());
    (changes, Duration::from_millis(10) * changes)
}

#[test]
fn a_thousand_changes_in_ten_seconds_end_in_the_last_one() {
    on_all_planes_at_once(thousand_changes);
}

async fn thousand_changes(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    let applied = |cell: &Cell| cell.log.text().matches("rules-applied").count();
    let before = applied(&cell);
    let (changes, length) = burst();
    let mut every = interval(length / changes);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    for n in 0..changes {
        every.tick().await;
        // One destination stays allowed all the time, the other changes.
        let more = format!("10.{}.0.0/16", 2 + n % 2);
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16"), all(&more)])]);
        if n % 100 == 99 {
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "change {n}");
            assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject, "change {n}");
        }
    }
    let took = began.elapsed();
    let last = Instant::now();
    cell.caught_up().await;
    let behind = last.elapsed();
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16"), all("10.2.0.0/16")])]);
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
    assert_eq!(prober.probe(C1, "10.3.0.1".parse().unwrap(), connection(80)).await, Fate::Reject);
    let transactions = applied(&cell) - before;
    println!(
        "{plane:?}: {changes} changes in {took:?} were {transactions} transactions, the last in \
         force after {behind:?}"
    );
    assert!(behind < Duration::from_secs(5), "{behind:?}");
    assert!(transactions > 10 && transactions <= usize::try_from(changes).unwrap() + 1);
    cell.stop().await;
}
