//! Rows of the original's table (contracts/locket.md 3.1) as versions of locks.
//!
//! A row without an owner is nobody's. A row of another type than `lock` and
//! `presence` counts as a lock, as it does in the original's metrics: its owner may
//! refresh it, others collide, and it expires; only [`Selector::Kind`] passes it over,
//! and clients see the type that it has.

use std::sync::Arc;

use model::lock::{self, FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Selector, Ttl};
use storage::server::{Dialect, Row, Server, Value};

use crate::held::Held;

/// A row as it was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A lock, with its token.
    Held(Held),
    /// A lock that got its owner from a server that gives no tokens: the token of
    /// the owner before is not its own.
    Untold(Held),
    /// What has no time to live: to be deleted.
    Dead(Held),
}

/// Why a row is passed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Column(#[from] storage::Error),
    #[error("{0}")]
    Lock(#[from] lock::Error),
}

const POSTGRES: &str = "SELECT l.path, l.owner, COALESCE(l.value, ''), COALESCE(l.type, ''),
COALESCE(l.modified_index, 0), COALESCE(l.modified_id, ''), COALESCE(l.ttl, 0),
COALESCE(f.token, 0), COALESCE(f.modified_id, '')
FROM locks l LEFT JOIN fencing_tokens f ON f.path = l.path WHERE l.owner <> ''";

const MYSQL: &str = "SELECT l.path, l.owner, COALESCE(l.value, ''), COALESCE(l.type, ''),
COALESCE(l.modified_index, 0), COALESCE(l.modified_id, ''), COALESCE(l.ttl, 0),
COALESCE(f.token, 0), COALESCE(f.modified_id, '')
FROM locks l LEFT JOIN fencing_tokens f ON f.path = CONVERT(l.path USING utf8mb4)
WHERE l.owner <> ''";

/// Reads what a selector names; `None`: everything.
pub(super) async fn read(
    server: &Server,
    selector: Option<&Selector>,
) -> Result<Vec<Row>, storage::Error> {
    let columns = match server.dialect() {
        Dialect::Postgres => POSTGRES,
        Dialect::MySql => MYSQL,
    };
    match selector {
        None => server.query(columns, &[]).await,
        Some(Selector::Key(key)) => {
            let sql = format!("{columns} AND l.path = ?");
            server.query(&sql, &[Value::from(key.as_str())]).await
        }
        Some(Selector::Kind(kind)) => {
            let sql = format!("{columns} AND l.type = ?");
            server.query(&sql, &[Value::from(kind.as_str())]).await
        }
    }
}

/// A row of [`read`].
pub(super) fn parse(row: &Row) -> Result<Found, Unreadable> {
    let text = |column| row.get::<String>(column);
    let number = |column| row.get::<i64>(column);
    let (kind, foreign_type) = match text(3)?.as_str() {
        "lock" => (LockKind::Lock, None),
        "presence" => (LockKind::Presence, None),
        foreign => (LockKind::Lock, Some(Arc::from(foreign))),
    };
    let ttl = number(6)?;
    let id = text(5)?;
    let is_told = text(8)? == id;
    let held = Held {
        lock: Lock {
            key: LockKey::parse(&text(0)?)?,
            owner: Owner::parse(&text(1)?)?,
            value: LockValue::parse(&text(2)?)?,
            kind,
            ttl: Ttl::try_from_seconds(ttl.max(1))?,
            token: FencingToken(number(7)?.unsigned_abs()),
        },
        id: Arc::from(id),
        index: number(4)?,
        request: None,
        foreign_type,
    };
    Ok(if ttl <= 0 {
        Found::Dead(held)
    } else if is_told {
        Found::Held(held)
    } else {
        Found::Untold(held)
    })
}

/// The row's key, for the log.
pub(super) fn key(row: &Row) -> Option<String> {
    row.get(0).ok()
}
