//! The text in `store_state.held`: a freeze and a roll-out, as JSON.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::generation::{Generation, Point, Stamp};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::groups::{
    decide::Held,
    rollout::{Plan, Rollout},
};

const FIELD: &str = "store_state.held";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    held: Option<HeldText>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rollout: Option<RolloutText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldText {
    generation: u64,
    stamp_ns: i64,
    reason: Box<str>,
    by: Box<str>,
    since_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    until_ms: Option<i64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutText {
    base_generation: u64,
    base_stamp_ns: i64,
    target_generation: u64,
    target_stamp_ns: i64,
    canary_cells: Box<[Box<str>]>,
    percent_steps: Box<[u8]>,
    pause_seconds: u64,
    max_failing_percent: u8,
    step: usize,
    since_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    stopped: Option<Box<str>>,
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn corrupt(problem: impl ToString) -> Error {
    Error::CorruptRow { field: FIELD, problem: problem.to_string() }
}

fn moment(milliseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_millisecond(milliseconds).map_err(corrupt)
}

fn point(generation: u64, stamp_ns: i64) -> Point {
    Point { generation: Generation(generation), stamp: Stamp(stamp_ns) }
}

impl From<&Held> for HeldText {
    fn from(held: &Held) -> Self {
        let Held { point, reason, by, since, until } = held.clone();
        Self {
            generation: point.generation.0,
            stamp_ns: point.stamp.0,
            reason,
            by,
            since_ms: since.as_millisecond(),
            until_ms: until.map(Timestamp::as_millisecond),
        }
    }
}

impl TryFrom<HeldText> for Held {
    type Error = Error;

    fn try_from(text: HeldText) -> Result<Self, Error> {
        let HeldText { generation, stamp_ns, reason, by, since_ms, until_ms } = text;
        let until = until_ms.map(moment).transpose()?;
        let (point, since) = (point(generation, stamp_ns), moment(since_ms)?);
        Ok(Self { point, reason, by, since, until })
    }
}

impl From<&Rollout> for RolloutText {
    fn from(rollout: &Rollout) -> Self {
        let Rollout { base, target, plan, step, since, stopped } = rollout.clone();
        let Plan { canary_cells, percent_steps, pause, max_failing_percent } = Plan::clone(&plan);
        Self {
            base_generation: base.generation.0,
            base_stamp_ns: base.stamp.0,
            target_generation: target.generation.0,
            target_stamp_ns: target.stamp.0,
            canary_cells,
            percent_steps,
            pause_seconds: pause.as_secs(),
            max_failing_percent,
            step,
            since_ms: since.as_millisecond(),
            stopped,
        }
    }
}

impl TryFrom<RolloutText> for Rollout {
    type Error = Error;

    fn try_from(text: RolloutText) -> Result<Self, Error> {
        let plan = Plan {
            canary_cells: text.canary_cells,
            percent_steps: text.percent_steps,
            pause: Duration::from_secs(text.pause_seconds),
            max_failing_percent: text.max_failing_percent,
        };
        Ok(Self {
            base: point(text.base_generation, text.base_stamp_ns),
            target: point(text.target_generation, text.target_stamp_ns),
            plan: Arc::new(plan),
            step: text.step,
            since: moment(text.since_ms)?,
            stopped: text.stopped,
        })
    }
}

/// The text; `None` without either.
pub(super) fn text(held: Option<&Held>, rollout: Option<&Rollout>) -> Option<String> {
    if held.is_none() && rollout.is_none() {
        return None;
    }
    let text = Text { held: held.map(HeldText::from), rollout: rollout.map(RolloutText::from) };
    Some(serde_json::to_string(&text).expect("texts and numbers"))
}

/// Parses the text.
pub(super) fn parse(text: &str) -> Result<(Option<Held>, Option<Rollout>), Error> {
    let Text { held, rollout } = runtime::json::from_str(text).map_err(corrupt)?;
    let held = held.map(Held::try_from).transpose()?;
    let rollout: Option<Rollout> = rollout.map(Rollout::try_from).transpose()?;
    Ok((held, rollout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_comes_back_alone_and_with_the_other() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let held = Held {
            point: point(3, 7),
            reason: "release".into(),
            by: "cn=ann".into(),
            since: at(1),
            until: Some(at(9)),
        };
        let plan = Plan {
            canary_cells: ["canary-*".into()].into(),
            percent_steps: [10, 50].into(),
            pause: Duration::from_secs(30),
            max_failing_percent: 5,
        };
        let rollout = Rollout {
            base: point(3, 7),
            target: point(5, 8),
            plan: Arc::new(plan),
            step: 1,
            since: at(4),
            stopped: Some("a rule is isolated".into()),
        };
        for (held, rollout) in
            [(Some(&held), None), (None, Some(&rollout)), (Some(&held), Some(&rollout))]
        {
            let text = text(held, rollout).unwrap();
            assert_eq!(parse(&text).unwrap(), (held.cloned(), rollout.cloned()), "{text}");
        }
        assert_eq!(text(None, None), None);
    }

    #[test]
    fn what_is_malformed_names_the_field() {
        for text in ["", "7", r#"{"held":{"generation":1}}"#, r#"{"rollout":{"step":1}}"#] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("store_state.held"), "{text}: {error}");
        }
    }
}
