//! Candidate addresses of a PostgreSQL server from the connection string. Pure, except that a
//! missing host selects the usual socket directory, if it exists.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{Error, server::address::Settings};

/// Socket directory of a Debian or BOSH PostgreSQL, used when the host is missing.
const SOCKETS: &str = "/var/run/postgresql";

/// A candidate address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `name` is the name in the certificate, `at` the name to resolve.
    Tcp {
        name: String,
        at: String,
        port: u16,
    },
    Socket(PathBuf),
}

/// Hosts, addresses and ports correspond by position, as in libpq.
pub(super) fn places(settings: &Settings) -> Result<Vec<Place>, Error> {
    // Omits values: a misparsed value may contain part of the password.
    let problem = |problem: String| Error::ConnectionString { problem };
    let list = |key: &str| -> Vec<&str> {
        settings.get(key).map(|value| value.split(',').collect()).unwrap_or_default()
    };
    let (mut hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    if hosts.is_empty() && addresses.is_empty() {
        hosts.push(if Path::new(SOCKETS).exists() { SOCKETS } else { "localhost" });
    }
    let count = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        let (hosts, addresses) = (hosts.len(), addresses.len());
        return Err(problem(format!("host has {hosts} entries, and hostaddr has {addresses}")));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(problem(format!("port has {} entries for {count} hosts", ports.len())));
    }
    let place = |at: usize| {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or_default();
        let port = if port.is_empty() { "5432" } else { port };
        let port = port.parse().map_err(|_| problem("the port is not a number".to_owned()))?;
        let address = addresses.get(at).copied().filter(|address| !address.is_empty());
        if let Some(address) = address
            && address.parse::<IpAddr>().is_err()
        {
            return Err(problem("hostaddr is no IP address".to_owned()));
        }
        let host = hosts.get(at).copied().filter(|host| !host.is_empty());
        Ok(match (host, address) {
            (Some(host), None) if host.starts_with('/') => {
                Place::Socket(Path::new(host).join(format!(".s.PGSQL.{port}")))
            }
            (host, address) => {
                let at = address.or(host).unwrap_or("localhost");
                Place::Tcp { name: host.unwrap_or(at).to_owned(), at: at.to_owned(), port }
            }
        })
    };
    (0..count).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::address;

    #[test]
    fn addresses_of_the_servers() {
        let places = |text: &str| {
            let settings = address::postgres(text, |_| None).unwrap();
            places(&settings).map_err(|error| error.to_string())
        };
        let tcp =
            |name: &str, at: &str, port| Place::Tcp { name: name.into(), at: at.into(), port };
        assert_eq!(
            places("postgres://a,b:2,[::1]:3/d"),
            Ok(vec![tcp("a", "a", 5432), tcp("b", "b", 2), tcp("::1", "::1", 3)])
        );
        assert_eq!(places("host=a,b port=7"), Ok(vec![tcp("a", "a", 7), tcp("b", "b", 7)]));
        assert_eq!(places("host=a hostaddr=::1"), Ok(vec![tcp("a", "::1", 5432)]));
        assert_eq!(places("hostaddr=1.2.3.4"), Ok(vec![tcp("1.2.3.4", "1.2.3.4", 5432)]));
        let socket = Place::Socket("/run/pg/.s.PGSQL.8".into());
        assert_eq!(places("host=/run/pg port=8"), Ok(vec![socket]));
        for wrong in
            ["host=a,b port=1,2,3", "host=a hostaddr=x", "host=a port=x", "host=a,b hostaddr=::1"]
        {
            assert!(places(wrong).is_err(), "{wrong}");
        }
    }
}
