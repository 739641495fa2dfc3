//! The normal large case: 13,500 groups with 40,000 bindings. Not timed.

use model::group::{Scope, SecurityGroup};
use proto::policy_v1::StoredGroup;
use tonic::Code;

use crate::support::{
    client::{Cell, decoded, list_all, replace},
    http::{Poller, expected as expected_over_http},
    sets::{Set, group, guid, replacement, set, space},
    site::Served,
};

const GROUPS: usize = 13_500;
const SPACES: usize = 8_000;

/// Three bindings per group, minus some.
fn landscape() -> Set {
    let bound = |index: usize| {
        let spaces = |count: usize, seed: usize| Scope {
            everywhere: false,
            spaces: (0..count)
                .map(|nth| space(&format!("space-{}", (index * 7 + nth * 131 + seed) % SPACES)))
                .collect(),
        };
        SecurityGroup {
            running: spaces(2, 0),
            staging: spaces(1 - usize::from(index.is_multiple_of(27)), 3),
            ..group(&format!("group-{index:05}"), &format!("name-{index}"))
        }
    };
    set((0..GROUPS).map(bound))
}

/// Expected groups of a cell with these spaces.
fn expected(all: &[StoredGroup], spaces: &[&str]) -> Vec<StoredGroup> {
    let concerns = |stored: &&StoredGroup| {
        let group = decoded(stored);
        let mut bound = group.running_space_guids.iter().chain(&group.staging_space_guids);
        bound.any(|space| spaces.contains(&space.as_str()))
    };
    all.iter().filter(concerns).cloned().collect()
}

#[tokio::test]
async fn a_large_landscape_works() {
    let served = Served::start().await;
    let writer = served.writer();
    let mut groups = landscape();
    let bindings: usize =
        groups.values().map(|group| group.running.spaces.len() + group.staging.spaces.len()).sum();
    assert_eq!(bindings, 40_000);
    let committed = replace(&writer, &replacement(&groups)).await.unwrap();
    assert_eq!(committed.added, GROUPS as u64);

    let names: Vec<String> = (0..200).map(|index| format!("space-{}", index * 40)).collect();
    let spaces: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &spaces).await;
    cell.until(1).await;
    let (_, all) = list_all(&served.operator()).await;
    assert_eq!(all.len(), GROUPS);
    assert!(cell.mirror.groups.len() > 200, "{}", cell.mirror.groups.len());
    assert_eq!(cell.mirror.sorted(), expected(&all, &spaces));

    let changed = guid("group-00000");
    std::sync::Arc::make_mut(groups.get_mut(&changed).unwrap()).name.push('!');
    let committed = replace(&writer, &replacement(&groups)).await.unwrap();
    assert_eq!((committed.changed, committed.unchanged), (1, GROUPS as u64 - 1));
    cell.until(2).await;
    let (_, all) = list_all(&served.operator()).await;
    assert_eq!(cell.mirror.sorted(), expected(&all, &spaces));

    // The same after a restart.
    let site = served.stop().await;
    let served = Served::start_at(site).await;
    assert_eq!(list_all(&served.operator()).await, (2, all));
    served.stop().await;
}

/// One group of 10,000 rules, and one rule of 6,000 destinations.
#[tokio::test]
async fn a_large_group_works() {
    let served = Served::start().await;
    let mut many = group("many", "many rules");
    let rule = many.rules[0].clone();
    many.rules = vec![rule; 10_000];
    let mut wide = group("wide", "many destinations");
    let destinations: Vec<String> =
        (0..6_000).map(|index| format!("10.{}.{}.0/24", index / 250, index % 250)).collect();
    wide.rules[0].destination = destinations.join(",");
    for group in [&mut many, &mut wide] {
        group.running.everywhere = true;
    }
    let write = replacement(&set([many, wide]));
    replace(&served.writer(), &write).await.unwrap();
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    cell.until(1).await;
    assert_eq!(cell.mirror.sorted(), list_all(&served.operator()).await.1);
    let rules = &decoded(&cell.mirror.groups["many"]).rules;
    assert_eq!(rules.len(), 10_000);
    for poller in [
        served.poller(),
        Poller::decoding(&served.site, &served.internal, "agent"),
        served.poller(),
    ] {
        let answer = poller.groups("?per_page=5000").await;
        assert!(answer.security_groups == expected_over_http(&write), "not what was written");
    }
    served.stop().await;
}

/// As docs/config/policy-store.md has it.
#[tokio::test]
async fn what_is_beyond_a_limit_is_refused_and_says_so() {
    let served = Served::start().await;
    let writer = served.writer();
    let large = |mebibytes: usize| {
        let mut large = group("large", "1");
        large.rules[0].description = "x".repeat(mebibytes << 20);
        replacement(&set([large]))
    };
    for (mebibytes, code, text) in [
        (17, Code::InvalidArgument, "group large has"),
        (25, Code::OutOfRange, "message length too large"),
    ] {
        let error = replace(&writer, &large(mebibytes)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
    let committed = replace(&writer, &large(15)).await.unwrap();
    assert_eq!((committed.generation, committed.added), (1, 1), "nothing was stored before");
    served.stop().await;
}
