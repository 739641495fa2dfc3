//! `rollout`: a generation reaches the cells in steps.

use clap::{Args, Subcommand};
use proto::policy_v1::{FinishRolloutRequest, Release, Rollout, StatusResponse};

use crate::{
    confirm::confirm,
    connect::Connection,
    field::{Field, instant},
    report::Report,
    stores::foundation,
};

/// Commands of `rollout`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Show the generation that is rolled out, its step, and why it stopped
    Status,
    /// Send the newest generation to all cells at once, also after a stop
    Finish(Finish),
}

/// The end of a roll-out.
#[derive(Debug, Args)]
pub struct Finish {
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

fn rollout(release: &Release) -> Option<&Rollout> {
    release.rollout.as_ref()
}

/// One line about a roll-out; `None` without one.
pub(crate) fn sentence(release: Option<&Release>) -> Option<String> {
    let release = release?;
    let Rollout { generation, step, steps, since, stopped, cells, reached, percent: _ } =
        release.rollout.as_ref()?;
    let since = instant(*since).map(|since| format!(" since {since:.0}")).unwrap_or_default();
    let state = if stopped.is_empty() {
        format!("is at step {step} of {steps}{since}, in force on {reached} of {cells} cells")
    } else {
        format!("stopped at step {step} of {steps}{since}: {stopped}")
    };
    let others = release.generation;
    Some(format!("generation {generation} {state}; other cells have generation {others}"))
}

/// Whether a roll-out is stopped.
pub(crate) fn is_stopped(status: &StatusResponse) -> bool {
    let rollout = status.release.as_ref().and_then(rollout);
    rollout.is_some_and(|rollout| !rollout.stopped.is_empty())
}

pub(crate) const ROLLOUT: &[Field<Release>] = &[
    Field::integer("generation", |release| Some(rollout(release)?.generation)),
    Field::integer("step", |release| Some(rollout(release)?.step.into())),
    Field::integer("steps", |release| Some(rollout(release)?.steps.into())),
    Field::integer("percent", |release| Some(rollout(release)?.percent.into())),
    Field::integer("cells", |release| Some(rollout(release)?.cells.into())),
    Field::integer("reached", |release| Some(rollout(release)?.reached.into())),
    Field::time("since", |release| instant(rollout(release)?.since)),
    Field::text("stopped", |release| {
        rollout(release).map(|rollout| rollout.stopped.clone()).unwrap_or_default()
    }),
    Field::integer("other_generation", |release| Some(release.generation)),
];

/// The generation that is rolled out.
pub(crate) fn report(status: StatusResponse) -> Report {
    let now = instant(status.now);
    Report::record(ROLLOUT, status.release.unwrap_or_default()).at(now)
}

/// All cells get the newest generation.
pub(crate) async fn finish(connection: &Connection, finish: Finish) -> anyhow::Result<Report> {
    let Finish { reason, yes } = finish;
    confirm("Finish the roll-out? All cells get the newest security groups at once.", yes)?;
    let request = FinishRolloutRequest { reason };
    let answer = connection
        .ask_a_store("finish the roll-out", async |channel| {
            foundation(channel).finish_rollout(request.clone()).await
        })
        .await?;
    Ok(Report::record(ROLLOUT, answer.into_inner().release.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_one_sentence() {
        let rollout = Rollout {
            generation: 8,
            step: 2,
            steps: 3,
            percent: 10,
            since: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
            stopped: String::new(),
            cells: 12,
            reached: 11,
        };
        let stopped = Rollout { stopped: "1 of 12 cells: no".into(), ..rollout.clone() };
        let release = |rollout| Release { generation: 7, rollout: Some(rollout), frozen: None };
        assert_eq!(
            sentence(Some(&release(rollout))).unwrap(),
            "generation 8 is at step 2 of 3 since 1970-01-01T00:01:00Z, in force on 11 of 12 cells; \
             other cells have generation 7"
        );
        assert_eq!(
            sentence(Some(&release(stopped))).unwrap(),
            "generation 8 stopped at step 2 of 3 since 1970-01-01T00:01:00Z: 1 of 12 cells: no; \
             other cells have generation 7"
        );
        assert_eq!(sentence(Some(&Release::default())), None);
    }
}
