//! Converts values to response messages, which share the bytes of encoded groups.

use jiff::Timestamp;
use model::generation::Stamp;
use proto::policy_v1::{self, ListResponse, StoredGroup, WatchResponse, status_response};

use crate::{
    feed::{cells::CellStatus, parts::Part, questions::Question},
    groups::{history::History, page::Page, snapshot::Entry},
};

impl From<&Entry> for StoredGroup {
    fn from(entry: &Entry) -> Self {
        Self { id: entry.id.0, group: entry.encoded.clone() }
    }
}

impl From<Part> for WatchResponse {
    fn from(part: Part) -> Self {
        let Part { point, sequence, reset, upserted, removed, complete } = part;
        Self {
            generation: point.generation.0,
            reset,
            upserted: upserted.iter().map(|entry| StoredGroup::from(&**entry)).collect(),
            removed: removed.iter().map(|guid| guid.as_str().to_owned()).collect(),
            complete,
            subscription_sequence: sequence,
            stamp: point.stamp.0,
            question: None,
            traceparent: String::new(),
        }
    }
}

impl From<Question> for WatchResponse {
    fn from(question: Question) -> Self {
        let Question { id, request } = question;
        let question = policy_v1::Question { id, request: Some(request) };
        Self { question: Some(question), ..Self::default() }
    }
}

impl From<Page> for ListResponse {
    fn from(page: Page) -> Self {
        let Page { entries, next, generation } = page;
        Self {
            groups: entries.iter().map(|entry| StoredGroup::from(&**entry)).collect(),
            next_page_token: next.map_or(0, |id| id.0),
            generation: generation.0,
        }
    }
}

pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    // After 1970: the fraction is never negative.
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

fn moment(Stamp(nanoseconds): Stamp) -> prost_types::Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(nanoseconds.rem_euclid(SECOND)).expect("less than a second");
    prost_types::Timestamp { seconds: nanoseconds.div_euclid(SECOND), nanos }
}

pub(super) fn cell(status: CellStatus, history: &History) -> status_response::Cell {
    let (since, enforced) = (status.behind_since(history), status.enforced());
    let CellStatus { id, connected, report } = status;
    status_response::Cell {
        cell_id: id.as_str().to_owned(),
        connected,
        enforced_generation: enforced.0,
        reported_at: report.map(|report| timestamp(report.at)),
        containers: report.map_or(0, |report| report.containers),
        isolated_rules: report.map_or(0, |report| report.isolated_rules),
        behind_since: since.map(moment),
    }
}
