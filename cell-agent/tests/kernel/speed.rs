//! Duration of changes at the size of a full cell. The limits are loose, since tests
//! run unoptimised and in parallel; the numbers are printed.

use std::time::Duration;

use tokio::time::Instant;

use proto::policy_v1::{Rule, SecurityGroup};
use serde_json::json;

use crate::{
    agent::{Cell, all, app, bound, global, listing, rule},
    lab::lab,
};

/// Same mix as in the original's measurement: 60 % host and port, 20 % a network and a
/// port, 20 % ranges (docs/compatibility/vxlan-policy-agent.md#baseline).
fn rules(group: usize, count: usize) -> Vec<Rule> {
    let rules = (0..count).map(|n| match n % 5 {
        0..=2 => {
            rule("tcp", &format!("10.{group}.{}.{}", n / 250, n % 250 + 1), &(1000 + n).to_string())
        }
        3 => rule("udp", &format!("11.{group}.{}.{}/29", n / 30, n % 30 * 8), "53"),
        _ => all(&format!(
            "12.{group}.{}.{}-12.{group}.{}.{}",
            n / 30,
            n % 30 * 8,
            n / 30,
            n % 30 * 8 + 5
        )),
    });
    rules.collect()
}

fn groups(count: usize) -> Vec<SecurityGroup> {
    let spaces = (1..=25)
        .map(|space| bound(&format!("g{space}"), &format!("s{space}"), rules(space, count)));
    [global("g0", rules(0, count))].into_iter().chain(spaces).collect()
}

#[test]
fn a_full_cell_changes_within_a_second() {
    lab(async |_lab| {
        for count in [25, 250] {
            let mut cell = Cell::new(json!({"force_timeout": "30s"})).await;
            cell.store.set(groups(count));
            cell.change_store(|entries| {
                for n in 1..=250 {
                    let handle = format!("c{n}");
                    let ip = format!("10.255.1.{n}");
                    let space = format!("s{}", n % 25 + 1);
                    let entry = json!({"handle": handle, "ip": ip, "metadata": app(&space)});
                    entries.insert(handle, entry);
                }
            });
            let began = Instant::now();
            cell.start().await;
            assert_eq!(cell.force("c1").await.0, 200);
            let first = began.elapsed();
            cell.settled().await;
            let mut changed = groups(count);
            changed[0].rules.push(all("192.0.2.1"));
            cell.store.set(changed);
            let began = Instant::now();
            cell.caught_up().await;
            let one_rule = began.elapsed();
            assert!(listing().contains("192.0.2.1"));
            let began = Instant::now();
            cell.add_app("new", "10.255.2.1", "s3").await;
            let one_container = began.elapsed();
            let applied =
                cell.log.data_of("cfnetworking.vxlan-policy-agent.rules-applied").unwrap();
            println!(
                "250 containers x {} rules: start {first:?}, one rule {one_rule:?}, one container \
                 {one_container:?}; last {applied}",
                2 * count
            );
            let most = Duration::from_secs(10);
            assert!(first < most && one_rule < most && one_container < most);
            cell.stop().await;
            crate::lab::sh("nft delete table inet portcullis");
        }
    });
}
