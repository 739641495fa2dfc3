//! Prints the chains of the iptables plane as iptables does, for a cell where the CNI
//! plugin has created its chains for every container.

use std::{collections::BTreeMap, fmt::Write as _};

use model::ids::ContainerHandle;

use super::Format;
use crate::{
    plan::Ruleset,
    plane::{
        TO_STRING,
        iptables::{
            batch::Saved,
            chains::Family,
            render::{Chain, Filter, render},
            spelling::Spellings,
        },
    },
};

/// Containers without a chain, with the reason.
type Waiting = Vec<(ContainerHandle, String)>;

/// The text for one family, or for the families of the containers' addresses.
pub(super) fn iptables(
    ruleset: &Ruleset,
    only: Option<Family>,
    format: Format,
) -> (String, Waiting) {
    let (mut text, mut waiting) = (String::new(), Waiting::new());
    let families = match only {
        Some(family) => vec![family],
        None => Family::ALL.to_vec(),
    };
    let mut sections: Vec<(Family, Filter)> =
        families.into_iter().map(|family| (family, render(ruleset, family))).collect();
    if only.is_none() {
        for (family, filter) in &mut sections {
            filter.chains.retain(|chain| family_of(ruleset, chain) == *family);
        }
        sections.retain(|(family, filter)| *family == Family::V4 || !filter.chains.is_empty());
        if sections.len() == 2 && sections[0].1.chains.is_empty() {
            sections.remove(0);
        }
    }
    for (family, filter) in sections {
        let (chains, without) = placed(&filter, family);
        writeln!(text, "# {family}").expect(TO_STRING);
        print(&mut text, &chains, format);
        waiting.extend(without);
    }
    waiting.sort();
    waiting.dedup();
    (text, waiting)
}

/// The family in which the CNI plugin creates chains: IPv4 unless the address says
/// otherwise.
fn family_of(ruleset: &Ruleset, chain: &Chain) -> Family {
    let planned = ruleset.containers.get(&chain.handle);
    planned.and_then(|planned| planned.address).map_or(Family::V4, Family::of)
}

/// The rules of each chain, by name.
fn placed(filter: &Filter, family: Family) -> (BTreeMap<&str, Vec<String>>, Waiting) {
    let mut plugin = String::new();
    for Chain { names, .. } in &filter.chains {
        for name in [&names.netout, &names.log, &names.limit_log] {
            writeln!(plugin, ":{name} - [0:0]").expect(TO_STRING);
        }
    }
    let step = Saved::parse(&plugin).step(filter, &Spellings::of(family));
    let mut chains = BTreeMap::new();
    for chain in filter.chains.iter().filter(|chain| !step.waiting.contains_key(&chain.handle)) {
        let names = &chain.names;
        chains.insert(&*names.asg, chain.body.rules().map(str::to_owned).collect());
        let parent = vec![format!("-j {}", names.asg), family.reject().to_owned()];
        chains.insert(&*names.netout, parent);
    }
    (chains, step.waiting.into_iter().collect())
}

fn print(text: &mut String, chains: &BTreeMap<&str, Vec<String>>, format: Format) {
    if format == Format::Save {
        text.push_str("*filter\n");
    }
    for name in chains.keys() {
        let declared = match format {
            Format::Save => writeln!(text, ":{name} - [0:0]"),
            Format::Rules => writeln!(text, "-N {name}"),
        };
        declared.expect(TO_STRING);
    }
    for (name, rules) in chains {
        for rule in rules {
            writeln!(text, "-A {name} {rule}").expect(TO_STRING);
        }
    }
    if format == Format::Save {
        text.push_str("COMMIT\n");
    }
}
