//! `doctor`: checks of the whole foundation, each with what to do.

mod certificates;

use std::time::Duration;

use jiff::Timestamp;
use proto::policy_v1::{RefusedRemoval, StatusResponse};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    cells::{self, Seen},
    connect::Connection,
    field::{Field, Tone, instant, span},
    freeze,
    locks::{self, Held},
    removal,
    report::Report,
    rollout, store,
};

/// State of one check, in rising order of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Ok,
    Warn,
    Fail,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    state: State,
    what: String,
    detail: String,
    advice: &'static str,
}

pub(crate) const CHECKS: &[Field<Check>] = &[
    Field::toned(
        Field::text("state", |check| {
            let state = match check.state {
                State::Ok => "ok",
                State::Warn => "warn",
                State::Fail => "fail",
            };
            state.to_owned()
        }),
        |check| match check.state {
            State::Ok => Tone::Good,
            State::Warn => Tone::Warning,
            State::Fail => Tone::Bad,
        },
    ),
    Field::text("check", |check| check.what.clone()),
    Field::text("detail", |check| check.detail.clone()),
    Field::text("advice", |check| {
        if check.state == State::Ok { String::new() } else { check.advice.to_owned() }
    }),
];

impl Check {
    fn new(state: State, what: &str, detail: String, advice: &'static str) -> Self {
        Self { state, what: what.to_owned(), detail, advice }
    }
}

/// The key of the syncers' lock.
const LOCK: &str = "policy-server-asg-syncer";

/// Runs all checks. Also returns whether one failed.
pub(crate) async fn run(connection: &Connection) -> anyhow::Result<(Report, bool)> {
    let now = Timestamp::now();
    let mut checks = certificates::own(connection, now);
    checks.push(lock_server(connection).await);
    checks.extend(certificates::of_lock_server(connection, now).await);
    let held = locks::fetch_all(connection).await.ok();
    match connection.stores().await {
        Ok(stores) => {
            for instance in stores {
                let what = format!("policy store {}", instance.address);
                let channel = match connection.open(&instance).await {
                    Ok(channel) => channel,
                    Err(error) => {
                        checks.push(unreachable(&what, &error));
                        continue;
                    }
                };
                checks.push(health(connection, &what, channel.clone()).await);
                checks.extend(certificates::of_store(connection, &instance, now).await);
                if let Ok(status) = connection.ask("status", store::status_of(channel)).await {
                    let clock = instant(status.now);
                    checks.extend(status.refused_removal.as_ref().map(|of| removal(&what, of)));
                    checks.extend(clock.map(|clock| clocks(&what, clock, Timestamp::now())));
                }
            }
        }
        Err(error) => checks.push(unreachable("policy store", &error)),
    }
    if let Ok(status) = store::fetch_status(connection).await {
        checks.push(leader(&status, held.as_deref()));
        checks.push(staleness(&status));
        checks.push(frozen(&status));
        checks.push(rolled_out(&status));
    }
    if let Ok(seen) = cells::fetch(connection, "").await {
        checks.extend(of_cells(&seen));
    }
    let failed = checks.iter().any(|check| check.state == State::Fail);
    Ok((Report::list(CHECKS, checks), failed))
}

const REACH: &str = "Check the address (--policy-store, --lock-server or the context), the \
                     network, and whether the process runs; its log says why it ended.";

fn unreachable(what: &str, error: &anyhow::Error) -> Check {
    Check::new(State::Fail, what, format!("{error:#}"), REACH)
}

async fn lock_server(connection: &Connection) -> Check {
    match connection.to_lock_server() {
        Ok(channel) => health(connection, "lock server", channel).await,
        Err(error) => unreachable("lock server", &error),
    }
}

/// Whether a server answers, and is ready: its database and certificates are usable.
async fn health(connection: &Connection, what: &str, channel: tonic::transport::Channel) -> Check {
    let request = HealthCheckRequest { service: String::new() };
    let mut client = HealthClient::new(channel);
    match connection.ask("health", client.check(request)).await {
        Err(error) => unreachable(what, &error),
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
            Check::new(State::Ok, what, "answers, and is ready".to_owned(), "")
        }
        Ok(_) => Check::new(
            State::Fail,
            what,
            "answers, but is not ready".to_owned(),
            "GET /readyz on its admin address names the part that is not ready: the database or a \
             certificate.",
        ),
    }
}

/// Difference of clocks that is worth a warning, and that fails.
const CLOCKS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];

fn clocks(what: &str, theirs: Timestamp, ours: Timestamp) -> Check {
    let apart = theirs.duration_since(ours).unsigned_abs();
    let state = match apart {
        apart if apart >= CLOCKS[1] => State::Fail,
        apart if apart >= CLOCKS[0] => State::Warn,
        _ => State::Ok,
    };
    let detail = format!("{:.1} s apart from this machine's clock", apart.as_secs_f64());
    let advice = "Synchronize the clocks (NTP): certificates and times in `trace` depend on them.";
    Check::new(state, &format!("clock of {what}"), detail, advice)
}

/// A list that would remove most groups: nothing is synced until an operator decides.
fn removal(what: &str, refused: &RefusedRemoval) -> Check {
    Check::new(
        State::Fail,
        &format!("mass removal refused by {what}"),
        removal::sentence(refused),
        "Compare with `cf security-groups`. If the groups were removed on purpose, `sync \
         --accept-removal NUMBER` with their number lets the removal pass once; else repair the \
         Cloud Controller.",
    )
}

/// Whether the last writer holds a lock.
fn leader(status: &StatusResponse, held: Option<&[Held]>) -> Check {
    let advice =
        "Without a leader no change arrives: read the log of each syncer, and `get locks`.";
    let what = "leader lock";
    let Some(held) = held else {
        let detail = "the lock server did not list its locks".to_owned();
        return Check::new(State::Fail, what, detail, advice);
    };
    let writer = status.writer.clone().unwrap_or_default();
    let lock = held.iter().find(|held| held.lock.key == LOCK);
    let lock = lock.or_else(|| held.iter().find(|held| held.lock.owner == writer.owner));
    match lock {
        None => {
            let detail = format!("no lock {LOCK:?}, nor one of the last writer {:?}", writer.owner);
            Check::new(State::Fail, what, detail, advice)
        }
        Some(held) if held.lock.owner == writer.owner || writer.owner.is_empty() => {
            let detail = format!("{} is held by {}", held.lock.key, held.lock.owner);
            Check::new(State::Ok, what, detail, advice)
        }
        Some(held) => {
            let (owner, writer) = (&held.lock.owner, &writer.owner);
            let detail = format!("held by {owner}, but {writer} wrote last");
            let advice =
                "Normal for a moment after a failover; if it stays, read the leader's log.";
            Check::new(State::Warn, what, detail, advice)
        }
    }
}

/// Age of the last sync that is worth a warning, and that fails. The syncer reads all groups at
/// least every 300 s by default.
const STALE: [u64; 2] = [420, 1_800];

fn staleness(status: &StatusResponse) -> Check {
    let what = "last sync";
    let advice = "Read the log of the leading syncer: the Cloud Controller or its UAA may be \
                  down. `sync` tries at once.";
    let (Some(now), Some(synced)) = (instant(status.now), instant(status.synced_at)) else {
        return Check::new(State::Fail, what, "there was none yet".to_owned(), advice);
    };
    let age = u64::try_from(now.as_second() - synced.as_second()).unwrap_or(0);
    let state = match age {
        age if age >= STALE[1] => State::Fail,
        age if age >= STALE[0] => State::Warn,
        _ => State::Ok,
    };
    let detail =
        format!("{} ago; {} groups, generation {}", span(age), status.groups, status.generation);
    Check::new(state, what, detail, advice)
}

fn frozen(status: &StatusResponse) -> Check {
    let sentence = freeze::sentence(status.release.as_ref());
    let state = if sentence.is_some() { State::Warn } else { State::Ok };
    let detail = sentence.unwrap_or_else(|| "cells get the newest generation".to_owned());
    Check::new(state, "freeze", detail, "`unfreeze` when the reason is gone.")
}

fn rolled_out(status: &StatusResponse) -> Check {
    let sentence = rollout::sentence(status.release.as_ref());
    let state = if rollout::is_stopped(status) { State::Fail } else { State::Ok };
    let detail = sentence.unwrap_or_else(|| "none in progress".to_owned());
    let advice = "Correct the group in the Cloud Controller, or `rollout finish`.";
    Check::new(state, "roll-out", detail, advice)
}

/// The first names, and the number of the others.
fn list(names: &[&str]) -> String {
    let first = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{first} and {} more", names.len() - 5) } else { first }
}

/// Time behind for which a cell is not worth a warning.
const BEHIND: u64 = 5;

fn of_cells(cells: &[Seen]) -> Vec<Check> {
    let named = |wanted: &dyn Fn(&Seen) -> bool| -> Vec<&str> {
        cells.iter().filter(|seen| wanted(seen)).map(Seen::id).collect()
    };
    let check = |what: &str, found: &[&str], weight: State, good: String, advice| {
        if found.is_empty() {
            Check::new(State::Ok, what, good, advice)
        } else {
            let detail = format!("{} of {}: {}", found.len(), cells.len(), list(found));
            Check::new(weight, what, detail, advice)
        }
    };
    let gone = named(&|seen| !seen.is_connected());
    let all_gone = !cells.is_empty() && gone.len() == cells.len();
    let weight = if all_gone { State::Fail } else { State::Warn };
    let behind = named(&|seen| {
        let since = store::behind_seconds(&seen.status(), seen.now);
        seen.behind() > 0 && since.is_none_or(|since| since >= BEHIND)
    });
    let isolated = named(&|seen| seen.status().isolated_rules > 0);
    let drifted = named(&|seen| seen.cell.drift_healed > 0);
    let failing = named(&|seen| !seen.cell.last_error.is_empty());
    vec![
        check(
            "cells connected",
            &gone,
            weight,
            format!("all {}", cells.len()),
            "On the cell: is the agent running, and does it reach the policy store? \
             `portcullisctl cell` there. Its containers keep their rules.",
        ),
        check(
            "cells up to date",
            &behind,
            State::Warn,
            "none is behind".to_owned(),
            "`describe cell NAME` has the last error; `trace GENERATION` the time since the change.",
        ),
        check(
            "errors of cells",
            &failing,
            State::Warn,
            "none".to_owned(),
            "`describe cell NAME` has the error; the agent's log has more.",
        ),
        check(
            "isolated rules",
            &isolated,
            State::Warn,
            "none".to_owned(),
            "`describe cell NAME` lists them with the reason: rewrite these rules.",
        ),
        check(
            "drift in kernels",
            &drifted,
            State::Warn,
            "none was repaired".to_owned(),
            "Another program changed rules and the agent repaired them: its log says which. The \
             count starts anew with the agent.",
        ),
        versions(cells),
    ]
}

fn versions(cells: &[Seen]) -> Check {
    let mut found: Vec<&str> = cells.iter().map(|seen| seen.cell.version.as_str()).collect();
    found.retain(|version| !version.is_empty());
    found.sort_unstable();
    found.dedup();
    let (own, several) = (env!("CARGO_PKG_VERSION"), found.len() > 1);
    let state = if several { State::Warn } else { State::Ok };
    let agents = if found.is_empty() { "unknown".to_owned() } else { list(&found) };
    let detail = format!("portcullisctl {own}, agents {agents}");
    Check::new(state, "versions", detail, "Normal during a deployment; else update all cells.")
}

#[cfg(test)]
mod tests {
    use proto::{
        models::Resource,
        policy_v1::{cells_response, status_response, status_response::Writer},
    };

    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn clocks_and_ages_have_limits() {
        let now = Timestamp::from_second(10_000).unwrap();
        for (apart, state) in
            [(0, State::Ok), (-3, State::Warn), (3, State::Warn), (-61, State::Fail)]
        {
            let theirs = Timestamp::from_second(10_000 + apart).unwrap();
            assert_eq!(clocks("x", theirs, now).state, state, "{apart}");
        }
        let status = |ago: i64| StatusResponse {
            now: at(10_000),
            synced_at: at(10_000 - ago),
            ..StatusResponse::default()
        };
        for (ago, state) in [(3, State::Ok), (500, State::Warn), (9_000, State::Fail)] {
            assert_eq!(staleness(&status(ago)).state, state, "{ago}");
        }
        assert_eq!(staleness(&StatusResponse::default()).state, State::Fail);
    }

    #[test]
    fn the_leader_is_the_last_writer() {
        let held = |owner: &str| {
            let lock =
                Resource { key: LOCK.to_owned(), owner: owner.to_owned(), ..Resource::default() };
            Held { lock, token: None }
        };
        let status = StatusResponse {
            writer: Some(Writer { owner: "one".to_owned(), fencing_token: 1 }),
            ..StatusResponse::default()
        };
        assert_eq!(leader(&status, None).state, State::Fail);
        assert_eq!(leader(&status, Some(&[])).state, State::Fail);
        assert_eq!(leader(&status, Some(&[held("one")])).state, State::Ok);
        assert_eq!(leader(&status, Some(&[held("two")])).state, State::Warn);
    }

    #[test]
    fn cells_are_counted_by_trouble() {
        let seen = |id: &str, connected, enforced_generation, version: &str| Seen {
            cell: cells_response::Cell {
                status: Some(status_response::Cell {
                    cell_id: id.to_owned(),
                    connected,
                    enforced_generation,
                    isolated_rules: u32::from(!connected),
                    ..status_response::Cell::default()
                }),
                version: version.to_owned(),
                ..cells_response::Cell::default()
            },
            generation: 4,
            now: None,
        };
        let states = |cells: &[Seen]| {
            of_cells(cells).into_iter().map(|check| check.state).collect::<Vec<_>>()
        };
        let good = seen("a", true, 4, "1");
        assert!(states(std::slice::from_ref(&good)).iter().all(|state| *state == State::Ok));
        let found = states(&[good, seen("b", false, 3, "2")]);
        assert_eq!(
            found,
            [State::Warn, State::Warn, State::Ok, State::Warn, State::Ok, State::Warn]
        );
        assert_eq!(states(&[seen("b", false, 4, "2")])[0], State::Fail);
    }
}
