//! Duration of WhatIf with 13,500 groups of 20 rules, and of a set where every space has other
//! groups. Prints a table; see docs/performance.md.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, for people")]

use std::sync::Arc;

use model::{
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};
use policy_store::groups::{
    content::Content,
    decide::State,
    history::Past,
    snapshot::{Entry, Snapshot},
    what_if::{Change, Width, what_if},
};
use tokio::time::Instant;

const GROUPS: usize = 13_500;
const RULES: usize = 20;
const SPACES: usize = 8_000;
/// Limit of differences in an answer.
const LISTED: usize = 1_000;
/// Limit of areas of a difference, and of all that an answer lists.
const AREAS: [usize; 2] = [1_000, 100_000];
/// Number of measurements of each case.
const RUNS: usize = 5;

fn space(number: usize) -> SpaceGuid {
    SpaceGuid::parse(&format!("5f0e8a3c-6b1d-4f27-9a52-{:012}", number % SPACES)).unwrap()
}

fn rule(destination: String, ports: &str) -> RuleSpec {
    let (protocol, ports) = ("tcp".to_owned(), ports.to_owned());
    RuleSpec { protocol, destination, ports, ..RuleSpec::default() }
}

/// A group that is bound to two spaces for apps and to one for staging; each 100th is global.
fn stored(index: usize) -> StoredGroup {
    let (high, low) = (index / 250, index % 250);
    let rule = |nth: usize| match nth % 3 {
        0 => rule(format!("10.{high}.{low}.{nth}"), "443,8080-8090"),
        1 => rule(format!("10.{high}.{low}.0/24"), &format!("{}", 1_000 + nth)),
        _ => rule(format!("172.16.{low}.{nth}-172.16.{low}.250"), "5432"),
    };
    let spaces = |numbers: &[usize]| numbers.iter().map(|number| space(*number)).collect();
    let everywhere = index.is_multiple_of(100);
    let group = SecurityGroup {
        guid: GroupGuid::parse(&format!("0d9c7b52-3e1a-4c60-8f44-{index:012}")).unwrap(),
        name: format!("security-group-{index}"),
        rules: (0..RULES).map(rule).collect(),
        running: Scope { everywhere, spaces: spaces(&[index * 7, index * 7 + 131]) },
        staging: Scope { everywhere: false, spaces: spaces(&[index * 7 + 3]) },
    };
    StoredGroup { id: GroupId(index as u64 + 1), group: Arc::new(group) }
}

fn snapshot(groups: &[StoredGroup]) -> Snapshot {
    let entry = |stored: &StoredGroup| {
        let content = Content::from(SecurityGroup::clone(&stored.group));
        let hash = stored.group.content_hash();
        Arc::new(Entry::new(stored.id, &content, hash, None, SpaceGuid::clone))
    };
    Snapshot::new(State::default(), groups.iter().map(entry).collect(), Past::default())
}

fn changes(groups: &[StoredGroup]) -> Vec<(&'static str, Change)> {
    let change = |stored: &StoredGroup, edit: &dyn Fn(&mut SecurityGroup)| {
        let mut after = SecurityGroup::clone(&stored.group);
        edit(&mut after);
        Change { before: Some(stored.clone()), after: Some(Arc::new(after)) }
    };
    let add = |spec: RuleSpec| move |group: &mut SecurityGroup| group.rules.push(spec.clone());
    let (one, global) = (&groups[1], &groups[0]);
    let deleted = |stored: &StoredGroup| Change { before: Some(stored.clone()), after: None };
    vec![
        ("one space: add a /8", change(one, &add(rule("10.0.0.0/8".to_owned(), "1-65535")))),
        ("one space: delete", deleted(one)),
        ("all spaces: add a /16", change(global, &add(rule("10.1.0.0/16".to_owned(), "443")))),
        ("all spaces: add everything", {
            let all = RuleSpec { protocol: "all".to_owned(), ..rule("0.0.0.0/0".to_owned(), "") };
            change(global, &add(all))
        }),
        ("all spaces: bind a group", change(one, &|group| group.running.everywhere = true)),
        ("all spaces: delete", deleted(global)),
    ]
}

fn main() {
    let groups: Vec<StoredGroup> = (0..GROUPS).map(stored).collect();
    let snapshot = snapshot(&groups);
    println!("{GROUPS} groups x {RULES} rules, {SPACES} spaces");
    println!("{:28} {:>9} {:>12} {:>8}", "change", "median", "differences", "areas");
    for (name, change) in changes(&groups) {
        let mut times = Vec::new();
        let (mut differences, mut areas) = (0, 0);
        for _ in 0..RUNS {
            let began = Instant::now();
            let found = what_if(&snapshot, change.clone(), Width::default());
            // As many as an answer lists.
            let (mut listed, mut counted) = (0, 0);
            for of in found.differences.iter().take(LISTED) {
                if listed >= AREAS[1] {
                    break;
                }
                for count in [of.opens().areas().len(), of.closes().areas().len()] {
                    listed += count.min(AREAS[0]);
                    counted += count;
                }
            }
            areas = counted;
            differences = found.differences.len();
            times.push(began.elapsed());
        }
        times.sort_unstable();
        println!("{name:28} {:>6} ms {differences:>12} {areas:>8}", times[RUNS / 2].as_millis());
    }
}
