//! The object `database`: a file, or a server with the keys of the original
//! (docs/compatibility/asg-syncer.md#configuration).

use std::{path::PathBuf, time::Duration};

use runtime::config::{Configure, Reader, Seconds};
use storage::server::{Dialect, Options, Tls};

/// Connect timeout, if the operation timeout is longer.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the start waits for a server that is not reachable.
const START: Seconds = Seconds::new(300);

/// Database that stores the groups.
#[derive(Debug, Clone)]
pub enum Database {
    /// A SQLite file of this process.
    Sqlite(PathBuf),
    /// A server that several instances share.
    Server {
        /// How to connect.
        options: Options,
        /// Whether the original's tables in this database are written as well.
        write_original_tables: bool,
    },
}

impl Configure for Database {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let kind: Option<String> = keys.required("type");
        match kind?.as_str() {
            "sqlite" => sqlite(keys),
            "postgres" => server(keys, Dialect::Postgres),
            "mysql" => server(keys, Dialect::MySql),
            _ => {
                keys.problem("type", "must be sqlite, postgres or mysql");
                None
            }
        }
    }
}

const ORIGINAL: &str = "write_original_tables";

const OF_SERVERS: &[&str] = &[
    "user",
    "password",
    "host",
    "port",
    "timeout",
    "start_timeout",
    "max_open_connections",
    "require_ssl",
    "ca_cert",
    "skip_hostname_validation",
];

fn sqlite(keys: &mut Reader<'_>) -> Option<Database> {
    keys.ignore(OF_SERVERS);
    let path: Option<Option<PathBuf>> = keys.optional("path");
    let name: Option<Option<PathBuf>> = keys.optional("database_name");
    if keys.or(ORIGINAL, false)? {
        keys.problem(ORIGINAL, "must be false: the original's tables are on a server");
    }
    let path = path?.or(name?);
    if path.is_none() {
        keys.problem("path", "missing: the file of the database");
    }
    path.map(Database::Sqlite)
}

fn server(keys: &mut Reader<'_>, dialect: Dialect) -> Option<Database> {
    keys.ignore(&["path"]);
    let user: Option<String> = keys.required("user");
    let password = keys.or("password", String::new());
    let host: Option<String> = keys.required("host");
    let port: Option<u16> = keys.required("port");
    let name: Option<String> = keys.required("database_name");
    let timeout = keys.nonzero("timeout", Seconds::new(60));
    let start_timeout = keys.or("start_timeout", START);
    let max_open: Option<u32> = keys.or("max_open_connections", 20);
    let write_original_tables = keys.or(ORIGINAL, false);
    let tls = tls(keys, dialect);
    let place = Place { user: user?, password: password?, host: host?, port: port?, name: name? };
    let (parameters, tls) = tls?;
    let mut options = Options::new(dialect, place.connection_string(dialect, parameters));
    options.tls = tls;
    options.max_open = usize::try_from(max_open?).unwrap_or(usize::MAX);
    options.operation_timeout = timeout?.0;
    options.start_timeout = start_timeout?.0;
    options.connect_timeout = options.operation_timeout.min(CONNECT);
    "policy-store".clone_into(&mut options.application_name);
    if let Err(error) = options.check() {
        keys.problem("host", error);
        return None;
    }
    Some(Database::Server { options, write_original_tables: write_original_tables? })
}

/// `sslmode` for `require_ssl`, and the CA to trust. A CA is used only together with
/// `require_ssl`, as in the original.
fn tls(keys: &mut Reader<'_>, dialect: Dialect) -> Option<(&'static str, Option<Tls>)> {
    let require = keys.or("require_ssl", false);
    let ca: Option<Option<PathBuf>> = keys.optional("ca_cert");
    let skip_host = keys.or("skip_hostname_validation", false);
    let (require, ca, skip_host) = (require?, ca?, skip_host?);
    if require && ca.is_none() {
        keys.problem("ca_cert", "missing: the authority of the database's certificate");
        return None;
    }
    let tls = ca.filter(|_| require).map(|ca| Tls { ca, verify_identity: !skip_host });
    let parameters = match (require, dialect) {
        (true, _) | (false, Dialect::MySql) => "",
        (false, Dialect::Postgres) => " sslmode=disable",
    };
    Some((parameters, tls))
}

/// Address of a server, and user and database there.
struct Place {
    user: String,
    password: String,
    host: String,
    port: u16,
    name: String,
}

impl Place {
    fn connection_string(&self, dialect: Dialect, parameters: &str) -> String {
        let Self { user, password, host, port, name } = self;
        match dialect {
            Dialect::Postgres => {
                let [user, password, host, name] = [user, password, host, name].map(|t| quoted(t));
                format!(
                    "user={user} password={password} host={host} port={port} dbname={name}{parameters}"
                )
            }
            Dialect::MySql => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                format!("{user}:{password}@tcp({host}:{port})/{name}{parameters}")
            }
        }
    }
}

/// Quotes a value for a PostgreSQL connection string.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
