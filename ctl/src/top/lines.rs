//! The lines of the plain output.

use super::{
    data::Change,
    format::{ago, counts, millis, packets, plural, span},
    model::{Data, Leader, Moment},
};

/// The lock's owner, with its token and the time since when it holds the lock.
pub(crate) fn leader(leader: &Leader, now: Moment) -> String {
    let token = leader.owner.token.map(|token| format!(" (token {token})")).unwrap_or_default();
    let at_least = if leader.is_witnessed { "" } else { "at least " };
    let age = span(now.saturating_sub(leader.since));
    format!("{}{token} for {at_least}{age}", leader.owner.name)
}

/// One line with the state of everything.
pub(crate) fn status_line(data: &Data, now: Moment) -> String {
    let mut parts = Vec::new();
    match (data.store(), data.store_age(now)) {
        (Some(store), _) => {
            parts.push(format!("generation {}", store.generation));
            let standing = data.leader().map(|held| leader(held, now));
            parts.push(format!("leader {}", standing.as_deref().unwrap_or("none")));
            parts.push(format!("watermark {}", ago(data.age(store.watermark, now))));
            parts.push(format!("synced {}", ago(data.age(store.synced_at, now))));
            let census = data.census(now);
            let behind = census.behind();
            parts.push(format!(
                "cells {}/{} connected, {behind} behind",
                census.connected, census.cells
            ));
            parts.push(format!("{} isolated", plural(census.isolated_rules, "rule")));
            let traffic = data.traffic();
            if traffic.is_known {
                let shown = [("allowed", traffic.allowed), ("denied", traffic.denied)];
                parts.extend(
                    shown.map(|(what, (number, rate))| format!("{what} {}", packets(number, rate))),
                );
            }
        }
        (None, _) => parts.push("no data of the policy store yet".to_owned()),
    }
    parts.extend(data.last_complete_change().map(|change| {
        let total = millis(change.hops(None).total());
        format!("change {} {} in {total}", change.generation, counts(change))
    }));
    parts.extend(data.problems(now));
    parts.join(" | ")
}

/// The line of a change that all cells enforce.
pub(crate) fn change_line(change: &Change) -> String {
    let hops = change.hops(None);
    let known = hops.all().into_iter().filter_map(|(name, time)| Some((name, time?)));
    let mut parts: Vec<String> =
        known.map(|(name, time)| format!("{name} {}", millis(time))).collect();
    parts.push(format!("on {} of {} cells", change.enforced, change.cells));
    parts.push(format!("total {}", millis(hops.total())));
    let names: Vec<String> =
        change.groups.iter().take(3).map(|group| format!("{}{}", group.sign, group.name)).collect();
    format!(
        "change {} {} [{}]: {}",
        change.generation,
        counts(change),
        names.join(" "),
        parts.join(", ")
    )
}
