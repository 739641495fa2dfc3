//! Writes: one transaction per Replace.

use std::collections::HashMap;

use model::ids::GroupGuid;
use storage::server::{Dialect, NewRows, Server, Transaction, Value};

use super::{
    super::{
        Error,
        plan::{self, PastPlan},
        rows::{self, ReportRow, Scopes, StateRow, to_sql},
        rules,
    },
    CHANNEL, archive,
    batch::Batch,
    load::{bind_all, known, state_for_update},
    original::{Attempt, Original},
};
use crate::{
    groups::{
        decide::{Decision, Known, Refused, Replacement, State, Upsert, decide},
        held::{Order, hold},
    },
    reports::Unsaved,
};

/// Number of ids per statement.
const IDS_AT_ONCE: usize = 500;
/// Number of rows per COPY: it uses a few megabytes of the server's buffers, and with
/// more rows than they hold it repeatedly waits for the disk.
const GROUPS_AT_ONCE: usize = 1_000;
const BINDINGS_AT_ONCE: usize = 20_000;

const GROUPS: &str = "portcullis_security_groups";
const GROUP_COLUMNS: &str =
    "(id, guid, name, running_default, staging_default, rules, content_hash)";

/// Resets the newest fencing token; returns the previous state.
pub(super) async fn reset_fencing(server: &Server) -> Result<State, Error> {
    let dialect = server.dialect();
    server
        .transaction(async |transaction: Transaction| {
            let before = state_for_update(&transaction).await?;
            if before.token.is_some() {
                store_state(&transaction, &State { token: None, ..before.clone() }).await?;
                notify(&transaction, dialect).await?;
            }
            Ok::<_, Error>(before)
        })
        .await
}

/// Changes the freeze; returns the state afterwards.
pub(super) async fn change_hold(server: &Server, change: &Order) -> Result<State, Error> {
    let dialect = server.dialect();
    server
        .transaction(async |transaction: Transaction| {
            let before = state_for_update(&transaction).await?;
            let Some((state, decision)) = hold(&before, change) else { return Ok(before) };
            store_state(&transaction, &state).await?;
            archive::record(&transaction, dialect, &decision).await?;
            notify(&transaction, dialect).await?;
            Ok::<_, Error>(state)
        })
        .await
}

/// Replaces the set, if possible together with the original's tables.
pub(super) async fn replace(
    server: &Server,
    most: usize,
    original: Option<&Original>,
    write: &Replacement,
) -> Result<Decision, Error> {
    let Some(attempt) = original.and_then(Original::attempt) else {
        return Ok(replace_once(server, most, None, write).await??);
    };
    let outcome = match replace_once(server, most, Some(&attempt), write).await {
        // The tables may be the reason: ours are written without them.
        Err(error) if attempt.has_begun() && !is_unknown(&error) => {
            attempt.fail(&error);
            replace_once(server, most, None, write).await
        }
        outcome => outcome,
    };
    if attempt.has_begun() && outcome.is_ok() {
        attempt.settle();
    }
    Ok(outcome??)
}

fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Database(storage::Error::OutcomeUnknown { .. }))
}

/// A refusal does not abort the transaction: the seen token is committed.
async fn replace_once(
    server: &Server,
    most: usize,
    attempt: Option<&Attempt<'_>>,
    write: &Replacement,
) -> Result<Result<Decision, Refused>, Error> {
    let dialect = server.dialect();
    server
        .transaction(async |transaction: Transaction| {
            let attempt = attempt.filter(|attempt| attempt.is_first());
            let state = state_for_update(&transaction).await?;
            if !state.is_whole() {
                forget(&transaction).await?;
            }
            let mut known = known(&transaction).await?;
            match decide(&state, &known, write) {
                Ok(decision) => {
                    let made = Some((write, !state.is_whole()));
                    carry_out(&transaction, (dialect, most), &decision, made).await?;
                    notify(&transaction, dialect).await?;
                    if let Some(attempt) = attempt {
                        apply(&decision, &mut known);
                        attempt.write(&transaction, &known, &decision.upserts).await?;
                    }
                    Ok::<_, Error>(Ok(decision))
                }
                Err(refused) => {
                    if let Some(seen) = &refused.seen {
                        store_state(&transaction, seen).await?;
                        notify(&transaction, dialect).await?;
                    }
                    Ok(Err(refused))
                }
            }
        })
        .await
}

/// The groups after a decision.
fn apply(decision: &Decision, known: &mut HashMap<GroupGuid, Known>) {
    for (_, guid) in &decision.removed {
        known.remove(guid);
    }
    for Upsert { id, group, hash, added: _ } in &decision.upserts {
        known.insert(group.guid.clone(), Known { id: *id, hash: *hash });
    }
}

/// Deletes the remaining rows of the set and of its history.
pub(super) async fn forget(transaction: &Transaction) -> Result<(), Error> {
    for table in ["security_group_spaces", "security_groups", "group_changes", "generations"] {
        transaction.execute(&format!("DELETE FROM portcullis_{table}"), &[]).await?;
    }
    Ok(())
}

/// `made`: the Replace behind a decision, and whether no set was stored before. A restored set
/// is in the history already.
pub(super) async fn carry_out(
    transaction: &Transaction,
    (dialect, most): (Dialect, usize),
    decision: &Decision,
    made: Option<(&Replacement, bool)>,
) -> Result<(), Error> {
    let before = scopes(transaction, &plan::touched(decision)?).await?;
    if let Some(made) = made {
        archive::add(transaction, dialect, made, decision, &before).await?;
    }
    if decision.is_change() {
        let generations = generations(transaction).await?;
        if let Some(past) = plan::past(decision, &before, &generations)? {
            remember(transaction, past).await?;
        }
    }
    remove(transaction, decision).await?;
    store(transaction, dialect, most, &decision.upserts).await?;
    bind(transaction, dialect, decision, &before).await?;
    store_state(transaction, &decision.state).await
}

/// Notifies the other instances at commit.
pub(super) async fn notify(transaction: &Transaction, dialect: Dialect) -> Result<(), Error> {
    if dialect == Dialect::Postgres {
        transaction.query("SELECT pg_notify(?, '')", &[CHANNEL.into()]).await?;
    }
    Ok(())
}

/// Scopes of these groups.
async fn scopes(transaction: &Transaction, ids: &[i64]) -> Result<Scopes, Error> {
    let mut scopes = Scopes::default();
    for ids in ids.chunks(IDS_AT_ONCE) {
        let marks = vec!["?"; ids.len()].join(",");
        let ids: Vec<Value> = ids.iter().map(|id| Value::Int(*id)).collect();
        let sql = format!(
            "SELECT id, running_default, staging_default FROM portcullis_security_groups
             WHERE id IN ({marks})"
        );
        for row in transaction.query(&sql, &ids).await? {
            scopes.everywhere(row.get(0)?, row.get(1)?, row.get(2)?);
        }
        let sql = format!(
            "SELECT group_id, lifecycle, space_guid FROM portcullis_security_group_spaces
             WHERE group_id IN ({marks})"
        );
        bind_all(&transaction.query(&sql, &ids).await?, &mut scopes)?;
    }
    Ok(scopes)
}

async fn generations(
    transaction: &Transaction,
) -> Result<Vec<(model::generation::Generation, usize)>, Error> {
    let sql = "SELECT generation, weight FROM portcullis_generations ORDER BY generation DESC";
    let rows = transaction.query(sql, &[]).await?;
    rows.iter().map(|row| rows::weighed(row.get(0)?, row.get(1)?)).collect()
}

async fn remember(transaction: &Transaction, past: PastPlan) -> Result<(), Error> {
    let PastPlan { point, weight, changes, from } = past;
    let generation = to_sql("generations.generation", point.generation.0)?;
    let sql = "INSERT INTO portcullis_generations (generation, stamp_ns, weight) VALUES (?, ?, ?)";
    let row = [generation.into(), point.stamp.0.into(), weight.into()];
    transaction.execute(sql, &row).await?;
    let insert = Batch {
        before: "INSERT INTO portcullis_group_changes (generation, group_id, guid, reach_before)
                 VALUES",
        marks: "(?,?,?,?)",
        after: "",
    };
    let rows = changes.into_iter().map(|change| {
        let guid = change.guid.as_str().into();
        vec![generation.into(), change.id.into(), guid, change.reach_before.into()]
    });
    insert.run(transaction, rows.collect()).await?;
    let from = [to_sql("generations.generation", from.0)?.into()];
    let sql = "DELETE FROM portcullis_group_changes WHERE generation <= ?";
    transaction.execute(sql, &from).await?;
    transaction.execute("DELETE FROM portcullis_generations WHERE generation < ?", &from).await?;
    Ok(())
}

async fn remove(transaction: &Transaction, decision: &Decision) -> Result<(), Error> {
    let ids = || decision.removed.iter().map(|(id, _)| Ok(vec![plan::sql_id(*id)?.into()]));
    for before in [
        "DELETE FROM portcullis_security_group_spaces WHERE group_id IN (",
        "DELETE FROM portcullis_security_groups WHERE id IN (",
    ] {
        let ids = ids().collect::<Result<Vec<Vec<Value>>, Error>>()?;
        Batch { before, marks: "?", after: ")" }.run(transaction, ids).await?;
    }
    Ok(())
}

async fn store(
    transaction: &Transaction,
    dialect: Dialect,
    most: usize,
    upserts: &[Upsert],
) -> Result<(), Error> {
    match dialect {
        Dialect::Postgres => {
            let (added, changed): (Vec<&Upsert>, Vec<&Upsert>) =
                upserts.iter().partition(|upsert| upsert.added);
            for added in added.chunks(GROUPS_AT_ONCE) {
                copy_groups(transaction, added).await?;
            }
            let after = "ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, running_default = excluded.running_default,
                 staging_default = excluded.staging_default, rules = excluded.rules,
                 content_hash = excluded.content_hash";
            upsert_groups(transaction, after, most, &changed).await
        }
        Dialect::MySql => {
            let after = "ON DUPLICATE KEY UPDATE
                 name = VALUES(name), running_default = VALUES(running_default),
                 staging_default = VALUES(staging_default), rules = VALUES(rules),
                 content_hash = VALUES(content_hash)";
            upsert_groups(transaction, after, most, &upserts.iter().collect::<Vec<_>>()).await
        }
    }
}

/// Encodes the rules while the server processes the previous rows.
async fn copy_groups(transaction: &Transaction, added: &[&Upsert]) -> Result<(), Error> {
    let ids: Vec<i64> =
        added.iter().map(|upsert| plan::sql_id(upsert.id)).collect::<Result<_, _>>()?;
    let mut left = ids.into_iter().zip(added);
    let write = |rows: &mut NewRows| {
        let Some((id, upsert)) = left.next() else { return false };
        let Upsert { id: _, group, hash, added: _ } = upsert;
        rows.push([
            id.into(),
            group.guid.as_str().into(),
            group.name.as_bytes().into(),
            group.running.everywhere.into(),
            group.staging.everywhere.into(),
            rules::to_text(&group.rules()).as_str().into(),
            hash.0.as_slice().into(),
        ]);
        true
    };
    transaction.copy(&format!("{GROUPS} {GROUP_COLUMNS}"), write).await?;
    Ok(())
}

async fn upsert_groups(
    transaction: &Transaction,
    after: &'static str,
    most: usize,
    upserts: &[&Upsert],
) -> Result<(), Error> {
    let before = format!("INSERT INTO {GROUPS} {GROUP_COLUMNS} VALUES");
    let batch = Batch { before: &before, marks: "(?,?,?,?,?,?,?)", after };
    // Rows are created per chunk: a large set must not be in memory twice.
    for upserts in upserts.chunks(IDS_AT_ONCE) {
        let rows = upserts.iter().map(|upsert| group_row(upsert, most));
        batch.run(transaction, rows.collect::<Result<_, Error>>()?).await?;
    }
    Ok(())
}

fn group_row(upsert: &Upsert, most: usize) -> Result<Vec<Value>, Error> {
    let Upsert { id, group, hash, added: _ } = upsert;
    let rules = rules::to_text(&group.rules());
    let bytes = rules.len() + group.name.len();
    if bytes > most {
        return Err(Error::TooLarge { guid: group.guid.clone(), bytes, most });
    }
    Ok(vec![
        plan::sql_id(*id)?.into(),
        group.guid.as_str().into(),
        group.name.as_bytes().into(),
        group.running.everywhere.into(),
        group.staging.everywhere.into(),
        rules.into(),
        hash.0.to_vec().into(),
    ])
}

async fn bind(
    transaction: &Transaction,
    dialect: Dialect,
    decision: &Decision,
    before: &Scopes,
) -> Result<(), Error> {
    let (gone, new) = plan::bindings(decision, before)?;
    let mut new = new.peekable();
    let row = |binding: &plan::Binding<'_>| {
        vec![binding.group_id.into(), binding.lifecycle.into(), binding.space.as_str().into()]
    };
    let delete = Batch {
        before: "DELETE FROM portcullis_security_group_spaces
                 WHERE (group_id, lifecycle, space_guid) IN (",
        marks: "(?,?,?)",
        after: ")",
    };
    delete.run(transaction, gone.iter().map(row).collect()).await?;
    match dialect {
        Dialect::Postgres => {
            while new.peek().is_some() {
                copy_bindings(transaction, new.by_ref().take(BINDINGS_AT_ONCE)).await?;
            }
            Ok(())
        }
        Dialect::MySql => {
            let insert = Batch {
                before: "INSERT INTO portcullis_security_group_spaces
                         (group_id, lifecycle, space_guid) VALUES",
                marks: "(?,?,?)",
                after: "",
            };
            while new.peek().is_some() {
                let rows = new.by_ref().take(BINDINGS_AT_ONCE).map(|binding| row(&binding));
                insert.run(transaction, rows.collect()).await?;
            }
            Ok(())
        }
    }
}

async fn copy_bindings(
    transaction: &Transaction,
    mut left: impl Iterator<Item = plan::Binding<'_>> + Send,
) -> Result<(), Error> {
    let write = |rows: &mut NewRows| {
        let Some(plan::Binding { group_id, lifecycle, space }) = left.next() else { return false };
        rows.push([group_id.into(), lifecycle.into(), space.as_str().into()]);
        true
    };
    let into = "portcullis_security_group_spaces (group_id, lifecycle, space_guid)";
    transaction.copy(into, write).await?;
    Ok(())
}

pub(super) async fn store_state(transaction: &Transaction, state: &State) -> Result<(), Error> {
    let row = StateRow::try_from(state)?;
    let sql = "UPDATE portcullis_store_state SET
            generation = ?, stamp_ns = ?, watermark_seconds = ?, watermark_nanoseconds = ?,
            fencing_token = ?, writer = ?, synced_at_ms = ?, last_id = ?, held = ?
        WHERE only_row = 1";
    let parameters = [
        row.generation.into(),
        row.stamp_ns.into(),
        row.watermark_seconds.into(),
        row.watermark_nanoseconds.into(),
        row.fencing_token.into(),
        row.writer.map(String::into_bytes).into(),
        row.synced_at_ms.into(),
        row.last_id.into(),
        row.held.map(String::into_bytes).into(),
    ];
    transaction.execute(sql, &parameters).await?;
    Ok(())
}

/// An older report of a cell never replaces a newer one, whichever instance received
/// them.
pub(super) async fn save_reports(server: &Server, unsaved: &Unsaved) -> Result<(), Error> {
    if unsaved.is_empty() {
        return Ok(());
    }
    let after = match server.dialect() {
        Dialect::Postgres => {
            "ON CONFLICT (cell_id) DO UPDATE SET
                 enforced_generation = excluded.enforced_generation,
                 containers = excluded.containers, isolated_rules = excluded.isolated_rules,
                 reported_at_ms = excluded.reported_at_ms
             WHERE portcullis_cell_reports.reported_at_ms <= excluded.reported_at_ms"
        }
        // Assignments take effect from left to right: the time is compared before it changes.
        Dialect::MySql => {
            "ON DUPLICATE KEY UPDATE
                 enforced_generation = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(enforced_generation), enforced_generation),
                 containers = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(containers), containers),
                 isolated_rules = IF(reported_at_ms <= VALUES(reported_at_ms),
                     VALUES(isolated_rules), isolated_rules),
                 reported_at_ms = GREATEST(reported_at_ms, VALUES(reported_at_ms))"
        }
    };
    let insert = Batch {
        before: "INSERT INTO portcullis_cell_reports
            (cell_id, enforced_generation, containers, isolated_rules, reported_at_ms) VALUES",
        marks: "(?,?,?,?,?)",
        after,
    };
    let delete = Batch {
        before: "DELETE FROM portcullis_cell_reports WHERE (cell_id, reported_at_ms) IN (",
        marks: "(?,?)",
        after: ")",
    };
    server
        .transaction(async |transaction: Transaction| {
            let rows = unsaved.reports.iter().map(|(cell, report)| {
                let row = rows::report_row(cell, report)?;
                Ok::<_, Error>(report_values(&row))
            });
            insert.run(&transaction, rows.collect::<Result<_, Error>>()?).await?;
            let gone = unsaved.forgotten.iter();
            let gone =
                gone.map(|(cell, at)| vec![cell.as_str().into(), at.as_millisecond().into()]);
            delete.run(&transaction, gone.collect()).await
        })
        .await
}

fn report_values(row: &ReportRow<'_>) -> Vec<Value> {
    vec![
        row.cell_id.into(),
        row.enforced_generation.into(),
        row.containers.into(),
        row.isolated_rules.into(),
        row.reported_at_ms.into(),
    ]
}
