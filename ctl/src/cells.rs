//! The cells of the foundation, as the policy stores know them.

use jiff::Timestamp;
use proto::policy_v1::{
    CellsRequest, CellsResponse, StatusResponse, cells_response, status_response,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    connect::Connection,
    field::{Field, Tone, duration, instant},
    natural,
    report::Report,
    store,
    stores::foundation,
};

/// A cell compared with the newest generation.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) cell: cells_response::Cell,
    pub(crate) generation: u64,
    /// The clock of the store that answered.
    pub(crate) now: Option<Timestamp>,
}

impl Seen {
    pub(crate) fn status(&self) -> status_response::Cell {
        self.cell.status.clone().unwrap_or_default()
    }

    pub(crate) fn id(&self) -> &str {
        self.cell.status.as_ref().map_or("", |status| status.cell_id.as_str())
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.cell.status.as_ref().is_some_and(|status| status.connected)
    }

    pub(crate) fn behind(&self) -> u64 {
        store::behind(&self.status(), self.generation)
    }

    pub(crate) fn tone(&self) -> Tone {
        match (self.is_connected(), self.behind()) {
            (false, _) => Tone::Bad,
            (true, 0) => Tone::Plain,
            (true, _) => Tone::Warning,
        }
    }
}

pub(crate) const CELLS: &[Field<Seen>] = &[
    Field::text("cell", |seen| seen.id().to_owned()),
    Field::toned(Field::boolean("connected", Seen::is_connected), Seen::tone),
    Field::toned(Field::integer("behind", |seen| Some(seen.behind())), Seen::tone),
    Field::integer("behind_seconds", |seen| store::behind_seconds(&seen.status(), seen.now)),
    Field::time("reported_at", |seen| instant(seen.status().reported_at)),
    Field::integer("containers", |seen| Some(seen.status().containers.into())),
    Field::integer("isolated_rules", |seen| Some(seen.status().isolated_rules.into())),
    Field::integer("enforced_generation", |seen| Some(seen.status().enforced_generation)),
    Field::wide(Field::text("plane", |seen| seen.cell.plane.clone())),
    Field::wide(Field::text("version", |seen| seen.cell.version.clone())),
    Field::wide(Field::milliseconds("lag_ms", |seen| duration(seen.cell.lag))),
    Field::wide(Field::milliseconds("apply_ms", |seen| duration(seen.cell.apply_time))),
    Field::wide(Field::integer("drift_healed", |seen| {
        seen.cell.detailed.then_some(seen.cell.drift_healed)
    })),
    Field::wide(Field::integer("allowed_packets", |seen| seen.cell.counters?.allowed)),
    Field::wide(Field::integer("denied_packets", |seen| seen.cell.counters?.denied)),
    Field::wide(Field::text("last_error", |seen| seen.cell.last_error.clone())),
];

/// Each cell that ever reported, or the one with this id, in natural order of names.
pub(crate) async fn fetch(connection: &Connection, id: &str) -> anyhow::Result<Vec<Seen>> {
    let call = async |channel| pages(channel, id).await;
    Ok(merge(connection.ask_stores("cells", call).await?))
}

/// All pages of one instance.
pub(crate) async fn pages(channel: Channel, id: &str) -> Result<CellsResponse, Status> {
    let mut client = foundation(channel.clone());
    let mut whole = CellsResponse::default();
    let mut page_token = String::new();
    loop {
        let request = CellsRequest { page_token, cell_id: id.to_owned(), page_size: 0 };
        let page = match client.cells(request).await {
            Ok(answer) => answer.into_inner(),
            // An older store.
            Err(status) if status.code() == Code::Unimplemented => {
                return store::status_of(channel).await.map(from_status);
            }
            Err(status) => return Err(status),
        };
        whole.cells.extend(page.cells);
        (whole.generation, whole.now) = (page.generation, page.now);
        if page.next_page_token.is_empty() {
            return Ok(whole);
        }
        page_token = page.next_page_token;
    }
}

fn from_status(status: StatusResponse) -> CellsResponse {
    let cell = |cell| cells_response::Cell { status: Some(cell), ..Default::default() };
    CellsResponse {
        cells: status.cells.into_iter().map(cell).collect(),
        generation: status.generation,
        now: status.now,
        ..Default::default()
    }
}

/// For each cell the best informed answer: of the instance that the cell watches, or else of one
/// that knows details.
pub(crate) fn merge(answers: Vec<CellsResponse>) -> Vec<Seen> {
    let generation = answers.iter().map(|answer| answer.generation).max().unwrap_or(0);
    let mut cells: Vec<Seen> = Vec::new();
    for answer in answers {
        let now = instant(answer.now);
        cells.extend(answer.cells.into_iter().map(|cell| Seen { cell, generation, now }));
    }
    let worth = |seen: &Seen| {
        let status = seen.status();
        let reported = status.reported_at.map(|at| (at.seconds, at.nanos));
        (status.connected, seen.cell.detailed, reported)
    };
    cells.sort_by(|one, other| {
        let order = natural::compare(one.id(), other.id());
        order.then_with(|| worth(other).cmp(&worth(one)))
    });
    cells.dedup_by(|one, other| one.id() == other.id());
    cells
}

/// The list of cells.
pub(crate) async fn list(connection: &Connection) -> anyhow::Result<Report> {
    let cells = fetch(connection, "").await?;
    let now = cells.first().and_then(|seen| seen.now);
    Ok(Report::list(CELLS, cells).at(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(cells: &[(&str, bool, bool)], generation: u64) -> CellsResponse {
        let cell = |(id, connected, detailed): &(&str, bool, bool)| cells_response::Cell {
            status: Some(status_response::Cell {
                cell_id: (*id).to_owned(),
                connected: *connected,
                enforced_generation: 3,
                ..Default::default()
            }),
            detailed: *detailed,
            ..Default::default()
        };
        let cells = cells.iter().map(cell).collect();
        CellsResponse { cells, generation, ..Default::default() }
    }

    #[test]
    fn the_best_informed_instance_counts() {
        let one = answer(&[("cell-10", false, false), ("cell-2", false, true)], 3);
        let other = answer(&[("cell-2", false, false), ("cell-10", true, true)], 4);
        for answers in [vec![one.clone(), other.clone()], vec![other, one]] {
            let cells = merge(answers);
            let found: Vec<_> = cells
                .iter()
                .map(|seen| (seen.id(), seen.is_connected(), seen.cell.detailed, seen.behind()))
                .collect();
            assert_eq!(found, [("cell-2", false, true, 1), ("cell-10", true, true, 1)]);
        }
    }
}
