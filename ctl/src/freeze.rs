//! `freeze` and `unfreeze`: cells keep the generation that they have.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use proto::policy_v1::{FreezeRequest, Release, StatusResponse, UnfreezeRequest};

use crate::{
    confirm::confirm,
    connect::Connection,
    field::{Field, instant},
    report::Report,
    stores::foundation,
};

/// End of a freeze: RFC 3339, or a duration from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// A time.
    At(Timestamp),
    /// After this duration, by the clock of this machine.
    In(SignedDuration),
}

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        match text.parse::<SignedDuration>() {
            Ok(after) if after.is_positive() => Ok(Self::In(after)),
            _ => Err("not a time such as 2026-11-29T12:00:00Z, or 30m or 2h from now".to_owned()),
        }
    }
}

impl Until {
    fn time(self, now: Timestamp) -> anyhow::Result<prost_types::Timestamp> {
        let at = match self {
            Self::At(at) => at,
            Self::In(after) => now.checked_add(after).context("--until")?,
        };
        let (seconds, nanos) = (at.as_second(), at.subsec_nanosecond());
        Ok(prost_types::Timestamp { seconds, nanos })
    }
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
pub(crate) async fn freeze(
    connection: &Connection,
    reason: String,
    until: Option<Until>,
    yes: bool,
) -> anyhow::Result<Report> {
    let until = until.map(|until| until.time(Timestamp::now())).transpose()?;
    confirm("Freeze all cells? Changes of security groups do not reach them until unfreeze.", yes)?;
    let request = FreezeRequest { reason, until };
    let answer = connection
        .ask_a_store("freeze", async |channel| foundation(channel).freeze(request.clone()).await)
        .await?;
    Ok(Report::record(RELEASE, answer.into_inner().release.unwrap_or_default()))
}

/// Cells get the newest generation.
pub(crate) async fn unfreeze(
    connection: &Connection,
    reason: String,
    yes: bool,
) -> anyhow::Result<Report> {
    confirm("Unfreeze? All cells get the newest security groups at once.", yes)?;
    let request = UnfreezeRequest { reason };
    let answer = connection
        .ask_a_store("unfreeze", async |channel| {
            foundation(channel).unfreeze(request.clone()).await
        })
        .await?;
    Ok(Report::record(RELEASE, answer.into_inner().release.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::Frozen;

    use super::*;

    #[test]
    fn an_end_is_a_time_or_a_duration() {
        let now = Timestamp::from_second(100).unwrap();
        let seconds = |text: &str| Some(text.parse::<Until>().ok()?.time(now).ok()?.seconds);
        assert_eq!(seconds("1m"), Some(160));
        assert_eq!(seconds("1970-01-01T00:05:00Z"), Some(300));
        assert_eq!([seconds("-1m"), seconds("0s"), seconds("soon")], [None; 3]);
    }

    #[test]
    fn a_freeze_is_one_sentence() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let frozen = Frozen {
            reason: "release".into(),
            by: "cn=ann".into(),
            since: time(60),
            until: time(120),
        };
        let release = Release { generation: 7, frozen: Some(frozen) };
        assert_eq!(
            sentence(Some(&release)).unwrap(),
            "cells keep generation 7 since 1970-01-01T00:01:00Z until 1970-01-01T00:02:00Z, by \
             cn=ann: release"
        );
        assert_eq!(sentence(Some(&Release::default())), None);
        assert_eq!(sentence(None), None);
    }
}
