//! The section `rollout`.

use runtime::config::{Configure, Reader, Seconds, Value};

use crate::groups::rollout::Plan;

impl Configure for Plan {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let canary_cells: Option<Vec<String>> = keys.or("canary_cells", Vec::new());
        let percent_steps = keys.or("percent_steps", Percents(Vec::new()));
        let pause = keys.nonzero("pause_seconds", Seconds::new(30));
        let max_failing_percent: Option<u16> = keys.or("max_failing_percent", 0);
        if max_failing_percent.is_some_and(|percent| percent > 99) {
            keys.problem("max_failing_percent", "must be from 0 to 99");
        }
        if canary_cells.iter().flatten().any(|pattern| !is_pattern(pattern)) {
            keys.problem("canary_cells", "must be ids of cells with at most one `*` each");
        }
        let (canary_cells, percent_steps) = (canary_cells?, percent_steps?.0);
        if canary_cells.is_empty() && percent_steps.is_empty() {
            keys.problem("percent_steps", "must have an element, or canary_cells must have one");
        }
        let Seconds(pause): Seconds = pause?;
        Some(Self {
            canary_cells: canary_cells.into_iter().map(String::into_boxed_str).collect(),
            percent_steps: percent_steps.into(),
            pause,
            max_failing_percent: u8::try_from(max_failing_percent?).unwrap_or(99),
        })
    }
}

fn is_pattern(text: &str) -> bool {
    !text.is_empty() && text.matches('*').count() <= 1
}

/// Ascending, from 1 to 99.
struct Percents(Vec<u8>);

impl Value for Percents {
    fn from_json(json: &serde_json::Value) -> Result<Self, String> {
        let expected = || "expects an array of ascending numbers from 1 to 99".to_owned();
        let array = json.as_array().ok_or_else(expected)?;
        let number = |item: &serde_json::Value| item.as_u64().and_then(|item| item.try_into().ok());
        let percents: Option<Vec<u8>> = array.iter().map(number).collect();
        let percents = percents.ok_or_else(expected)?;
        let is_in_range = percents.iter().all(|percent| (1..=99).contains(percent));
        let is_ascending = percents.is_sorted_by(|before, after| before < after);
        if is_in_range && is_ascending { Ok(Self(percents)) } else { Err(expected()) }
    }
}
