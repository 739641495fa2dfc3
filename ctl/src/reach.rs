//! Questions to the policy store about connections: `explain --space` and `who-can-reach`.

use proto::policy_v1::{
    ExplainRequest, ExplainResponse, Lifecycle, ReachRequest, SourcedRule,
    explain_response::Remark, reach_response::Group,
};

use crate::{
    cell::Written,
    connect::Connection,
    field::{Field, Tone},
    report::{Report, warn},
    stores::foundation,
    target::Target,
};

/// Exit status with `--exit-code` if the connection is denied.
const DENIED: u8 = 3;

fn verdict(answer: &ExplainResponse) -> &'static str {
    match (answer.allowed, answer.logged) {
        (true, true) => "allowed and logged",
        (true, false) => "allowed",
        (false, _) => "denied",
    }
}

pub(crate) const EXPLAINED: &[Field<ExplainResponse>] = &[
    Field::toned(Field::text("verdict", |answer| verdict(answer).to_owned()), |answer| {
        if answer.allowed { Tone::Good } else { Tone::Bad }
    }),
    Field::text("reason", |answer| answer.reason.clone()),
    Field::text("rule", |answer| answer.decisive.clone().map(line).unwrap_or_default()),
    Field::texts("not_enforced", |answer| remarks(&answer.not_enforced)),
    Field::texts("near_misses", |answer| remarks(&answer.near_misses)),
    Field::integer("generation", |answer| Some(answer.generation)),
];

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
];

/// Explains a connection of the containers of a space. Also returns the exit status for the
/// verdict.
pub(crate) async fn explain(
    connection: &Connection,
    space: String,
    staging: bool,
    target: Target,
) -> anyhow::Result<(Report, u8)> {
    let lifecycle = if staging { Lifecycle::Staging } else { Lifecycle::Running };
    let request = ExplainRequest {
        space_guid: space,
        lifecycle: lifecycle.into(),
        connection: Some(target.into()),
        ..ExplainRequest::default()
    };
    let space = request.space_guid.clone();
    let call = async |channel| foundation(channel).explain(request.clone()).await;
    let answer = connection.ask_a_store("explain", call).await?.into_inner();
    if !answer.space_known {
        warn(&format!(
            "no security group is bound to the space {space:?}: either only global groups apply \
             to the space, or the space does not exist"
        ));
    }
    let code = if answer.allowed { 0 } else { DENIED };
    Ok((Report::brief(EXPLAINED, answer), code))
}

/// Lists the groups that allow a connection.
pub(crate) async fn who_can_reach(
    connection: &Connection,
    target: Target,
) -> anyhow::Result<Report> {
    let request = ReachRequest { connection: Some(target.into()) };
    let call = async |channel| foundation(channel).reach(request.clone()).await;
    let answer = connection.ask_a_store("who-can-reach", call).await?.into_inner();
    Ok(Report::list(REACHING, answer.groups))
}

fn written(rule: SourcedRule) -> Written {
    let SourcedRule { rule, group_guid, group_name, rule_index } = rule;
    let source = proto::cell_v1::RuleSource { group_guid, group_name, rule_index };
    Written::new(rule, Some(source), String::new())
}

fn line(rule: SourcedRule) -> String {
    written(rule).line()
}

fn words(rule: SourcedRule) -> String {
    written(rule).words()
}

fn remarks(remarks: &[Remark]) -> Vec<String> {
    let remark = |remark: &Remark| {
        format!("{}: {}", line(remark.rule.clone().unwrap_or_default()), remark.reason)
    };
    remarks.iter().map(remark).collect()
}
