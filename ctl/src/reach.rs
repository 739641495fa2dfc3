//! `who-can-reach`: the groups that allow a connection.

use proto::policy_v1::{
    Lifecycle, ReachRequest, SourcedRule,
    reach_response::{App, Group},
};

use crate::{
    cell::Written, connect::Connection, field::Field, report::Report, stores::foundation,
    target::Target,
};

pub(crate) const REACHING: &[Field<Group>] = &[
    Field::text("name", |group| group.name.clone()),
    Field::text("guid", |group| group.guid.clone()),
    Field::boolean("running_everywhere", |group| group.running_default),
    Field::texts("running", |group| group.running_space_guids.clone()),
    Field::boolean("staging_everywhere", |group| group.staging_default),
    Field::texts("staging", |group| group.staging_space_guids.clone()),
    Field::texts("rules", |group| {
        let rules = group.rules.iter();
        rules.map(|rule| format!("{}: {}", rule.rule_index, words(rule.clone()))).collect()
    }),
    Field::texts("apps", |group| group.apps.iter().map(app).collect()),
    Field::wide(Field::integer("apps_total", |group| Some(group.apps_total))),
];

/// `APP (2 containers)`.
fn app(app: &App) -> String {
    let staging = if app.lifecycle() == Lifecycle::Staging { "staging " } else { "" };
    format!("{} ({} {staging}containers)", app.app_guid, app.containers)
}

/// Lists the groups that allow a connection.
pub(crate) async fn who_can_reach(
    connection: &Connection,
    target: Target,
) -> anyhow::Result<Report> {
    let request = ReachRequest { connection: Some(target.into()) };
    let call = async |channel| Ok(foundation(channel).reach(request.clone()).await?.into_inner());
    let answers = connection.ask_stores("who-can-reach", call).await?;
    let newest = answers.iter().map(|answer| answer.generation).max();
    let mut groups: Vec<Group> = Vec::new();
    for answer in answers.into_iter().filter(|answer| Some(answer.generation) == newest) {
        for group in answer.groups {
            match groups.iter_mut().find(|known| known.guid == group.guid) {
                Some(known) => merge(known, group),
                None => groups.push(group),
            }
        }
    }
    Ok(Report::list(REACHING, groups))
}

/// Adds the apps that another instance knows. The same app may have containers on cells of both.
fn merge(known: &mut Group, other: Group) {
    for app in other.apps {
        let same = |known: &&mut App| {
            known.app_guid == app.app_guid
                && known.space_guid == app.space_guid
                && known.lifecycle == app.lifecycle
        };
        match known.apps.iter_mut().find(same) {
            Some(known) => known.containers += app.containers,
            None => known.apps.push(app),
        }
    }
    known.apps_total = known.apps_total.max(other.apps_total).max(known.apps.len() as u64);
}

pub(crate) fn written(rule: SourcedRule) -> Written {
    let SourcedRule { rule, group_guid, group_name, rule_index } = rule;
    let source = proto::cell_v1::RuleSource { group_guid, group_name, rule_index };
    Written::new(rule, Some(source), String::new())
}

fn words(rule: SourcedRule) -> String {
    written(rule).words()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_of_two_instances_are_added() {
        let app = |guid: &str, containers| App {
            app_guid: guid.to_owned(),
            containers,
            ..App::default()
        };
        let group = |apps: Vec<App>| Group { apps_total: 1, apps, ..Group::default() };
        let mut known = group(vec![app("a", 1)]);
        merge(&mut known, group(vec![app("b", 2), app("a", 3)]));
        assert_eq!(known.apps, [app("a", 4), app("b", 2)]);
        assert_eq!(known.apps_total, 2);
    }
}
