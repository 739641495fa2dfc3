//! Writes the set, the same for every SQL database; the bulk operations of [`Set`] differ. A
//! function for a `&impl Set` belongs into a transaction.

use std::collections::HashMap;

use model::ids::GroupGuid;
use storage::server::Dialect;

use super::{
    Error, Mended,
    archive::queries as archive,
    batch::Batch,
    plan::{self, Loss, PastPlan},
    read::{generations, known, scopes, state, state_for_update},
    rows::{self, StateRow, to_sql},
    session::{Kind, Session, Set},
    tables::state_seed,
};
use crate::{
    groups::{
        decide::{Decision, Known, Refused, Replacement, State, decide},
        held::{Order, hold},
        snapshot::Snapshot,
    },
    reports::Unsaved,
};

/// Channel of notifications, on PostgreSQL.
pub(super) const CHANNEL: &str = "portcullis_policy_store";

/// Resets the newest fencing token; returns the previous state.
pub(super) async fn reset_fencing(session: &impl Set) -> Result<State, Error> {
    let before = state_for_update(session).await?;
    if before.token.is_some() {
        store_state(session, &State { token: None, ..before.clone() }).await?;
        notify(session).await?;
    }
    Ok(before)
}

/// Changes the freeze; returns the state afterwards.
pub(super) async fn change_hold(session: &impl Set, change: &Order) -> Result<State, Error> {
    let before = state_for_update(session).await?;
    let Some((state, decision)) = hold(&before, change) else { return Ok(before) };
    store_state(session, &state).await?;
    archive::record(session, &decision).await?;
    notify(session).await?;
    Ok(state)
}

/// A decision, and the groups before it.
pub(super) type Replaced = (Decision, HashMap<GroupGuid, Known>);

/// Replaces the set. A refusal does not abort the transaction: the seen token is committed.
pub(super) async fn replace(
    session: &impl Set,
    most: usize,
    write: &Replacement,
) -> Result<Result<Replaced, Refused>, Error> {
    let state = state_for_update(session).await?;
    if !state.is_whole() {
        forget(session).await?;
    }
    let known = known(session).await?;
    let outcome = match decide(&state, &known, write) {
        Ok(decision) => {
            carry_out(session, most, &decision, Some((write, !state.is_whole()))).await?;
            Ok((decision, known))
        }
        Err(refused) => {
            let Some(seen) = &refused.seen else { return Ok(Err(refused)) };
            store_state(session, seen).await?;
            Err(refused)
        }
    };
    notify(session).await?;
    Ok(outcome)
}

/// What was lost; also without a transaction.
pub(super) async fn loss(session: &impl Session, served: &Snapshot) -> Result<Loss, Error> {
    loss_of(session, &state(session, "").await?, served).await
}

async fn loss_of(session: &impl Session, state: &State, served: &Snapshot) -> Result<Loss, Error> {
    let any = format!("SELECT 1 FROM {}security_groups LIMIT 1", session.kind().prefix());
    Ok(plan::loss(state, !session.query(&any, &[]).await?.is_empty(), served))
}

/// See [`super::Store::mend`]; the tables exist.
pub(super) async fn mend(
    session: &impl Set,
    most: usize,
    served: &Snapshot,
) -> Result<Mended, Error> {
    session.execute(state_seed(session.kind()), &[]).await?;
    let state = state_for_update(session).await?;
    match loss_of(session, &state, served).await? {
        Loss::None => Ok(Mended::Nothing),
        Loss::Restore => {
            forget(session).await?;
            carry_out(session, most, &plan::restoration(&state, served), None).await?;
            notify(session).await?;
            Ok(Mended::Restored)
        }
        Loss::Forget => {
            forget(session).await?;
            store_state(session, &plan::forgotten(&state)).await?;
            Ok(Mended::Forgotten)
        }
    }
}

/// Deletes the remaining rows of the set and of its history.
async fn forget(session: &impl Session) -> Result<(), Error> {
    let prefix = session.kind().prefix();
    for table in ["security_group_spaces", "security_groups", "group_changes", "generations"] {
        session.execute(&format!("DELETE FROM {prefix}{table}"), &[]).await?;
    }
    Ok(())
}

/// `made`: the Replace behind a decision, and whether no set was stored before. A restored set
/// is in the history already.
async fn carry_out(
    session: &impl Set,
    most: usize,
    decision: &Decision,
    made: Option<(&Replacement, bool)>,
) -> Result<(), Error> {
    let before = scopes(session, &plan::touched(decision)?).await?;
    if let Some(made) = made {
        archive::add(session, made, decision, &before).await?;
    }
    if decision.is_change() {
        let generations = generations(session).await?;
        if let Some(past) = plan::past(decision, &before, &generations)? {
            remember(session, past).await?;
        }
    }
    remove(session, decision).await?;
    session.store(&decision.upserts, most).await?;
    session.bind(decision, &before).await?;
    store_state(session, &decision.state).await
}

/// Notifies the other instances at commit.
async fn notify(session: &impl Session) -> Result<(), Error> {
    if session.kind() == Kind::Server(Dialect::Postgres) {
        session.query("SELECT pg_notify(?, '')", &[CHANNEL.into()]).await?;
    }
    Ok(())
}

async fn remember(session: &impl Session, past: PastPlan) -> Result<(), Error> {
    let PastPlan { point, weight, changes, from } = past;
    let prefix = session.kind().prefix();
    let generation = to_sql("generations.generation", point.generation.0)?;
    let sql =
        format!("INSERT INTO {prefix}generations (generation, stamp_ns, weight) VALUES (?, ?, ?)");
    let row = [generation.into(), point.stamp.0.into(), weight.into()];
    session.execute(&sql, &row).await?;
    let before = format!(
        "INSERT INTO {prefix}group_changes (generation, group_id, guid, reach_before) VALUES"
    );
    let insert = Batch { before: &before, marks: "(?,?,?,?)", after: "" };
    let rows = changes.into_iter().map(|change| {
        let guid = change.guid.as_str().into();
        vec![generation.into(), change.id.into(), guid, change.reach_before.into()]
    });
    insert.run(session, rows.collect()).await?;
    let from = [to_sql("generations.generation", from.0)?.into()];
    let sql = format!("DELETE FROM {prefix}group_changes WHERE generation <= ?");
    session.execute(&sql, &from).await?;
    session.execute(&format!("DELETE FROM {prefix}generations WHERE generation < ?"), &from).await
}

async fn remove(session: &impl Session, decision: &Decision) -> Result<(), Error> {
    let prefix = session.kind().prefix();
    for column in ["security_group_spaces WHERE group_id", "security_groups WHERE id"] {
        let ids = decision.removed.iter().map(|(id, _)| Ok(vec![plan::sql_id(*id)?.into()]));
        let before = format!("DELETE FROM {prefix}{column} IN (");
        let delete = Batch { before: &before, marks: "?", after: ")" };
        delete.run(session, ids.collect::<Result<_, Error>>()?).await?;
    }
    Ok(())
}

async fn store_state(session: &impl Session, state: &State) -> Result<(), Error> {
    let row = StateRow::try_from(state)?;
    let kind = session.kind();
    let sql = match kind {
        Kind::Sqlite => {
            "INSERT OR REPLACE INTO store_state
                 (generation, stamp_ns, watermark_seconds, watermark_nanoseconds,
                  fencing_token, writer, synced_at_ms, last_id, held, only_row)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"
        }
        Kind::Server(_) => {
            "UPDATE portcullis_store_state SET
                 generation = ?, stamp_ns = ?, watermark_seconds = ?, watermark_nanoseconds = ?,
                 fencing_token = ?, writer = ?, synced_at_ms = ?, last_id = ?, held = ?
             WHERE only_row = 1"
        }
    };
    let parameters = [
        row.generation.into(),
        row.stamp_ns.into(),
        row.watermark_seconds.into(),
        row.watermark_nanoseconds.into(),
        row.fencing_token.into(),
        row.writer.map(|writer| kind.text(writer)).into(),
        row.synced_at_ms.into(),
        row.last_id.into(),
        row.held.map(|held| kind.text(held)).into(),
    ];
    session.execute(sql, &parameters).await
}

/// On a server an older report of a cell never replaces a newer one, whichever instance received
/// them.
pub(super) async fn save_reports(session: &impl Session, unsaved: &Unsaved) -> Result<(), Error> {
    let kind = session.kind();
    let (insert, after) = match kind {
        Kind::Sqlite => ("INSERT OR REPLACE", ""),
        Kind::Server(Dialect::Postgres) => (
            "INSERT",
            "ON CONFLICT (cell_id) DO UPDATE SET
                 enforced_generation = excluded.enforced_generation,
                 containers = excluded.containers, isolated_rules = excluded.isolated_rules,
                 reported_at_ms = excluded.reported_at_ms
             WHERE portcullis_cell_reports.reported_at_ms <= excluded.reported_at_ms",
        ),
        // Assignments take effect from left to right: the time is compared before it changes.
        Kind::Server(Dialect::MySql) => (
            "INSERT",
            "ON DUPLICATE KEY UPDATE
                 enforced_generation = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(enforced_generation), enforced_generation),
                 containers = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(containers), containers),
                 isolated_rules = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(isolated_rules), isolated_rules),
                 reported_at_ms = GREATEST(reported_at_ms, VALUES(reported_at_ms))",
        ),
    };
    let table = format!("{}cell_reports", kind.prefix());
    let before = format!(
        "{insert} INTO {table}
            (cell_id, enforced_generation, containers, isolated_rules, reported_at_ms) VALUES"
    );
    let rows = unsaved.reports.iter().map(|(cell, report)| {
        let row = rows::report_row(cell, report)?;
        Ok(vec![
            row.cell_id.into(),
            row.enforced_generation.into(),
            row.containers.into(),
            row.isolated_rules.into(),
            row.reported_at_ms.into(),
        ])
    });
    let insert = Batch { before: &before, marks: "(?,?,?,?,?)", after };
    insert.run(session, rows.collect::<Result<_, Error>>()?).await?;
    let list = if kind == Kind::Sqlite { "VALUES " } else { "" };
    let before = format!("DELETE FROM {table} WHERE (cell_id, reported_at_ms) IN ({list}");
    let gone = unsaved.forgotten.iter();
    let gone = gone.map(|(cell, at)| vec![cell.as_str().into(), at.as_millisecond().into()]);
    Batch { before: &before, marks: "(?,?)", after: ")" }.run(session, gone.collect()).await
}
