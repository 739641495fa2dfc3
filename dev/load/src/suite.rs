//! The lock server against an empty call and against the original's figures, in
//! one run on one machine: each row gets a new server, the rows take turns, and the
//! median of the rounds counts, also of what a row reaches of the empty call of the
//! same round.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::histogram::median;
use super::locket::{Load, Operation, measure};
use super::report::{Report, mebibytes};
use super::server::{Database, Site};
use super::{length, positive_length, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the binary `lock-server` [default: directory of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Database of the locks instead of SQLite: postgres://user@host/name or
    /// user:password@tcp(host:port)/name; its table `locks` is used
    #[arg(long)]
    database: Option<Database>,
    /// Measure every operation with 1, 16 and 64 workers [default: only rows with a goal]
    #[arg(long)]
    all: bool,
    /// Number of measurements of each row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Duration of one measurement
    #[arg(long, default_value = "4s", value_parser = positive_length)]
    duration: Duration,
    /// Time under load before the measurement begins
    #[arg(long, default_value = "1s", value_parser = length)]
    warm_up: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// An operation with a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    operation: Operation,
    workers: u32,
    /// Number of locks in addition to the presences.
    locks: u32,
    /// In a run on a database, measure this row on SQLite for comparison.
    on_sqlite: bool,
}

/// The target of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    /// A fraction of the empty call's rate.
    OfEmpty(f64),
    /// A multiple of the original's rate.
    OfOriginal(f64),
}

/// The results of a row: medians over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    operation: &'static str,
    workers: u32,
    per_second: f64,
    of_empty: Option<f64>,
    of_original: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    server_micros_per_call: f64,
    server_peak_mib: f64,
    other_cores: f64,
    failed: u64,
    holds: Option<bool>,
}

/// Calls per second of the original on PostgreSQL with fsync, with mutual TLS, a
/// connection for each worker and values of 600 bytes
/// (docs/compatibility/locket.md#baseline).
const ORIGINAL: [(Operation, u32, f64); 15] = [
    (Operation::LockNew, 1, 566.0),
    (Operation::LockNew, 16, 2_014.0),
    (Operation::LockNew, 64, 2_556.0),
    (Operation::LockRefresh, 1, 773.0),
    (Operation::LockRefresh, 16, 3_334.0),
    (Operation::LockRefresh, 64, 2_116.0),
    (Operation::Fetch, 1, 1_412.0),
    (Operation::Fetch, 16, 3_738.0),
    (Operation::Fetch, 64, 3_318.0),
    (Operation::FetchAll, 1, 174.0),
    (Operation::FetchAll, 16, 253.0),
    (Operation::FetchAll, 64, 243.0),
    (Operation::Release, 1, 948.0),
    (Operation::Release, 16, 2_036.0),
    (Operation::Release, 64, 2_110.0),
];

/// The same on MariaDB, one pass: new locks, refresh, Fetch, FetchAll and Release with
/// 1, 16 and 64 workers.
const ORIGINAL_ON_MYSQL: [f64; 15] = [
    741.0, 642.0, 704.0, 743.0, 1_539.0, 2_026.0, 1_240.0, 3_097.0, 3_690.0, 120.0, 220.0, 291.0,
    637.0, 1_498.0, 2_321.0,
];

/// The lock storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Sqlite,
    Postgres,
    MySql,
}

/// Number of additional locks: enough to slow FetchAll down in earlier measurements.
const BESIDE: u32 = 22_000;

const EMPTY: Row = Row::new(Operation::Empty, 64);
/// Compared with reading all presences: the share of TLS.
const TLS: Row = Row::new(Operation::Tls, 16);
const FETCH_ALL: Row = Row::new(Operation::FetchAll, 16);

impl Row {
    const fn new(operation: Operation, workers: u32) -> Self {
        Self { operation, workers, locks: 0, on_sqlite: false }
    }

    fn name(self) -> &'static str {
        match self {
            Self { on_sqlite: true, operation: Operation::FetchAll, .. } => "fetch-all-on-sqlite",
            Self { locks: 1.., operation: Operation::FetchAll, .. } => "fetch-all-beside-locks",
            Self { operation, .. } => operation.name(),
        }
    }

    /// The original's rate on such a database, regardless of the number of additional
    /// locks.
    fn original(self, place: Place) -> Option<f64> {
        let same = |(operation, workers, _): &(Operation, u32, f64)| {
            (*operation, *workers) == (self.operation, self.workers)
        };
        let at = ORIGINAL.iter().position(same)?;
        match place {
            Place::MySql if !self.on_sqlite => ORIGINAL_ON_MYSQL.get(at).copied(),
            Place::Sqlite | Place::Postgres | Place::MySql => Some(ORIGINAL[at].2),
        }
    }

    /// The targets on the embedded store and on a database server.
    fn goals(self, place: Place) -> &'static [Goal] {
        use Goal::{OfEmpty, OfOriginal};
        if self.on_sqlite {
            return &[];
        }
        match (self.operation, self.workers, place == Place::Sqlite) {
            (Operation::LockRefresh, 64, true) => &[OfEmpty(0.75)],
            (Operation::LockNew, 64, true) => &[OfEmpty(0.5), OfOriginal(5.0)],
            (Operation::Fetch, 64, true) => &[OfEmpty(0.8)],
            (Operation::FetchAll, 16, true) => &[OfOriginal(10.0)],
            (Operation::LockRefresh | Operation::LockNew, 64, false) => &[OfOriginal(1.5)],
            (Operation::Fetch, 64, false) => &[OfOriginal(4.0)],
            (Operation::FetchAll, 16, false) => &[OfOriginal(5.0)],
            _ => &[],
        }
    }

    fn load(self, arguments: &Arguments) -> Load {
        Load {
            operation: self.operation,
            concurrency: self.workers,
            connections: None,
            duration: arguments.duration,
            warm_up: arguments.warm_up,
            value_size: 600,
            // Enough presences to release during the whole period.
            presences: if self.operation == Operation::Release { 100_000 } else { 1_000 },
            locks: self.locks,
            ttl: 600,
            keep: arguments.database.is_none() || self.on_sqlite,
        }
    }
}

/// The rows with a target, or all; the empty call with each number of workers, and
/// large responses over TLS alone. On a database, also reading all presences with many
/// additional locks, there and on SQLite.
fn rows(all: bool, place: Place) -> Vec<Row> {
    let measured = ORIGINAL.iter().map(|(operation, workers, _)| Row::new(*operation, *workers));
    let measured = measured.filter(|row| all || !row.goals(place).is_empty());
    let workers: &[u32] = if all { &[1, 16, 64] } else { &[64] };
    let empty = workers.iter().map(|&workers| Row { workers, ..EMPTY });
    let on_a_database = [Row { locks: BESIDE, ..FETCH_ALL }, Row { on_sqlite: true, ..FETCH_ALL }];
    let on_a_database = on_a_database.into_iter().filter(|_| place != Place::Sqlite);
    empty.chain(measured).chain(on_a_database).chain([TLS]).collect()
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let place = match &arguments.database {
        None => Place::Sqlite,
        Some(database) if database.is_mysql() => Place::MySql,
        Some(_) => Place::Postgres,
    };
    let rows = rows(arguments.all, place);
    let mut site = Site::new(arguments.bin_dir.clone())?;
    let mut measured: BTreeMap<Row, Vec<Report>> = BTreeMap::new();
    for round in 0..arguments.rounds {
        // The order alternates, so that no row always follows the same one.
        let mut turn = rows.clone();
        if round % 2 == 1 {
            turn.reverse();
        }
        for row in &turn {
            let server = match row.operation {
                Operation::Empty => site.empty(false).await?,
                Operation::Tls => site.empty(true).await?,
                _ => {
                    let database = arguments.database.as_ref().filter(|_| !row.on_sqlite);
                    site.lock_server(database).await?
                }
            };
            let report = measure(&server.target(), &row.load(&arguments)).await?;
            server.end().await?;
            measured.entry(*row).or_default().push(report);
        }
    }
    let figures = figures(&rows, &measured, place);
    if arguments.json {
        return say(&format!("{}\n", serde_json::to_string_pretty(&figures)?));
    }
    say(&table(&figures))
}

fn figures(rows: &[Row], measured: &BTreeMap<Row, Vec<Report>>, place: Place) -> Vec<Figures> {
    let middle = |row: &Row, of: &dyn Fn(&Report) -> f64| {
        let reports = measured.get(row).map(Vec::as_slice).unwrap_or_default();
        median(reports.iter().map(of).collect()).unwrap_or_default()
    };
    let rate = |row: &Row| middle(row, &|report| report.calls.per_second);
    let one = |row: &Row| {
        let of_empty = of_empty(row, measured);
        let of_original = row.original(place).map(|original| rate(row) / original);
        let holds = |goal: &Goal| match goal {
            Goal::OfEmpty(part) => of_empty.is_some_and(|reached| reached >= *part),
            Goal::OfOriginal(times) => of_original.is_some_and(|reached| reached >= *times),
        };
        let goals = row.goals(place);
        let failed = |report: &Report| report.calls.failures.values().sum::<u64>();
        Figures {
            operation: row.name(),
            workers: row.workers,
            per_second: rate(row),
            of_empty,
            of_original,
            p50_ms: middle(row, &|report| report.calls.p50_ms),
            p99_ms: middle(row, &|report| report.calls.p99_ms),
            server_micros_per_call: middle(row, &|report| {
                report.cost.server_micros_per_call.unwrap_or_default()
            }),
            server_peak_mib: middle(row, &|report| {
                mebibytes(report.cost.server_peak.unwrap_or_default())
            }),
            other_cores: middle(row, &|report| report.cost.other_cores),
            failed: measured.get(row).into_iter().flatten().map(failed).sum(),
            holds: (!goals.is_empty()).then(|| goals.iter().all(holds)),
        }
    };
    rows.iter().map(one).collect()
}

/// The fraction of the empty call's rate: the median over the rounds, since the machine
/// may be faster in one round than in another.
fn of_empty(row: &Row, measured: &BTreeMap<Row, Vec<Report>>) -> Option<f64> {
    let empty = measured.get(&Row { workers: row.workers, ..EMPTY })?;
    let ratios = measured.get(row)?.iter().zip(empty);
    median(ratios.map(|(row, empty)| row.calls.per_second / empty.calls.per_second).collect())
}

fn table(figures: &[Figures]) -> String {
    let mut text = "\
| operation | workers | calls/s | of empty | x original | p50 ms | p99 ms | server CPU us | \
peak MiB | others' cores | failed | goal |
|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in figures {
        let Figures { operation, workers, per_second, p50_ms, p99_ms, failed, .. } = row;
        let percent = row.of_empty.map_or(String::new(), |part| format!("{:.0} %", part * 100.0));
        let times = row.of_original.map_or(String::new(), |times| format!("{times:.1}"));
        let (micros, peak) = (row.server_micros_per_call, row.server_peak_mib);
        let (others, goal) = (row.other_cores, holds(row.holds));
        text += &format!(
            "| {operation} | {workers} | {per_second:.0} | {percent} | {times} | {p50_ms:.2} | \
             {p99_ms:.2} | {micros:.0} | {peak:.0} | {others:.2} | {failed} | {goal} |\n"
        );
    }
    text
}

fn holds(goal: Option<bool>) -> &'static str {
    match goal {
        None => "",
        Some(true) => "holds",
        Some(false) => "missed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Tally;
    use crate::meter::Cost;

    fn report(row: Row, calls: u64) -> Report {
        let mut tally = Tally::default();
        for _ in 0..calls {
            tally.success(Duration::from_millis(1), 0);
        }
        Report {
            operation: row.operation.name().to_owned(),
            concurrency: 1,
            connections: 1,
            seconds: 1.0,
            calls: tally.summary(Duration::from_secs(1)),
            cost: Cost {
                server_cores: None,
                server_micros_per_call: None,
                server_resident: None,
                server_peak: None,
                load_cores: 0.0,
                other_cores: 0.0,
            },
        }
    }

    #[test]
    fn goals_are_held_against_the_median() {
        let rows = rows(false, Place::Sqlite);
        let measured = |fetches: [u64; 3]| {
            rows.iter()
                .map(|row| {
                    let counts = match row.operation {
                        Operation::Fetch => fetches,
                        _ => [1_000, 900, 5_000],
                    };
                    (*row, counts.map(|count| report(*row, count)).to_vec())
                })
                .collect()
        };
        let holds = |fetches| {
            let figures = figures(&rows, &measured(fetches), Place::Sqlite);
            let fetch = figures.into_iter().find(|row| row.operation == "fetch").unwrap();
            (fetch.holds, fetch.of_empty)
        };
        assert_eq!(holds([700, 720, 9_000]), (Some(true), Some(0.8)));
        assert_eq!(holds([100, 710, 9_000]).0, Some(false));
    }

    #[test]
    fn every_row_with_a_goal_is_measured() {
        let names = |rows: Vec<Row>| rows.iter().map(|row| row.name()).collect::<Vec<_>>();
        let embedded = ["empty", "lock-new", "lock-refresh", "fetch", "fetch-all", "tls"];
        assert_eq!(names(rows(false, Place::Sqlite)), embedded);
        let mut shared = vec!["empty", "lock-new", "lock-refresh", "fetch", "fetch-all"];
        shared.extend(["fetch-all-beside-locks", "fetch-all-on-sqlite", "tls"]);
        assert_eq!(names(rows(false, Place::Postgres)), shared);
        assert_eq!(names(rows(false, Place::MySql)), shared);
        assert_eq!(rows(true, Place::Sqlite).len(), ORIGINAL.len() + 4);
    }

    #[test]
    fn the_table_says_what_is_missed() {
        let row = Row::new(Operation::LockNew, 64);
        let measured = [(row, vec![report(row, 100)])].into_iter().collect();
        let text = table(&figures(&[row], &measured, Place::Sqlite));
        assert!(text.contains("| lock-new | 64 | 100 |"), "{text}");
        assert!(text.contains("missed"), "{text}");
    }
}
