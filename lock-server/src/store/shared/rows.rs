//! Converts rows of the original's table (docs/compatibility/locket.md#schema) to lock versions.
//!
//! A row without an owner is skipped. A row of a type other than `lock` and
//! `presence` counts as a lock, as it does in the original's metrics: its owner may
//! refresh it, other claims collide, and it expires; only [`Selector::Kind`] skips it.
//! Clients see its type unchanged.

use std::sync::Arc;

use model::lock::{self, FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Selector, Ttl};
use storage::server::{Dialect, Row, Server, Value};

use super::conditions::held;
use crate::lock_version::LockVersion;

/// A converted row.
#[derive(Debug)]
pub(super) enum Found {
    /// A lock, with its token.
    LockVersion(LockVersion),
    /// A lock whose owner was written by a server without fencing tokens: the stored
    /// token is that of the previous owner.
    Untold(LockVersion),
    /// A row without a time to live: to be deleted.
    Dead(LockVersion),
}

/// Reason why a row is skipped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Column(#[from] storage::Error),
    #[error("{0}")]
    Lock(#[from] lock::Error),
}

/// The columns of a row: of `locks l` and `fencing_tokens f`.
macro_rules! columns {
    () => {
        "l.path, l.owner, COALESCE(l.value, ''), COALESCE(l.type, ''),
COALESCE(l.modified_index, 0), COALESCE(l.modified_id, ''), COALESCE(l.ttl, 0),
COALESCE(f.token, 0), COALESCE(f.modified_id, '')"
    };
}

const POSTGRES: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM locks l LEFT JOIN fencing_tokens f ON f.path = l.path WHERE ",
    held!("l.owner")
);

// `LIMIT` prevents the planner from reading all tokens for the rows of one kind.
const POSTGRES_KIND: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM locks l LEFT JOIN LATERAL (
    SELECT token, modified_id FROM fencing_tokens WHERE path = l.path LIMIT 1
) f ON true WHERE ",
    held!("l.owner")
);

// The same for the keys of a JSON array and the rows of `locks`.
const POSTGRES_KEYS: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM json_array_elements_text(CAST(CAST(? AS text) AS json)) AS a (path)
CROSS JOIN LATERAL (SELECT * FROM locks WHERE path = a.path LIMIT 1) l
LEFT JOIN LATERAL (
    SELECT token, modified_id FROM fencing_tokens WHERE path = l.path LIMIT 1
) f ON true WHERE ",
    held!("l.owner")
);

const MYSQL: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM locks l LEFT JOIN fencing_tokens f ON f.path = CONVERT(l.path USING utf8mb4)
WHERE ",
    held!("l.owner")
);

/// Reads the rows that match a selector; `None`: all rows.
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
        Some(Selector::Kind(kind)) => server.query(&of_kind(server.dialect(), *kind), &[]).await,
    }
}

/// The statement for a kind. The kind is a literal: for a parameter the planner would
/// use the average selectivity of the kinds.
fn of_kind(dialect: Dialect, kind: LockKind) -> String {
    let columns = match dialect {
        Dialect::Postgres => POSTGRES_KIND,
        Dialect::MySql => MYSQL,
    };
    format!("{columns} AND l.type = '{}'", kind.as_str())
}

/// Reads the rows of these keys in one statement.
pub(super) async fn read_keys(server: &Server, keys: &[&str]) -> Result<Vec<Row>, storage::Error> {
    match (server.dialect(), keys) {
        (_, []) => Ok(Vec::new()),
        (Dialect::Postgres, keys) => {
            let text = serde_json::to_string(keys).expect("a list of texts");
            server.query(POSTGRES_KEYS, &[Value::from(text)]).await
        }
        (Dialect::MySql, [first, ..]) => {
            // Repeat the first key up to a power of two, which bounds the number of prepared
            // statements per connection.
            let size = keys.len().next_power_of_two();
            let values: Vec<_> = keys.iter().copied().map(Value::from).collect();
            let more = size - values.len();
            let values: Vec<_> =
                values.into_iter().chain(vec![Value::from(*first); more]).collect();
            let sql = format!("{MYSQL} AND l.path IN (?{})", ", ?".repeat(size - 1));
            server.query(&sql, &values).await
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
    let held = LockVersion {
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
        Found::LockVersion(held)
    } else {
        Found::Untold(held)
    })
}

/// A row of [`read`]; a row that is no lock is logged.
pub(super) fn readable(row: &Row) -> Option<Found> {
    let unreadable = |error: Unreadable| {
        let key: Option<String> = row.get(0).ok();
        tracing::error!(key, error = %error, "failed-to-scan-lock");
    };
    parse(row).map_err(unreadable).ok()
}
