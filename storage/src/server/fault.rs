//! Errors from a database server or the network, classified by the required reaction.

use std::{error, fmt, io};

use tokio_postgres::error::{Severity, SqlState};
use trust::chain;

use crate::Kind;

/// Why a statement or a connection failed. The text is the driver's with all causes. It never
/// contains passwords, but may contain host names and values.
#[derive(Debug)]
pub struct Fault {
    kind: Kind,
    code: Option<String>,
    lost: bool,
    unclear: bool,
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(formatter, "{code}: {}", self.text),
            None => formatter.write_str(&self.text),
        }
    }
}

impl error::Error for Fault {}

impl Fault {
    /// Classification of the fault.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// PostgreSQL's SQLSTATE or MySQL's error number, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether the connection is unusable.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether it is unknown if a sent statement took effect.
    pub(super) fn is_unclear(&self) -> bool {
        self.unclear
    }

    /// A fault detected on the client side.
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, code: None, lost: true, unclear: true, text: text.into() }
    }

    fn of_way(error: &(dyn error::Error + 'static), text: String) -> Self {
        let kind = if is_untrusted(error) { Kind::Refused } else { Kind::Unavailable };
        Self { kind, code: None, lost: true, unclear: true, text }
    }
}

/// Network errors.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::of_way(&error, format!("error connecting to server: {error}"))
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return match cause::<io::Error>(&error) {
                Some(_) => Self::of_way(&error, chain(&error)),
                None if error.is_closed() => Self::new(Kind::Unavailable, chain(&error)),
                None => match error.to_string().as_str() {
                    // The server closed the connection, or there is no such host.
                    "timeout waiting for server" | "error connecting to server" => {
                        Self::new(Kind::Unavailable, chain(&error))
                    }
                    "error performing TLS handshake" | "authentication error" => {
                        Self::new(Kind::Refused, chain(&error))
                    }
                    _ => Self::new(Kind::Other, chain(&error)),
                },
            };
        };
        let kind = of_state(db.code());
        let fatal = !matches!(db.parsed_severity(), Some(Severity::Error) | None);
        let lost = fatal || matches!(kind, Kind::Standby | Kind::Unavailable);
        let mut text = db.message().to_owned();
        if let Some(detail) = db.detail() {
            text.push_str(": ");
            text.push_str(detail);
        }
        Self { kind, code: Some(db.code().code().to_owned()), lost, unclear: fatal, text }
    }
}

fn of_state(state: &SqlState) -> Kind {
    match state.code() {
        "40001" | "40P01" | "55P03" | "55006" => Kind::Busy,
        "57014" => Kind::Timeout,
        "53100" => Kind::Full,
        "25006" => Kind::Standby,
        "42P01" | "42703" | "42883" | "3F000" => Kind::Schema,
        "42501" | "3D000" => Kind::Refused,
        "XX001" | "XX002" => Kind::Corrupt,
        "25P03" | "57P01" | "57P02" | "57P03" | "57P05" => Kind::Unavailable,
        code => match &code[..code.len().min(2)] {
            "08" | "53" => Kind::Unavailable,
            "58" => Kind::Io,
            "28" => Kind::Refused,
            "22" => Kind::Data,
            "23" => Kind::Constraint,
            _ => Kind::Other,
        },
    }
}

impl From<mysql_async::Error> for Fault {
    fn from(error: mysql_async::Error) -> Self {
        use mysql_async::{DriverError, Error};
        match &error {
            Error::Server(response) => {
                let kind = of_number(response.code, &response.message);
                let lost = matches!(kind, Kind::Standby | Kind::Unavailable);
                let text = response.message.clone();
                // Not prepared, or too many: rejected before the statement started.
                let refused = matches!(response.code, 1040 | 1047 | 1203 | 1226);
                let unclear = matches!(kind, Kind::Unavailable | Kind::Io) && !refused;
                Self { kind, code: Some(response.code.to_string()), lost, unclear, text }
            }
            Error::Io(source) => {
                Self::of_way(source, trust::explain_all(source, source.to_string()))
            }
            Error::Driver(DriverError::ConnectionClosed | DriverError::PoolDisconnected) => {
                Self::new(Kind::Unavailable, error.to_string())
            }
            Error::Driver(
                DriverError::NoClientSslFlagFromServer
                | DriverError::UnknownAuthPlugin { .. }
                | DriverError::CleartextPluginDisabled
                | DriverError::MysqlOldPasswordDisabled,
            ) => Self::new(Kind::Refused, error.to_string()),
            Error::Driver(_) | Error::Other(_) | Error::Url(_) => {
                Self::new(Kind::Other, chain(&error))
            }
        }
    }
}

fn of_number(code: u16, message: &str) -> Kind {
    match code {
        1205 | 1213 | 3572 => Kind::Busy,
        1317 | 1969 | 3024 => Kind::Timeout,
        1021 | 1114 => Kind::Full,
        3 | 1026 | 1030 if message.contains("28") => Kind::Full,
        3 | 1023 | 1026 | 1030 => Kind::Io,
        1290 | 1792 | 1836 => Kind::Standby,
        1040 | 1047 | 1053 | 1077..=1080 | 1152..=1161 | 1203 | 1226 | 1927 | 4031 => {
            Kind::Unavailable
        }
        1044 | 1045 | 1049 | 1130 | 1142 | 1143 | 1227 | 1698 | 3159 => Kind::Refused,
        1054 | 1146 | 1305 => Kind::Schema,
        1034 | 1194 | 1712 => Kind::Corrupt,
        1264 | 1292 | 1366 | 1406 => Kind::Data,
        1048 | 1062 | 1216 | 1217 | 1451 | 1452 | 3819 | 4025 => Kind::Constraint,
        _ => Kind::Other,
    }
}

/// The first cause of the given type.
fn cause<'a, E: error::Error + 'static>(error: &'a (dyn error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Whether the server presented an untrusted certificate, or none.
fn is_untrusted(error: &(dyn error::Error + 'static)) -> bool {
    let of_tls = cause::<io::Error>(error).and_then(io::Error::get_ref);
    let of_tls = of_tls.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let of_tls = of_tls.or_else(|| cause(error));
    matches!(
        of_tls,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::PeerIncompatible(_)
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_postgres() {
        for (state, kind) in [
            ("40P01", Kind::Busy),
            ("40001", Kind::Busy),
            ("57014", Kind::Timeout),
            ("53100", Kind::Full),
            ("53300", Kind::Unavailable),
            ("57P03", Kind::Unavailable),
            ("25006", Kind::Standby),
            ("28P01", Kind::Refused),
            ("42P01", Kind::Schema),
            ("23505", Kind::Constraint),
            ("22001", Kind::Data),
            ("58030", Kind::Io),
            ("42601", Kind::Other),
        ] {
            assert_eq!(of_state(&SqlState::from_code(state)), kind, "{state}");
        }
    }

    #[test]
    fn numbers_of_mysql() {
        for (number, message, kind) in [
            (1213, "", Kind::Busy),
            (1205, "", Kind::Busy),
            (1114, "", Kind::Full),
            (1026, "Error writing file (Errcode: 28 \"No space left on device\")", Kind::Full),
            (1026, "Error writing file (Errcode: 5)", Kind::Io),
            (1290, "", Kind::Standby),
            (1040, "", Kind::Unavailable),
            (1053, "", Kind::Unavailable),
            (1045, "", Kind::Refused),
            (1146, "", Kind::Schema),
            (1062, "", Kind::Constraint),
            (1406, "", Kind::Data),
            (1064, "", Kind::Other),
        ] {
            assert_eq!(of_number(number, message), kind, "{number}");
        }
    }
}
