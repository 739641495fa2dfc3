//! The configuration of the development Cloud Controller. Every key has a default, so
//! the file is optional.

use std::path::PathBuf;

use runtime::config::{Configure, HostPort, Reader, Value};
use runtime::lager;
use serde_json::Value as ConfigJson;

use super::uaa::{Client, Lifetimes};
use super::validate::rules::Flags;

/// The parsed configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listen address of the public API.
    pub api_address: HostPort,
    /// Listen address of the UAA.
    pub uaa_address: HostPort,
    /// Listen address of `/internal/v4`, with mutual TLS.
    pub internal_address: HostPort,
    /// Enables HTTPS for API and UAA.
    pub tls: Option<PublicTls>,
    /// The certificates of the internal listener; by default some are generated.
    pub internal_tls: Option<InternalTls>,
    /// Directory of generated certificates; by default a temporary one.
    pub certificates_directory: Option<PathBuf>,
    /// File of the persistent state; by default the state is in memory only.
    pub state_file: Option<PathBuf>,
    /// While this file exists, responses are wrong as its word says.
    pub trouble_file: Option<PathBuf>,
    /// Options of rule validation.
    pub flags: Flags,
    /// Initial users.
    pub users: Vec<ConfiguredUser>,
    /// Clients besides `cf`.
    pub clients: Vec<ConfiguredClient>,
    /// Lifetimes of tokens.
    pub lifetimes: Lifetimes,
    /// Minimum log level.
    pub log_level: lager::Level,
}

/// The certificate of the public listeners.
#[derive(Debug, Clone)]
pub struct PublicTls {
    /// The certificate, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// The certificates of the internal listener.
#[derive(Debug, Clone)]
pub struct InternalTls {
    /// The CA of client certificates, PEM.
    pub ca_file: PathBuf,
    /// The certificate, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredUser {
    /// The name.
    pub name: String,
    /// Plain-text password.
    pub password: String,
    /// The user's scopes.
    pub scopes: Vec<String>,
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredClient {
    /// The name.
    pub id: String,
    /// Plain-text secret.
    pub secret: String,
    /// The client's authorities.
    pub authorities: Vec<String>,
}

impl ConfiguredClient {
    /// Converts to the UAA's type.
    pub fn to_client(&self) -> Client {
        Client::of_its_own(&self.id, &self.secret, self.authorities.clone())
    }
}

const ADMIN_SCOPES: [&str; 8] = [
    "cloud_controller.admin",
    "network.admin",
    "scim.read",
    "scim.write",
    "clients.read",
    "openid",
    "routing.router_groups.read",
    "doppler.firehose",
];

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn default_users() -> Users {
    Users(vec![ConfiguredUser {
        name: "admin".to_owned(),
        password: "admin".to_owned(),
        scopes: texts(&ADMIN_SCOPES),
    }])
}

fn default_clients() -> Clients {
    Clients(vec![ConfiguredClient {
        id: "network-policy".to_owned(),
        secret: "network-policy-secret".to_owned(),
        authorities: texts(&["uaa.resource", "cloud_controller.admin_read_only"]),
    }])
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let api_address = address(keys, "api_address", "127.0.0.1:9022");
        let uaa_address = address(keys, "uaa_address", "127.0.0.1:8080");
        let internal_address = address(keys, "internal_address", "127.0.0.1:9023");
        let tls = keys.section("tls");
        let internal_tls = keys.section("internal_tls");
        let certificates_directory = keys.optional("certificates_directory");
        let state_file = keys.optional("state_file");
        let trouble_file = keys.optional("trouble_file");
        let ipv6 = keys.or("enable_ipv6", false);
        let comma_destinations = keys.or("enable_comma_delimited_destinations", true);
        let strict = keys.or("strict_rules", false);
        let users = keys.or("users", default_users());
        let clients = keys.or("clients", default_clients());
        let access = seconds(keys, "access_token_seconds", 1200);
        let refresh = seconds(keys, "refresh_token_seconds", 2_592_000);
        let client = seconds(keys, "client_token_seconds", 43_200);
        let log_level = keys.or("log_level", lager::Level::Info);
        Some(Self {
            api_address: api_address?,
            uaa_address: uaa_address?,
            internal_address: internal_address?,
            tls: tls?,
            internal_tls: internal_tls?,
            certificates_directory: certificates_directory?,
            state_file: state_file?,
            trouble_file: trouble_file?,
            flags: Flags { ipv6: ipv6?, comma_destinations: comma_destinations?, strict: strict? },
            users: users?.0,
            clients: clients?.0,
            lifetimes: Lifetimes { access: access?, refresh: refresh?, client: client? },
            log_level: log_level?,
        })
    }
}

impl Configure for PublicTls {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let cert_file = keys.required("cert_file");
        let key_file = keys.required("key_file");
        Some(Self { cert_file: cert_file?, key_file: key_file? })
    }
}

impl Configure for InternalTls {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let ca_file = keys.required("ca_file");
        let cert_file = keys.required("cert_file");
        let key_file = keys.required("key_file");
        Some(Self { ca_file: ca_file?, cert_file: cert_file?, key_file: key_file? })
    }
}

fn address(keys: &mut Reader<'_>, key: &'static str, default: &str) -> Option<HostPort> {
    let default = HostPort::parse(default).expect("the default address is one");
    keys.or(key, default)
}

fn seconds(keys: &mut Reader<'_>, key: &'static str, default: u32) -> Option<i64> {
    keys.or(key, default).map(i64::from)
}

#[derive(Debug)]
struct Users(Vec<ConfiguredUser>);

impl Value for Users {
    fn from_json(json: &ConfigJson) -> Result<Self, String> {
        let users = entries(json)?.iter().map(|entry| {
            Ok(ConfiguredUser {
                name: text(entry, "name")?,
                password: text(entry, "password")?,
                scopes: list(entry, "scopes")?,
            })
        });
        users.collect::<Result<_, String>>().map(Self)
    }
}

#[derive(Debug)]
struct Clients(Vec<ConfiguredClient>);

impl Value for Clients {
    fn from_json(json: &ConfigJson) -> Result<Self, String> {
        let clients = entries(json)?.iter().map(|entry| {
            Ok(ConfiguredClient {
                id: text(entry, "id")?,
                secret: text(entry, "secret")?,
                authorities: list(entry, "authorities")?,
            })
        });
        clients.collect::<Result<_, String>>().map(Self)
    }
}

fn entries(json: &ConfigJson) -> Result<&[ConfigJson], String> {
    json.as_array().map(Vec::as_slice).ok_or_else(|| "expects an array of objects".to_owned())
}

fn text(entry: &ConfigJson, key: &str) -> Result<String, String> {
    let text = entry.get(key).and_then(ConfigJson::as_str);
    text.map(str::to_owned).ok_or_else(|| format!("expects a text {key:?} in every entry"))
}

fn list(entry: &ConfigJson, key: &str) -> Result<Vec<String>, String> {
    let items = entry.get(key).and_then(ConfigJson::as_array);
    let texts = items.and_then(|items| {
        items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    texts.ok_or_else(|| format!("expects an array of texts {key:?} in every entry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_needed() {
        let config = runtime::config::parse::<Config>("{}").unwrap().config;
        assert!(config.flags.comma_destinations);
        assert!(!config.flags.ipv6 && !config.flags.strict);
        assert_eq!(config.users[0].name, "admin");
        assert_eq!(config.clients[0].id, "network-policy");
    }

    #[test]
    fn every_problem_is_reported_without_secrets() {
        let text = r#"{"api_address":"nowhere","tls":{"cert_file":"c"},
            "clients":[{"id":"a","secret":"hush"}],"enable_ipv6":"yes"}"#;
        let error = runtime::config::parse::<Config>(text).unwrap_err();
        let lines: Vec<String> = error.lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        for key in ["api_address", "tls.key_file", "clients", "enable_ipv6"] {
            assert!(lines.iter().any(|line| line.starts_with(key)), "{key}: {lines:?}");
        }
    }
}
