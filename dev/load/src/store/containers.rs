//! Reports of simulated cells: containers with guids of the usual form. Pure: the same
//! numbers give the same reports.

use proto::cell_v1::{Container, Enforcement, IsolatedRule, Lifecycle, RuleSource};
use proto::policy_v1::watch_request::{Counters, Inventory, Report, Step};
use proto::policy_v1::{IsolatedRules, Rule};

use super::data::guid;

/// Maximum number of containers in an Inventory.
const AT_ONCE: usize = 1_000;
/// Every so many cells, one has an isolated rule.
const ISOLATED: usize = 97;
/// Containers of an app.
const PER_APP: u64 = 3;
/// First part of the guids of groups, containers and apps.
const GROUP: u32 = 2;
const HANDLE: u32 = 3;
const APP: u32 = 4;

/// The containers of a cell, in the order of its spaces, and its isolated rules.
pub(super) fn inventory(cell: usize, count: u32, spaces: &[String]) -> Vec<Step> {
    let containers: Vec<Container> =
        (0..u64::from(count)).map(|index| container(cell, count, index, spaces)).collect();
    let mut steps: Vec<Step> = containers
        .chunks(AT_ONCE)
        .map(|part| Inventory { upserted: part.to_vec(), ..Inventory::default() })
        .map(Step::Inventory)
        .collect();
    if let Some(Step::Inventory(first)) = steps.first_mut() {
        first.reset = true;
        first.isolated = Some(isolated(cell));
    }
    steps
}

fn container(cell: usize, count: u32, index: u64, spaces: &[String]) -> Container {
    let number = cell as u64 * u64::from(count) + index;
    let space = spaces.get((index / PER_APP) as usize % spaces.len().max(1));
    let [.., high, low] = (index + 2).to_be_bytes();
    let is_staging = index % 50 == 49;
    let lifecycle = if is_staging { Lifecycle::Staging } else { Lifecycle::Running };
    Container {
        handle: guid(HANDLE, number),
        ip: format!("10.{}.{high}.{low}", 100 + cell % 100),
        space_guid: space.cloned().unwrap_or_default(),
        app_guid: guid(APP, number / PER_APP),
        workload: if is_staging { "staging" } else { "app" }.to_owned(),
        lifecycle: lifecycle.into(),
        enforcement: Enforcement::Enforced.into(),
        rules: 60,
        ..Container::default()
    }
}

fn has_isolated(cell: usize) -> bool {
    cell % ISOLATED == 5
}

fn isolated(cell: usize) -> IsolatedRules {
    if !has_isolated(cell) {
        return IsolatedRules::default();
    }
    let rule = Rule {
        protocol: "tcp".to_owned(),
        destination: "10.0.0.0/255.255.255.0".to_owned(),
        ports: "443".to_owned(),
        ..Rule::default()
    };
    let source =
        RuleSource { group_guid: guid(GROUP, 0), group_name: "group-0".to_owned(), rule_index: 0 };
    let reason = "destination: a netmask is not a prefix length".to_owned();
    let isolated = IsolatedRule { rule: Some(rule), source: Some(source), reason };
    IsolatedRules { rules: vec![isolated], total: 1 }
}

/// The report that a generation is in force.
pub(super) fn report(cell: usize, containers: u32, generation: u64) -> Step {
    let counters = Counters {
        allowed: Some(generation * 1_000 + cell as u64),
        denied: Some(cell as u64 % 7),
        unattributed: 0,
    };
    Step::Report(Report {
        enforced_generation: generation,
        containers,
        isolated_rules: has_isolated(cell).into(),
        counters: Some(counters),
        ..Report::default()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn containers_of_all_cells_differ() {
        let spaces = ["s1".to_owned(), "s2".to_owned()];
        let steps = |cell| inventory(cell, 2_500, &spaces);
        let handles: HashSet<String> = [0, 1, 2]
            .into_iter()
            .flat_map(steps)
            .flat_map(|step| match step {
                Step::Inventory(part) => part.upserted,
                other => panic!("{other:?}"),
            })
            .map(|container| container.handle)
            .collect();
        assert_eq!(handles.len(), 3 * 2_500);
        assert_eq!(steps(0).len(), 3);
        assert!(inventory(0, 0, &spaces).is_empty());
    }
}
