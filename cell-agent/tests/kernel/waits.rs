//! How long the CNI plugin waits for the rules of a new container.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::{
    agent::{Cell, all, bound},
    lab::lab,
};

const CONTAINERS: usize = 200;
/// Far longer than any wait that ends because the rules are in force.
const DEADLINE: Duration = Duration::from_secs(3);
/// Limit of the 95th percentile: the goal is 100 ms, but the machine may be loaded.
const USUAL: Duration = Duration::from_millis(500);

/// The store confirms the subscription to a new space with a generation that the agent
/// already has. No container start may wait for another generation.
#[test]
fn containers_in_new_spaces_do_not_wait_for_the_deadline() {
    lab(async |_lab| {
        let config = json!({"force_timeout": format!("{}s", DEADLINE.as_secs())});
        let mut cell = Cell::running(config).await;
        let group = |n| bound(&format!("g{n}"), &format!("s{n}"), vec![all("10.1.0.0/16")]);
        cell.store.set((0..CONTAINERS).map(group).collect());
        let mut waits = Vec::new();
        for n in 0..CONTAINERS {
            let address = format!("10.255.{}.{}", 1 + n / 100, 1 + n % 100);
            let began = Instant::now();
            cell.add_app(&format!("c{n}"), &address, &format!("s{n}")).await;
            waits.push(began.elapsed());
        }
        waits.sort_unstable();
        let (usual, worst) = (waits[CONTAINERS * 95 / 100], waits[CONTAINERS - 1]);
        println!(
            "{CONTAINERS} starts: median {:?}, p95 {usual:?}, worst {worst:?}",
            waits[CONTAINERS / 2]
        );
        let late = waits.iter().filter(|wait| **wait >= DEADLINE).count();
        assert_eq!(late, 0, "starts that waited until the deadline; worst {worst:?}");
        assert!(usual < USUAL, "the 95th percentile is {usual:?}");
        assert!(!cell.log.text().contains("force-asgs-for-container-timed-out"));
        cell.stop().await;
    });
}

/// A wait that times out logs the container and the missing condition.
#[test]
fn a_wait_that_ends_by_its_deadline_is_logged_and_counted() {
    lab(async |_lab| {
        let mut cell = Cell::running(json!({"force_timeout": "200ms"})).await;
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
        cell.caught_up().await;
        cell.store.down().await;
        cell.plug("c1", "10.255.1.1");
        cell.add_entry("c1", "10.255.1.1", &crate::agent::app("s1"));
        let (status, body) = cell.force("c1").await;
        assert_eq!(status, 500, "{body}");
        let source = "cfnetworking.vxlan-policy-agent.force-asgs-for-container-timed-out";
        let told = cell.log.data_of(source).expect("the deadline is logged");
        assert_eq!(told["container"], "c1");
        assert!(told["missing"].as_str().unwrap().contains("space s1"), "{told}");
        cell.stop().await;
    });
}
