//! Parses connection strings in the operators' formats
//! (docs/compatibility/locket.md#connection-strings).
//!
//! PostgreSQL: a URL or keywords; missing settings come from the environment (`PGHOST` ...). MySQL:
//! the format of Go's driver. Errors never contain the string, which includes the password.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use crate::Error;

/// Settings of a PostgreSQL string, by their libpq names.
pub(super) type Settings = BTreeMap<String, String>;

/// Settings and their environment variables.
const VARIABLES: [(&str, &str); 12] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

fn problem(problem: &'static str) -> Error {
    Error::ConnectionString { problem: problem.to_owned() }
}

/// Decodes percent encoding; an invalid sequence stays as it is.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

pub(super) fn postgres(
    text: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Settings, Error> {
    let text = text.trim();
    let url = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let mut settings = match url {
        Some(rest) => postgres_url(rest)?,
        None => postgres_keywords(text)?,
    };
    for (key, variable) in VARIABLES {
        if !settings.contains_key(key)
            && let Some(value) = environment(variable).filter(|value| !value.is_empty())
        {
            settings.insert(key.to_owned(), value);
        }
    }
    Ok(settings)
}

fn postgres_url(rest: &str) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    // The user part ends at the last `@` before the path. BOSH writes passwords without encoding:
    // if the password contains a slash, only the last `@` of the whole text can be the separator.
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (login, place) = match (authority.rfind('@'), rest.rfind('@')) {
        (Some(at), _) | (None, Some(at)) => (Some(&rest[..at]), &rest[at + 1..]),
        (None, None) => (None, rest),
    };
    if let Some(login) = login {
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        settings.insert("user".to_owned(), decoded(user));
        if let Some(password) = password {
            settings.insert("password".to_owned(), decoded(password));
        }
    }
    let (place, query) = place.split_once('?').unwrap_or((place, ""));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    settings.extend(url_hosts(hosts)?);
    if !database.is_empty() {
        settings.insert("dbname".to_owned(), decoded(database));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        settings.insert(decoded(key), decoded(value));
    }
    Ok(settings)
}

/// Splits `a:1,[::1]:2,c` into `host` and `port`.
fn url_hosts(text: &str) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    if text.is_empty() {
        return Ok(settings);
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for one in text.split(',') {
        let (host, port) = host_and_port(one)?;
        hosts.push(decoded(host));
        ports.push(port.unwrap_or_default());
    }
    settings.insert("host".to_owned(), hosts.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        settings.insert("port".to_owned(), ports.join(","));
    }
    Ok(settings)
}

/// Parses `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_and_port(text: &str) -> Result<(&str, Option<&str>), Error> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(problem("a `[` has no `]`"))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(problem("after `]` comes neither a port nor the end")),
        };
    }
    Ok(match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

fn postgres_keywords(text: &str) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) =
            rest.split_once('=').ok_or(problem("it is neither a URL nor made of `key=value`"))?;
        let (value, after) = keyword_value(after.trim_start())?;
        settings.insert(key.trim().to_owned(), value);
        rest = after.trim_start();
    }
    Ok(settings)
}

/// Parses `plain` or `'quo ted'`; `\` escapes the next character.
fn keyword_value(text: &str) -> Result<(String, &str), Error> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, meant)| meant)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            other if !quoted && other.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted { Err(problem("a quote is not closed")) } else { Ok((value, "")) }
}

/// Address and credentials of a MySQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MySql {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) place: Place,
    pub(super) database: Option<String>,
    /// The parameter `tls`; the others have no effect here.
    pub(super) tls: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16 },
    Socket(String),
}

const MYSQL_PORT: u16 = 3306;

/// Parses `[user[:password]@][net[(address)]]/database[?key=value&...]`. From the end, as Go's
/// driver does, since a password may contain any character.
pub(super) fn mysql(text: &str) -> Result<MySql, Error> {
    let slash = text
        .trim()
        .rfind('/')
        .ok_or(problem("the slash before the name of the database is missing"))?;
    let (left, right) = (&text.trim()[..slash], &text.trim()[slash + 1..]);
    let (login, place) = match left.rsplit_once('@') {
        Some((login, place)) => (login, place),
        None => ("", left),
    };
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    };
    let (database, query) = right.split_once('?').unwrap_or((right, ""));
    let tls = query.split('&').find_map(|pair| pair.strip_prefix("tls=")).map(decoded);
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Ok(MySql {
        user: some(user),
        password: password.and_then(some),
        place: mysql_place(place)?,
        database: some(&decoded(database)),
        tls,
    })
}

fn mysql_place(text: &str) -> Result<Place, Error> {
    let (net, address) = match text.split_once('(') {
        None => (text, ""),
        Some((net, rest)) => {
            (net, rest.strip_suffix(')').ok_or(problem("the address is not closed with `)`"))?)
        }
    };
    match net {
        "unix" if address.is_empty() => Ok(Place::Socket("/tmp/mysql.sock".to_owned())),
        "unix" => Ok(Place::Socket(address.to_owned())),
        "" | "tcp" | "tcp4" | "tcp6" => {
            let (host, port) = host_and_port(address)?;
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            let port = match port {
                None | Some("") => MYSQL_PORT,
                Some(port) => port.parse().map_err(|_| problem("the port is not a number"))?,
            };
            Ok(Place::Tcp { host: host.to_owned(), port })
        }
        _ => Err(problem("the network is neither `tcp` nor `unix`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<String> {
        let settings = postgres(text, |_| None).unwrap();
        settings.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn postgres_urls() {
        assert_eq!(
            settings("postgres://u:p@h:1/d?sslmode=require&application_name=a%20b"),
            [
                "application_name=a b",
                "dbname=d",
                "host=h",
                "password=p",
                "port=1",
                "sslmode=require",
                "user=u"
            ]
        );
        assert_eq!(settings("postgresql://h"), ["host=h"]);
        assert_eq!(settings("postgres://"), [""; 0]);
        assert_eq!(settings("postgres://u@/d"), ["dbname=d", "user=u"]);
        assert_eq!(settings("postgres://[::1]:5/d"), ["dbname=d", "host=::1", "port=5"]);
        assert_eq!(settings("postgres://a,b:2"), ["host=a,b", "port=,2"]);
        assert_eq!(settings("postgres://%2Frun%2Fpg/d"), ["dbname=d", "host=/run/pg"]);
    }

    #[test]
    fn unencoded_passwords() {
        for (text, password) in [
            ("postgres://u:a@b:c@h/d", "a@b:c"),
            ("postgres://u:a/b?c@h/d", "a/b?c"),
            ("postgres://u:a%40b@h/d", "a@b"),
            ("postgres://u:100%@h/d", "100%"),
        ] {
            let settings = postgres(text, |_| None).unwrap();
            assert_eq!(settings["password"], password, "{text}");
            assert_eq!((settings["host"].as_str(), settings["dbname"].as_str()), ("h", "d"));
        }
    }

    #[test]
    fn postgres_keywords_and_quotes() {
        assert_eq!(
            settings(r" user=u  password = 'a b\'c\\' host=/tmp dbname=d\ e "),
            ["dbname=d e", "host=/tmp", r"password=a b'c\", "user=u"]
        );
        assert_eq!(settings(""), [""; 0]);
    }

    #[test]
    fn the_environment_supplies_missing_settings() {
        let environment = |name: &str| Some(format!("of {name}"));
        let settings = postgres("host=h", environment).unwrap();
        assert_eq!(settings["host"], "h");
        assert_eq!(settings["user"], "of PGUSER");
        assert_eq!(settings.len(), VARIABLES.len());
    }

    #[test]
    fn mysql_strings() {
        let tcp = |host: &str, port| Place::Tcp { host: host.to_owned(), port };
        let login = |user: &str, password: &str| {
            (Some(user.to_owned()), Some(password.to_owned()).filter(|text| !text.is_empty()))
        };
        for (text, (user, password), place, database) in [
            ("u:p@tcp(h:1)/d", login("u", "p"), tcp("h", 1), Some("d")),
            ("u:p@/d", login("u", "p"), tcp("127.0.0.1", 3306), Some("d")),
            ("u@tcp(h)/", login("u", ""), tcp("h", 3306), None),
            ("/d", (None, None), tcp("127.0.0.1", 3306), Some("d")),
            ("u:p@tcp([::1]:2)/d", login("u", "p"), tcp("::1", 2), Some("d")),
            ("u:p:/@()?#@tcp(h:1)/d", login("u", "p:/@()?#"), tcp("h", 1), Some("d")),
            ("u@unix(/run/s)/d%2Fe", login("u", ""), Place::Socket("/run/s".into()), Some("d/e")),
            ("u@unix/d", login("u", ""), Place::Socket("/tmp/mysql.sock".into()), Some("d")),
        ] {
            let parsed = mysql(text).unwrap();
            let database = database.map(str::to_owned);
            assert_eq!(parsed, MySql { user, password, place, database, tls: None }, "{text}");
        }
        let parsed = mysql("u@/d?parseTime=true&tls=skip-verify").unwrap();
        assert_eq!(parsed.tls.as_deref(), Some("skip-verify"));
    }

    #[test]
    fn errors_do_not_contain_the_password() {
        for (text, parse) in [
            ("no url secret", (|text| postgres(text, |_| None).err()) as fn(&str) -> Option<Error>),
            ("password='secret", |text| postgres(text, |_| None).err()),
            ("postgres://u:secret@[::1/d", |text| postgres(text, |_| None).err()),
            ("u:secret@tcp(h:1)", |text| mysql(text).err()),
            ("u:secret@tcp(h:1/d", |text| mysql(text).err()),
            ("u:secret@tcp(h:x)/d", |text| mysql(text).err()),
            ("u:secret@pipe(h)/d", |text| mysql(text).err()),
        ] {
            let error = parse(text).unwrap_or_else(|| panic!("{text} was taken"));
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }
}
