//! Mass removals that a policy store refused.

use anyhow::{anyhow, bail};
use proto::policy_v1::{AcceptRemovalRequest, RefusedRemoval};
use tonic::Code;

use crate::{
    connect::Connection,
    field::instant,
    refused::code,
    report::warn,
    stores::{Answered, foundation},
};

/// Groups that a line names.
const NAMED: usize = 5;

/// A sentence with the numbers, the writer and the first groups.
pub(crate) fn sentence(refused: &RefusedRemoval) -> String {
    let RefusedRemoval { removed, stored, owner, .. } = refused;
    let mut text = format!("a list of {owner} would remove {removed} of {stored} groups");
    let named = names(refused);
    if !named.is_empty() {
        text += &format!(": {}", named[..named.len().min(NAMED)].join(", "));
    }
    match removed.saturating_sub(named.len().min(NAMED) as u64) {
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    if let Some(until) = instant(refused.accepted_until) {
        text += &format!("; accepted until {until:.0}");
    }
    text
}

/// Names of the groups that would be removed, as far as the store lists them.
pub(crate) fn names(refused: &RefusedRemoval) -> Vec<String> {
    let groups = refused.groups.iter();
    let name =
        |name: &str, guid: &str| if name.is_empty() { guid.to_owned() } else { name.to_owned() };
    groups.map(|group| name(&group.name, &group.guid)).collect()
}

/// Accepts the removal on each instance that refused it.
pub(crate) async fn accept(
    connection: &Connection,
    removed: u64,
) -> anyhow::Result<RefusedRemoval> {
    let call = async |channel| {
        Ok(foundation(channel).accept_removal(AcceptRemovalRequest { removed }).await?.into_inner())
    };
    let answers = connection.survey("accept removal", call).await?;
    let accepted = answers.into_iter().map(|(address, answer)| {
        (address, answer.map(|answer| answer.refused_removal.unwrap_or_default()))
    });
    settle(accepted.collect())
}

/// An instance that refused no such removal has nothing to accept: that is an error only if no
/// other instance accepts. Other errors are warnings then.
fn settle(answers: Vec<Answered<RefusedRemoval>>) -> anyhow::Result<RefusedRemoval> {
    let (mut accepted, mut failed) = (None, Vec::new());
    for (address, answer) in answers {
        match answer {
            Ok(answer) => accepted = Some(answer),
            Err(error) => failed.push((address, error)),
        }
    }
    let Some(accepted) = accepted else {
        match failed.into_iter().next() {
            Some((address, error)) => {
                return Err(error.context(anyhow!("policy store {address}")));
            }
            None => bail!("accept removal: there is no policy store"),
        }
    };
    let others = failed.iter().filter(|(_, error)| code(error) != Some(Code::FailedPrecondition));
    others.for_each(|(address, error)| warn(&format!("policy store {address}: {error:#}")));
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::change::Group;
    use tonic::Status;

    use super::*;
    use crate::refused::Refused;

    #[test]
    fn a_sentence_names_the_first_groups() {
        let group = |name: &str| Group { name: name.to_owned(), ..Group::default() };
        let refused = RefusedRemoval {
            owner: "syncer-1".to_owned(),
            removed: 3,
            stored: 4,
            groups: vec![group("a"), group("b"), group("c")],
            ..RefusedRemoval::default()
        };
        let text = "a list of syncer-1 would remove 3 of 4 groups: a, b, c";
        assert_eq!(sentence(&refused), text);
        let many = RefusedRemoval {
            removed: 60,
            groups: (0..20).map(|n| group(&n.to_string())).collect(),
            accepted_until: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
            ..refused
        };
        let text = "a list of syncer-1 would remove 60 of 4 groups: 0, 1, 2, 3, 4 and 55 more; \
                    accepted until 1970-01-01T00:01:00Z";
        assert_eq!(sentence(&many), text);
    }

    #[test]
    fn one_instance_that_accepts_is_sufficient() {
        let refused = |code| Err(anyhow::Error::new(Refused::new(&Status::new(code, "sentence"))));
        let at = |address: &str, answer| (address.to_owned(), answer);
        let accepted = RefusedRemoval { removed: 60, ..RefusedRemoval::default() };
        let answers = vec![at("a", refused(Code::FailedPrecondition)), at("b", Ok(accepted))];
        assert_eq!(settle(answers).unwrap().removed, 60);
        let error = settle(vec![at("a", refused(Code::FailedPrecondition))]).unwrap_err();
        assert_eq!(format!("{error:#}"), "policy store a: sentence");
    }
}
