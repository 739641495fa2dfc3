//! Log lines of Replaces, and their counters.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    generation::Watermark,
    ids::GroupGuid,
    lock::{FencingToken, Owner},
};
use runtime::{
    error::chain,
    lager,
    otlp::{self, Span},
};

use crate::{
    groups::decide::{Decision, Named, Refusal, Replacement},
    metrics::{COMMIT_SECONDS, REPLACES},
    store::Error,
};

pub(super) fn log_change(write: &Replacement, decision: &Decision, named: &Named, took: Duration) {
    let outcome = if decision.is_change() { "changed" } else { "unchanged" };
    REPLACES.counter_by([("outcome", outcome)]).increment(1);
    COMMIT_SECONDS.histogram().record(took.as_secs_f64());
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let [added, changed, removed] = [&named.added, &named.changed, &named.removed]
        .map(|guids| guids.iter().map(GroupGuid::as_str).collect::<Vec<_>>());
    tracing::info!(
        added = decision.added(),
        changed = decision.changed(),
        removed = decision.removed.len(),
        unchanged = decision.unchanged,
        "added-guids" = listed(&added),
        "changed-guids" = listed(&changed),
        "removed-guids" = listed(&removed),
        generation = decision.state.generation.0,
        "fencing-token" = write.token.map_or(0, |token| token.0),
        writer = %write.owner,
        trace_id = write.origin.trace.map(|trace| tracing::field::display(trace.trace_id())),
        milliseconds,
        "replaced-security-groups"
    );
    if let Some(trace) = write.origin.trace {
        otlp::record(|| {
            Span::below(trace.ids(), "replace-security-groups", took)
                .with("outcome", outcome)
                .with("generation", decision.state.generation.0.cast_signed())
        });
    }
    if decision.watermark_went_back {
        let stored = decision.state.watermark.map(printed);
        tracing::info!(
            given = printed(write.watermark),
            stored = stored.unwrap_or_default(),
            "watermark-regressed"
        );
    }
}

/// Log field with a list of guids; absent if the list is empty.
fn listed<'a>(guids: &'a [&'a str]) -> Option<impl tracing::Value + 'a> {
    (!guids.is_empty()).then(|| lager::json(guids))
}

pub(crate) fn tell_refusal(writer: &Owner, token: Option<FencingToken>, refusal: &Refusal) {
    let outcome = match refusal {
        Refusal::OldToken { .. } | Refusal::TokenOfAnother { .. } | Refusal::TokenTooFar { .. } => {
            "fenced"
        }
        Refusal::MassRemoval { .. } => "mass-removal",
        Refusal::Overtaken { .. } => "overtaken",
    };
    REPLACES.counter_by([("outcome", outcome)]).increment(1);
    tracing::error!(
        error = %refusal,
        reason = outcome,
        "fencing-token" = token.map_or(0, |token| token.0),
        writer = %writer,
        "refused-replace"
    );
}

pub(super) fn tell_failure(write: &Replacement, error: &Error) {
    REPLACES.counter_by([("outcome", "failed")]).increment(1);
    tracing::error!(
        error = chain(error),
        "fencing-token" = write.token.map_or(0, |token| token.0),
        writer = %write.owner,
        "failed-to-replace"
    );
}

fn printed(watermark: Watermark) -> String {
    let fraction = i32::try_from(watermark.nanoseconds()).expect("less than a second");
    match Timestamp::new(watermark.seconds(), fraction) {
        Ok(at) => at.to_string(),
        Err(_) => format!("{} seconds after 1970", watermark.seconds()),
    }
}
