//! Connections to MySQL and MariaDB.

use std::{future::pending, net::SocketAddr, time::Duration};

use mysql_async::{
    Column, Conn, Opts, OptsBuilder, Params, SslOpts, consts::ColumnType, prelude::Queryable as _,
};
use net::Addresses;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Options, Rows,
    address::{self, Place},
    fault::Fault,
    tls::{self, Trust},
    value::{Row, Value},
};
use crate::{Error, Kind};

/// Character set number of binary data.
const BINARY: u16 = 63;

/// Connections idle for longer are pinged before use: the driver does not read from an idle
/// connection, so it does not detect its end.
const FRESH: Duration = Duration::from_secs(1);

/// Time without a response after which the server is probed, and timeout of the probe. The driver
/// has no TCP_USER_TIMEOUT: without the probe, a dead server is detected only when the operation
/// times out.
const PROBE: Duration = Duration::from_millis(2_250);

/// The driver's `skip_domain_validation` looks for this word in the error text, but newer releases
/// of rustls write the host name there instead. Used as the host name, the word appears in the text
/// of both, and only in name errors: a certificate of another CA is rejected before names are
/// checked.
const NO_NAME: &str = "NotValidForName.invalid";

/// Connection settings.
#[derive(Clone)]
pub(super) struct Connector {
    opts: OptsBuilder,
    /// Host and port; `None` for a Unix socket.
    host: Option<(String, u16)>,
    trust: Trust,
    session: String,
}

impl Connector {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let address = address::mysql(&options.connection_string)?;
        let trust = trust(options, address.tls.as_deref())?;
        let mut opts = OptsBuilder::default()
            .user(address.user)
            .pass(address.password)
            .db_name(address.database)
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .tcp_nodelay(true)
            .client_found_rows(true)
            .stmt_cache_size(256);
        let host = match address.place {
            Place::Tcp { host, port } => {
                opts = opts.ip_or_hostname(host.clone()).tcp_port(port);
                Some((host, port))
            }
            Place::Socket(path) => {
                opts = opts.socket(Some(path));
                None
            }
        };
        // Overrides the server's defaults. READ COMMITTED takes no gap locks, so inserts of two new
        // keys do not block each other.
        let session = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
             SET SESSION autocommit = 1, innodb_lock_wait_timeout = {},
             sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'",
            options.operation_timeout.as_secs().max(1)
        );
        Ok(Self { opts, host, trust, session })
    }

    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        let (mut conn, probe) = match (ssl(&self.trust)?, &self.trust) {
            (Some(ssl), Trust::IfOffered) => match self.dial(Some(ssl)).await {
                Err(mysql_async::Error::Driver(
                    mysql_async::DriverError::NoClientSslFlagFromServer,
                )) => self.dial(None).await?,
                dialled => dialled?,
            },
            (ssl, _) => self.dial(ssl).await?,
        };
        conn.query_drop(self.session.as_str()).await?;
        Ok(Connection { conn, probe, used: Instant::now() })
    }

    /// Each attempt opens a complete connection, since the driver does not accept an existing
    /// stream.
    async fn dial(&self, ssl: Option<SslOpts>) -> Result<(Conn, Probe), mysql_async::Error> {
        let opts = self.opts.clone().ssl_opts(ssl);
        let Some((host, port)) = &self.host else {
            return Ok((Conn::new(opts).await?, Probe(None)));
        };
        let at = |address: SocketAddr| opts.clone().resolved_ips(Some(vec![address.ip()]));
        let addresses = Addresses::of(host, *port).await?;
        let (address, conn) = addresses.race(|address| Conn::new(at(address))).await?;
        Ok((conn, Probe(Some(at(address).into()))))
    }
}

/// Probes a connection's server with a second connection; `None` for a Unix socket, whose end is
/// always signalled.
struct Probe(Option<Opts>);

impl Probe {
    /// Returns the response, or a fault once the server accepts no connection any more.
    async fn attend<T>(
        &self,
        answer: impl Future<Output = Result<T, mysql_async::Error>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            biased;
            answer = answer => Ok(answer?),
            fault = self.until_gone() => Err(fault),
        }
    }

    async fn until_gone(&self) -> Fault {
        let Some(opts) = &self.0 else { return pending().await };
        loop {
            sleep(PROBE).await;
            match timeout(PROBE, Conn::new(opts.clone())).await {
                // "Too many connections" is also a response.
                Ok(Ok(_) | Err(mysql_async::Error::Server(_))) => {}
                Ok(Err(error)) => return error.into(),
                Err(_elapsed) => {
                    let text = format!("the server takes no connection within {PROBE:?}");
                    return Fault::new(Kind::Unavailable, text);
                }
            }
        }
    }
}

fn trust(options: &Options, tls: Option<&str>) -> Result<Trust, Error> {
    if let Some(tls) = &options.tls {
        return Ok(Trust::Verified { ca: tls.ca.clone(), identity: tls.verify_identity });
    }
    let problem = |problem: &str| Err(Error::ConnectionString { problem: problem.to_owned() });
    match tls {
        None | Some("" | "false") => Ok(Trust::Plain),
        Some("skip-verify") => Ok(Trust::AnyCertificate),
        Some("preferred") => Ok(Trust::IfOffered),
        Some("true") => problem("tls=true asks for verification, and no authority is named"),
        Some(_) => problem("tls is none of true, false, skip-verify, preferred"),
    }
}

fn ssl(trust: &Trust) -> Result<Option<SslOpts>, Fault> {
    let none = SslOpts::default().with_disable_built_in_roots(true);
    Ok(match trust {
        Trust::Plain => None,
        Trust::IfOffered | Trust::AnyCertificate => {
            Some(none.with_danger_accept_invalid_certs(true))
        }
        Trust::Verified { ca, identity } => {
            // An empty file would trust no CA, and the error would only be "unknown issuer".
            tls::authorities(ca)?;
            let verified = none.with_root_certs(vec![ca.clone().into()]);
            Some(if *identity {
                verified
            } else {
                verified
                    .with_danger_skip_domain_validation(true)
                    .with_danger_tls_hostname_override(Some(NO_NAME))
            })
        }
    })
}

/// An open connection.
pub(super) struct Connection {
    conn: Conn,
    probe: Probe,
    used: Instant,
}

impl Connection {
    /// Pings the connection if it was idle.
    pub(super) async fn check(&mut self) -> Result<(), Fault> {
        if self.used.elapsed() > FRESH {
            self.probe.attend(self.conn.ping()).await?;
            self.used = Instant::now();
        }
        Ok(())
    }

    /// Sends COM_QUIT and closes the socket.
    pub(super) async fn close(self) {
        let _closed_anyhow = self.conn.disconnect().await;
    }

    /// Runs one statement; with `begin`, it is the first of a transaction.
    pub(super) async fn run(
        &mut self,
        begin: bool,
        sql: &str,
        parameters: &[Value],
    ) -> Result<Rows, Fault> {
        let parameters = match parameters {
            [] => Params::Empty,
            parameters => Params::Positional(parameters.iter().map(to_mysql).collect()),
        };
        let conn = &mut self.conn;
        let answer = async {
            if begin {
                conn.query_drop("BEGIN").await?;
            }
            let mut answer = conn.exec_iter(sql, parameters).await?;
            let affected = answer.affected_rows();
            let rows = answer.collect::<mysql_async::Row>().await?;
            answer.drop_result().await?;
            Ok((rows, affected))
        };
        let (rows, affected) = self.probe.attend(answer).await?;
        self.used = Instant::now();
        let rows = rows.into_iter().map(to_row).collect::<Result<_, _>>()?;
        Ok(Rows { rows, affected })
    }

    /// Runs several statements in one round trip, as text; returns the results that have rows.
    pub(super) async fn script(&mut self, sql: &str) -> Result<Vec<Rows>, Fault> {
        let mut answer = self.conn.query_iter(sql).await?;
        let mut all = Vec::new();
        loop {
            let affected = answer.affected_rows();
            let rows = answer.collect::<mysql_async::Row>().await?;
            let rows = rows.into_iter().map(to_row).collect::<Result<_, _>>()?;
            all.push(Rows { rows, affected });
            if answer.is_empty() {
                break;
            }
        }
        answer.drop_result().await?;
        self.used = Instant::now();
        Ok(all)
    }

    /// Runs statements without parameters and without a result.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<Rows, Fault> {
        self.probe.attend(self.conn.query_drop(sql)).await?;
        self.used = Instant::now();
        Ok(Rows::default())
    }
}

/// Inserts the values into a statement's text: each `?` outside of quotes is a parameter.
pub(super) fn literal(sql: &str, values: &[Value]) -> String {
    // Sessions do not use the mode `NO_BACKSLASH_ESCAPES`.
    let values: Vec<_> = values.iter().map(|value| to_mysql(value).as_sql(false)).collect();
    super::text::filled(sql, &values)
}

fn to_mysql(value: &Value) -> mysql_async::Value {
    match value {
        Value::Null => mysql_async::Value::NULL,
        Value::Int(number) => mysql_async::Value::Int(*number),
        Value::Text(text) => mysql_async::Value::Bytes(text.clone().into_bytes()),
        Value::Bytes(bytes) => mysql_async::Value::Bytes(bytes.clone()),
    }
}

fn to_row(row: mysql_async::Row) -> Result<Row, Fault> {
    let columns = row.columns();
    let values = columns.iter().zip(row.unwrap()).map(|(column, value)| to_value(column, value));
    Ok(Row::new(values.collect::<Result<_, _>>()?))
}

fn whole(bytes: &[u8]) -> Option<i64> {
    str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())
}

fn to_value(column: &Column, value: mysql_async::Value) -> Result<Value, Fault> {
    let refuse =
        |what: &str| Err(Fault::new(Kind::Other, format!("column {} {what}", column.name_str())));
    match value {
        mysql_async::Value::NULL => Ok(Value::Null),
        mysql_async::Value::Int(number) => Ok(Value::Int(number)),
        mysql_async::Value::UInt(number) => match i64::try_from(number) {
            Ok(number) => Ok(Value::Int(number)),
            Err(_) => refuse("is larger than any number here"),
        },
        mysql_async::Value::Bytes(bytes) => match column.column_type() {
            // Type of a sum of integers.
            ColumnType::MYSQL_TYPE_NEWDECIMAL => match whole(&bytes) {
                Some(number) => Ok(Value::Int(number)),
                None => refuse("is no whole number"),
            },
            // Results of a script arrive as text.
            ColumnType::MYSQL_TYPE_TINY
            | ColumnType::MYSQL_TYPE_SHORT
            | ColumnType::MYSQL_TYPE_INT24
            | ColumnType::MYSQL_TYPE_LONG
            | ColumnType::MYSQL_TYPE_LONGLONG => whole(&bytes)
                .map_or_else(|| refuse("is no whole number"), |number| Ok(Value::Int(number))),
            _ if column.character_set() == BINARY => Ok(Value::Bytes(bytes)),
            _ => match String::from_utf8(bytes) {
                Ok(text) => Ok(Value::Text(text)),
                Err(_) => refuse("is no UTF-8"),
            },
        },
        mysql_async::Value::Float(_)
        | mysql_async::Value::Double(_)
        | mysql_async::Value::Date(..)
        | mysql_async::Value::Time(..) => refuse("is neither integer, text nor bytes"),
    }
}
