//! `freeze` and `unfreeze`: cells keep the generation that they have.

use clap::Args;
use jiff::Timestamp;
use proto::policy_v1::{FreezeRequest, Release, StatusResponse, UnfreezeRequest};

use crate::{
    confirm::confirm,
    connect::Connection,
    field::{Field, instant},
    report::Report,
    stores::foundation,
    time_point::TimePoint,
};

/// A freeze.
#[derive(Debug, Args)]
pub struct Freeze {
    /// Why: everybody sees it
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// End: a time such as 2026-11-29T12:00:00Z, or 30m, 2h or 7d from now [default: until unfreeze]
    #[arg(long, value_name = "TIME")]
    pub until: Option<TimePoint>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// The end of a freeze.
#[derive(Debug, Args)]
pub struct Unfreeze {
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// The newest generation that cells get; an older store sends the newest one.
pub(crate) fn released(status: &StatusResponse) -> u64 {
    status.release.as_ref().map_or(status.generation, |release| release.generation)
}

/// One line about a freeze; `None` without one.
pub(crate) fn sentence(release: Option<&Release>) -> Option<String> {
    let release = release?;
    let frozen = release.frozen.as_ref()?;
    let until = instant(frozen.until).map(|until| format!(" until {until:.0}")).unwrap_or_default();
    let since = instant(frozen.since).map(|since| format!(" since {since:.0}")).unwrap_or_default();
    let (generation, by, reason) = (release.generation, &frozen.by, &frozen.reason);
    Some(format!("cells keep generation {generation}{since}{until}, by {by}: {reason}"))
}

pub(crate) const RELEASE: &[Field<Release>] = &[
    Field::integer("generation", |release| Some(release.generation)),
    Field::boolean("frozen", |release| release.frozen.is_some()),
    Field::text("reason", |release| {
        release.frozen.as_ref().map(|frozen| frozen.reason.clone()).unwrap_or_default()
    }),
    Field::text("by", |release| {
        release.frozen.as_ref().map(|frozen| frozen.by.clone()).unwrap_or_default()
    }),
    Field::time("since", |release| instant(release.frozen.as_ref()?.since)),
    Field::time("until", |release| instant(release.frozen.as_ref()?.until)),
];

/// Cells keep the generation that they have.
pub(crate) async fn freeze(connection: &Connection, freeze: Freeze) -> anyhow::Result<Report> {
    let Freeze { reason, until, yes } = freeze;
    confirm("Freeze all cells? Changes of security groups do not reach them until unfreeze.", yes)?;
    let until = until.map(|until| timestamp(until.after(Timestamp::now())));
    let request = FreezeRequest { reason, until };
    let answer = connection
        .ask_a_store("freeze", async |channel| foundation(channel).freeze(request.clone()).await)
        .await?;
    Ok(Report::record(RELEASE, answer.into_inner().release.unwrap_or_default()))
}

/// Cells get the newest generation.
pub(crate) async fn unfreeze(
    connection: &Connection,
    unfreeze: Unfreeze,
) -> anyhow::Result<Report> {
    let Unfreeze { reason, yes } = unfreeze;
    confirm("Unfreeze? All cells get the newest security groups at once.", yes)?;
    let request = UnfreezeRequest { reason };
    let answer = connection
        .ask_a_store("unfreeze", async |channel| {
            foundation(channel).unfreeze(request.clone()).await
        })
        .await?;
    Ok(Report::record(RELEASE, answer.into_inner().release.unwrap_or_default()))
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::Frozen;

    use super::*;

    #[test]
    fn a_freeze_is_one_sentence() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let frozen = Frozen {
            reason: "release".into(),
            by: "cn=ann".into(),
            since: time(60),
            until: time(120),
        };
        let release = Release { generation: 7, frozen: Some(frozen), rollout: None };
        assert_eq!(
            sentence(Some(&release)).unwrap(),
            "cells keep generation 7 since 1970-01-01T00:01:00Z until 1970-01-01T00:02:00Z, by \
             cn=ann: release"
        );
        assert_eq!(sentence(Some(&Release::default())), None);
        assert_eq!(sentence(None), None);
    }
}
