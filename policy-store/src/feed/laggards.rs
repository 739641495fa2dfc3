//! Logs cells that fall behind and catch up.
//!
//! Every change puts all cells behind for a moment, so a cell is reported only after it
//! is behind for [`LONG`], and only once. [`Laggards`] is pure; [`watch`] drives it.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use model::{
    generation::{Generation, Stamp},
    ids::CellId,
};
use tokio_util::sync::CancellationToken;

use super::{cells::CellStatus, watch::Feed};
use crate::groups::history::History;

/// A cell that is behind for longer gets a log line.
pub const LONG: Duration = Duration::from_secs(10);

/// Interval of the check of all cells.
const LOOK: Duration = Duration::from_secs(1);

/// Cells that were reported as behind.
#[derive(Debug, Default)]
pub struct Laggards(BTreeSet<CellId>);

/// Log event.
#[derive(Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// The cell is behind since this time.
    Behind(&'a CellStatus, Stamp),
    /// The cell has the newest generation in force again.
    CaughtUp(&'a CellStatus),
}

impl Laggards {
    /// Compares all known cells, ascending by id, with the newest generation.
    pub fn look<'a>(
        &mut self,
        cells: &'a [CellStatus],
        history: &History,
        now: Timestamp,
    ) -> Vec<News<'a>> {
        let long = i128::try_from(LONG.as_nanos()).unwrap_or(i128::MAX);
        // A deleted cell is not reported as caught up.
        self.0.retain(|id| cells.binary_search_by(|cell| cell.id.cmp(id)).is_ok());
        let news = cells.iter().filter_map(|cell| match cell.behind_since(history) {
            Some(since) if now.as_nanosecond() - i128::from(since.0) >= long => {
                self.0.insert(cell.id.clone()).then_some(News::Behind(cell, since))
            }
            Some(_) => None,
            None => self.0.remove(&cell.id).then_some(News::CaughtUp(cell)),
        });
        news.collect()
    }
}

fn log_changes(news: &News<'_>, generation: Generation, now: Timestamp) {
    match news {
        News::Behind(cell, since) => {
            let nanoseconds = now.as_nanosecond() - i128::from(since.0);
            tracing::info!(
                cell = %cell.id,
                connected = cell.connected,
                enforced = cell.enforced().0,
                generation = generation.0,
                seconds = u64::try_from(nanoseconds / 1_000_000_000).unwrap_or_default(),
                "cell-behind"
            );
        }
        News::CaughtUp(cell) => {
            let generation = generation.0;
            tracing::info!(cell = %cell.id, generation, "cell-caught-up");
        }
    }
}

/// Checks all cells each second, until `stop`.
///
/// # Errors
/// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
pub async fn watch(feed: Feed, stop: CancellationToken) -> anyhow::Result<()> {
    let mut laggards = Laggards::default();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let (snapshot, cells) = (feed.board.released_base(), feed.cells.status());
        let now = Timestamp::now();
        for news in laggards.look(&cells, snapshot.history(), now) {
            log_changes(&news, snapshot.state.generation, now);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::generation::Point;

    use super::*;
    use crate::{groups::history::Step, reports::Report};

    /// A foundation of this size is not expected; a look at it must still be short.
    const MANY: usize = 30_000;

    fn cell(id: &str, enforced: u64) -> CellStatus {
        let report = Report {
            enforced: Generation(enforced),
            containers: 0,
            isolated_rules: 0,
            at: Timestamp::UNIX_EPOCH,
        };
        CellStatus { id: CellId::parse(id).unwrap(), connected: false, report: Some(report) }
    }

    #[test]
    fn a_cell_is_reported_once_when_it_is_behind_for_long_and_once_when_it_caught_up() {
        let point = |generation| Point { generation: Generation(generation), stamp: Stamp(0) };
        let history = History::starting(point(1))
            .followed_by([Step { point: point(2), changes: Vec::new() }]);
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut laggards = Laggards::default();
        let cells = [cell("c1", 1), cell("c2", 2)];
        assert_eq!(laggards.look(&cells, &history, at(9)), []);
        assert_eq!(laggards.look(&cells, &history, at(10)), [News::Behind(&cells[0], Stamp(0))]);
        assert_eq!(laggards.look(&cells, &history, at(20)), []);
        let well = [cell("c1", 2), cell("c2", 2)];
        assert_eq!(laggards.look(&well, &history, at(21)), [News::CaughtUp(&well[0])]);
        assert_eq!(laggards.look(&well, &history, at(22)), []);
        laggards.look(&cells, &history, at(30));
        assert_eq!(laggards.look(&well[1..], &history, at(31)), [], "it was forgotten");
        assert_eq!(laggards.look(&well, &history, at(32)), []);
    }

    #[tokio::test]
    async fn a_look_is_short_also_when_many_cells_are_behind() {
        let point = |generation| Point { generation: Generation(generation), stamp: Stamp(0) };
        let history = History::starting(point(1))
            .followed_by([Step { point: point(2), changes: Vec::new() }]);
        let cells: Vec<_> = (0..MANY).map(|number| cell(&format!("c{number:05}"), 1)).collect();
        let mut laggards = Laggards::default();
        let at = Timestamp::from_second(20).unwrap();
        assert_eq!(laggards.look(&cells, &history, at).len(), MANY);
        let began = tokio::time::Instant::now();
        assert_eq!(laggards.look(&cells, &history, at), []);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}
