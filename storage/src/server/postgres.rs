//! Connections to PostgreSQL.

mod place;

use std::{collections::HashMap, env, error, fmt, io, net::SocketAddr, path::Path, pin::pin};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, TryStreamExt as _, future};
use net::Addresses;
use tokio::{net::UnixStream, task::JoinSet};
use tokio_postgres::{
    Client, Config, SimpleQueryMessage, Statement,
    config::{SslMode, TargetSessionAttrs},
    tls::MakeTlsConnect,
    types::{IsNull, ToSql, Type, to_sql_checked},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::either::Either;

use self::place::{Place, places};
use super::{
    Options, Rows,
    address::{self, Settings},
    fault::Fault,
    text,
    tls::{self, Trust},
    value::{Row, Value},
};
use crate::{Error, Kind};

/// Size of a connection's prepared statement cache, which is cleared when full.
const STATEMENTS: usize = 256;

type Socket = Either<net::Stream, UnixStream>;

/// A connection that its owner must poll.
pub(super) type Driven =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Connection settings.
#[derive(Clone)]
pub(super) struct Connector {
    config: Config,
    /// Non-empty.
    places: Vec<Place>,
    trust: Trust,
    session: String,
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let settings = address::postgres(&options.connection_string, |name| env::var(name).ok())?;
        let trust = trust(options, &settings)?;
        let places = places(&settings)?;
        let mut config = config(settings, options)?;
        config.ssl_mode(match trust {
            Trust::Plain => SslMode::Disable,
            Trust::IfOffered => SslMode::Prefer,
            Trust::AnyCertificate | Trust::Verified { .. } => SslMode::Require,
        });
        // Overrides the database's defaults: a session's statements time out with the caller, and a
        // confirmed commit is on disk.
        let millis = options.operation_timeout.as_millis().max(1);
        let session = format!(
            "SET statement_timeout = {millis}; SET lock_timeout = {millis};
             SET idle_in_transaction_session_timeout = {};
             SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
             SELECT set_config('synchronous_commit', 'on', false)
             WHERE current_setting('synchronous_commit') = 'off';
             {}",
            millis * 2,
            options.on_connect
        );
        Ok(Self { config, places, trust, session })
    }

    /// Opens a connection that the caller polls. Tries Unix sockets first, then the addresses of
    /// all hosts, as [`net::open`] does.
    pub(super) async fn dial(&self) -> Result<(Client, Driven), Fault> {
        let tls = MakeRustlsConnect::new(tls::client_config(&self.trust)?);
        let mut first_fault = None;
        for place in &self.places {
            let Place::Socket(path) = place else { continue };
            match self.dial_socket(path, tls.clone()).await {
                Ok(dialled) => return Ok(dialled),
                Err(fault) => _ = first_fault.get_or_insert(fault),
            }
        }
        let hosts = self.places.iter().filter_map(|place| match place {
            Place::Tcp { name, at, port } => Some((name.as_str(), at.as_str(), *port)),
            Place::Socket(_) => None,
        });
        let hosts: Vec<_> = hosts.collect();
        match first_fault {
            Some(fault) if hosts.is_empty() => Err(fault),
            _ => self.dial_hosts(&hosts, &tls).await,
        }
    }

    async fn dial_socket(
        &self,
        path: &Path,
        tls: MakeRustlsConnect,
    ) -> Result<(Client, Driven), Fault> {
        let stream = UnixStream::connect(path).await?;
        self.greet(Either::Right(stream), tls, "localhost").await
    }

    /// `hosts` are certificate names, names to resolve, and ports.
    async fn dial_hosts(
        &self,
        hosts: &[(&str, &str, u16)],
        tls: &MakeRustlsConnect,
    ) -> Result<(Client, Driven), Fault> {
        let mut names: HashMap<SocketAddr, &str> = HashMap::new();
        let mut addresses: Option<Addresses> = None;
        let resolved = hosts.iter().map(async |&(name, at, port)| {
            Ok::<_, io::Error>((name, Addresses::of(at, port).await?))
        });
        let mut first_error = None;
        for resolved in future::join_all(resolved).await {
            match resolved {
                Ok((name, of_host)) => {
                    for address in of_host.as_slice() {
                        names.entry(*address).or_insert(name);
                    }
                    addresses = Some(match addresses {
                        Some(before) => before.then(of_host),
                        None => of_host,
                    });
                }
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        let Some(addresses) = addresses else {
            let none = || io::Error::new(io::ErrorKind::NotFound, "no host is named");
            return Err(first_error.unwrap_or_else(none).into());
        };
        net::open(&addresses, |address, stream| {
            self.greet(Either::Left(stream), tls.clone(), names[&address])
        })
        .await
    }

    /// TLS, login, and a check that the server is of the required kind.
    async fn greet(
        &self,
        stream: Socket,
        mut tls: MakeRustlsConnect,
        name: &str,
    ) -> Result<(Client, Driven), Fault> {
        let tls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(&mut tls, name)
            .map_err(|error| Fault::new(Kind::Refused, format!("{name}: {error}")))?;
        let (client, mut connection) = self.config.connect_raw(stream, tls).await?;
        let wanted = self.config.get_target_session_attrs();
        if wanted != TargetSessionAttrs::Any {
            let asked = client.simple_query("SHOW transaction_read_only");
            let answer = tokio::select! {
                answer = asked => answer?,
                _ended = &mut connection => {
                    return Err(Fault::new(Kind::Unavailable, "the server closed the connection"));
                }
            };
            let read_only = answer.iter().any(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
                _ => false,
            });
            match (wanted, read_only) {
                (TargetSessionAttrs::ReadWrite, true) => {
                    return Err(Fault::new(Kind::Unavailable, "database does not allow writes"));
                }
                (TargetSessionAttrs::ReadOnly, false) => {
                    return Err(Fault::new(Kind::Unavailable, "database is not read only"));
                }
                _ => {}
            }
        }
        Ok((client, connection))
    }

    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        let (client, connection) = self.dial().await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Callers that wait for a response get the error; this task has no waiter.
            let _ended = connection.await;
        });
        client.batch_execute(&self.session).await?;
        Ok(Connection { client, statements: HashMap::new(), driver })
    }
}

fn trust(options: &Options, settings: &Settings) -> Result<Trust, Error> {
    if let Some(tls) = &options.tls {
        return Ok(Trust::Verified { ca: tls.ca.clone(), identity: tls.verify_identity });
    }
    let problem = |problem: &str| Err(Error::ConnectionString { problem: problem.to_owned() });
    let verified = |identity| match settings.get("sslrootcert") {
        Some(ca) => Ok(Trust::Verified { ca: ca.into(), identity }),
        None => problem("sslmode asks for verification, and no authority is named"),
    };
    match settings.get("sslmode").map_or("prefer", String::as_str) {
        "disable" => Ok(Trust::Plain),
        "allow" | "prefer" => Ok(Trust::IfOffered),
        "require" if settings.contains_key("sslrootcert") => verified(false),
        "require" => Ok(Trust::AnyCertificate),
        "verify-ca" => verified(false),
        "verify-full" => verified(true),
        _ => problem("sslmode is none that PostgreSQL knows"),
    }
}

fn config(settings: Settings, options: &Options) -> Result<Config, Error> {
    let problem = |problem: &str| Error::ConnectionString { problem: problem.to_owned() };
    let mut config = Config::new();
    config.application_name(&options.application_name);
    if !settings.contains_key("user") {
        let user = env::var("USER").or_else(|_| env::var("LOGNAME"));
        config.user(user.map_err(|_| problem("no user is named"))?);
    }
    let mut session = Vec::new();
    for (key, value) in settings {
        match key.as_str() {
            "user" => _ = config.user(value),
            "password" => _ = config.password(value),
            "dbname" => _ = config.dbname(value),
            "application_name" => _ = config.application_name(value),
            "options" => session.insert(0, value),
            "target_session_attrs" => {
                config.target_session_attrs(match value.as_str() {
                    "any" => TargetSessionAttrs::Any,
                    "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
                    "read-only" | "standby" => TargetSessionAttrs::ReadOnly,
                    _ => return Err(problem("target_session_attrs is none that is known")),
                });
            }
            // Parsed elsewhere, replaced by our own options, or without meaning here.
            "host"
            | "hostaddr"
            | "port"
            | "sslmode"
            | "sslrootcert"
            | "connect_timeout"
            | "sslcert"
            | "sslkey"
            | "sslsni"
            | "passfile"
            | "service"
            | "servicefile"
            | "krbsrvname"
            | "channel_binding"
            | "client_encoding"
            | "keepalives"
            | "keepalives_idle"
            | "keepalives_interval"
            | "keepalives_count"
            | "tcp_user_timeout"
            | "gssencmode"
            | "min_protocol_version"
            | "fallback_application_name" => {}
            // Session settings, as in the original's driver.
            setting => session.push(format!("-c {setting}={}", escaped(&value))),
        }
    }
    if !session.is_empty() {
        config.options(session.join(" "));
    }
    Ok(config)
}

/// Escapes spaces and backslashes for the startup message.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(' ', "\\ ")
}

/// An open connection.
pub(super) struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
    /// Task that drives the connection's I/O; ends with the connection.
    driver: JoinSet<()>,
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Sends Terminate and waits until the socket is closed.
    pub(super) async fn close(self) {
        let Self { client, statements, mut driver } = self;
        drop((client, statements));
        driver.join_next().await;
    }

    async fn prepared(&mut self, sql: &str) -> Result<Statement, Fault> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&text::numbered(sql)).await?;
        if self.statements.len() >= STATEMENTS {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Runs one statement; with `begin`, it is the first of a transaction, and BEGIN and the
    /// statement are sent together.
    pub(super) async fn run(
        &mut self,
        begin: bool,
        sql: &str,
        parameters: &[Value],
    ) -> Result<Rows, Fault> {
        let statement = self.prepared(sql).await?;
        let answer = async {
            let stream = self.client.query_raw(&statement, parameters).await?;
            let mut stream = pin!(stream);
            let mut rows = Vec::new();
            while let Some(row) = stream.try_next().await? {
                rows.push(to_row(&row)?);
            }
            Ok(Rows { rows, affected: stream.rows_affected().unwrap_or(0) })
        };
        if !begin {
            return answer.await;
        }
        let (begun, answer) = future::join(self.client.batch_execute("BEGIN"), answer).await;
        begun?;
        answer
    }

    /// Copies rows into a table. If dropped early, the copy is aborted on the server.
    pub(super) async fn copy(
        &mut self,
        into: &str,
        pieces: &mut (dyn Iterator<Item = Bytes> + Send),
    ) -> Result<Rows, Fault> {
        let sink = self.client.copy_in(&format!("COPY {into} FROM STDIN")).await?;
        let mut sink = pin!(sink);
        for piece in pieces {
            sink.feed(piece).await?;
        }
        Ok(Rows { rows: Vec::new(), affected: sink.finish().await? })
    }

    /// Runs statements without parameters and without a result.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<Rows, Fault> {
        self.client.batch_execute(sql).await?;
        Ok(Rows::default())
    }
}

fn to_row(row: &tokio_postgres::Row) -> Result<Row, Fault> {
    let values = row.columns().iter().enumerate().map(|(at, column)| match *column.type_() {
        Type::INT8 => Ok(row.try_get::<_, Option<i64>>(at)?.into()),
        Type::INT4 => Ok(row.try_get::<_, Option<i32>>(at)?.map(i64::from).into()),
        Type::INT2 => Ok(row.try_get::<_, Option<i16>>(at)?.map(i64::from).into()),
        Type::BOOL => Ok(row.try_get::<_, Option<bool>>(at)?.into()),
        Type::BYTEA => Ok(row.try_get::<_, Option<Vec<u8>>>(at)?.into()),
        Type::VOID => Ok(Value::Null),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => {
            Ok(row.try_get::<_, Option<String>>(at)?.into())
        }
        ref other => Err(Fault::new(
            Kind::Other,
            format!("column {at} is a {other}: cast it to BIGINT, TEXT or BYTEA"),
        )),
    });
    Ok(Row::new(values.collect::<Result<_, Fault>>()?))
}

impl ToSql for Value {
    fn to_sql(
        &self,
        of: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn error::Error + Sync + Send>> {
        match (self, of) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Int(number), &Type::INT8) => number.to_sql(of, out),
            (Self::Int(number), &Type::INT4) => i32::try_from(*number)?.to_sql(of, out),
            (Self::Int(number), &Type::INT2) => i16::try_from(*number)?.to_sql(of, out),
            (Self::Int(number), &Type::BOOL) => (*number != 0).to_sql(of, out),
            (Self::Text(text), of) if <&str as ToSql>::accepts(of) => text.to_sql(of, out),
            (Self::Bytes(bytes), &Type::BYTEA) => bytes.to_sql(of, out),
            (_, of) => Err(format!("the statement expects a {of}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::server::{Dialect, Tls};

    fn trusts(text: &str, tls: Option<Tls>) -> Result<Trust, String> {
        let mut options = Options::new(Dialect::Postgres, text);
        options.tls = tls;
        Connector::new(&options).map(|made| made.trust).map_err(|error| error.to_string())
    }

    #[test]
    fn trust_settings() {
        let ca = || PathBuf::from("ca");
        let verified = |identity| Ok(Trust::Verified { ca: ca(), identity });
        for (text, trust) in [
            ("host=h user=u", Ok(Trust::IfOffered)),
            ("host=h user=u sslmode=disable", Ok(Trust::Plain)),
            ("host=h user=u sslmode=require", Ok(Trust::AnyCertificate)),
            ("host=h user=u sslmode=require sslrootcert=ca", verified(false)),
            ("host=h user=u sslmode=verify-ca sslrootcert=ca", verified(false)),
            ("host=h user=u sslmode=verify-full sslrootcert=ca", verified(true)),
        ] {
            assert_eq!(trusts(text, None), trust, "{text}");
            for identity in [false, true] {
                let tls = Tls { ca: ca(), verify_identity: identity };
                assert_eq!(trusts(text, Some(tls)), verified(identity), "{text}");
            }
        }
        assert!(trusts("host=h user=u sslmode=verify-full", None).is_err());
        assert!(trusts("host=h user=u sslmode=sometimes", None).is_err());
    }

    #[test]
    fn unknown_settings_become_session_settings() {
        let options = Options::new(
            Dialect::Postgres,
            r"host=h user=u options='-c geqo=off' search_path='a b' dbname=d",
        );
        let made = Connector::new(&options).unwrap();
        assert_eq!(made.config.get_options(), Some(r"-c geqo=off -c search_path=a\ b"));
        assert!(!format!("{options:?} {made:?}").contains("geqo"));
    }
}
