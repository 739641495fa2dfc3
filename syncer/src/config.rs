//! The configuration file: the original's keys, and additional keys of this syncer
//! (docs/config/syncer.md).

use std::{path::PathBuf, time::Duration};

use model::lock::Owner;
use runtime::{
    config::{Configure, HostPort, Reader, Seconds},
    lager, otlp, redact,
    tls::Files,
};

use crate::{
    cloud_controller::{self, Identity, Secret, Uaa},
    lease::Times,
    poll::{self, schedule::Intervals},
};

/// Parsed configuration file.
#[derive(Debug)]
pub struct Config {
    /// Owner of the lock: the BOSH instance id.
    pub uuid: Owner,
    /// First part of the log source.
    pub log_prefix: String,
    /// Log level.
    pub log_level: lager::Level,
    /// Listen address of the debug server; disabled when absent, as in the original.
    pub debug_server: Option<HostPort>,
    /// Address of the local metron agent (UDP); disabled when absent.
    pub metron: Option<HostPort>,
    /// OpenTelemetry collector for the spans of changes, if any.
    pub otlp: Option<otlp::Config>,
    /// The poll loop.
    pub poll: poll::Settings,
    /// The Cloud Controller and UAA.
    pub cloud_controller: CloudController,
    /// The lock server and the lock.
    pub lock: Lock,
    /// The policy store.
    pub store: Store,
}

/// The Cloud Controller and UAA.
#[derive(Debug)]
pub struct CloudController {
    /// URLs, credentials and timeouts.
    pub settings: cloud_controller::Settings,
    /// CAs of UAA and the v3 API; empty for the system's.
    pub authorities: Vec<PathBuf>,
    /// Mutual TLS with the internal API.
    pub internal_tls: InternalTls,
    /// User agent of HTTP requests.
    pub user_agent: String,
}

/// TLS authentication with the internal API.
#[derive(Debug)]
pub enum InternalTls {
    /// Mutual TLS with these files.
    Files(Files),
    /// No verification of server certificates, including UAA's; sends a client certificate
    /// if configured.
    Skip(Option<Identity>),
}

/// The lock server and the lock.
#[derive(Debug)]
pub struct Lock {
    /// Address of the lock server.
    pub address: HostPort,
    /// Files for mutual TLS.
    pub tls: Files,
    /// Times with any lock server.
    pub times: Times,
    /// Times with a lock server that gives fencing tokens, so one of ours.
    pub times_with_tokens: Times,
    /// Keepalive interval of the connection; absent for the default.
    pub keepalive_time: Option<Duration>,
    /// Keepalive timeout of the connection; absent for the default.
    pub keepalive_timeout: Option<Duration>,
    /// Whether losing the lock ends the process, as in the original.
    pub exit_on_loss: bool,
}

/// The policy store.
#[derive(Debug)]
pub struct Store {
    /// Address of the policy store.
    pub address: HostPort,
    /// Files for mutual TLS.
    pub tls: Files,
    /// Timeout of a Replace.
    pub timeout: Duration,
    /// Whether the store may remove most of its groups.
    pub allow_mass_removal: bool,
}

/// Keys of the original without a meaning here: this syncer has no database.
const UNUSED: [&str; 1] = ["database"];

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(&UNUSED);
        let uuid = keys
            .required::<String>("uuid")
            .and_then(|text| Owner::parse(&text).map_err(|err| keys.problem("uuid", err)).ok());
        let log_prefix = keys.or("log_prefix", "cfnetworking".to_owned());
        let log_level = keys.or("log_level", lager::Level::Info);
        let debug_server = debug_server(keys);
        let metron = keys.optional::<HostPort>("metron_address");
        let otlp = keys.section("otlp");
        let poll = poll(keys);
        let cloud_controller = CloudController::read(keys);
        let lock = Lock::read(keys);
        let store = Store::read(keys);
        Some(Self {
            uuid: uuid?,
            log_prefix: log_prefix?,
            log_level: log_level?,
            debug_server: debug_server?,
            metron: metron?,
            otlp: otlp?,
            poll: poll?,
            cloud_controller: cloud_controller?,
            lock: lock?,
            store: store?,
        })
    }
}

#[expect(clippy::option_option, reason = "as the reader: the outer is a recorded problem")]
fn debug_server(keys: &mut Reader<'_>) -> Option<Option<HostPort>> {
    let host = keys.or("debug_server_host", "127.0.0.1".to_owned());
    let port = keys.optional::<u16>("debug_server_port");
    let (host, Some(port)) = (host?, port?) else { return Some(None) };
    let bracketed =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match HostPort::parse(&bracketed) {
        Ok(address) => Some(Some(address)),
        Err(problem) => {
            keys.problem("debug_server_host", problem);
            None
        }
    }
}

/// Reads a whole number of seconds, at least 1.
fn seconds(keys: &mut Reader<'_>, key: &'static str, default: u64) -> Option<Duration> {
    Some(optional_seconds(keys, key)?.unwrap_or(Duration::from_secs(default)))
}

/// Reads a whole number of seconds, at least 1, if the key exists.
#[expect(clippy::option_option, reason = "as the reader: the outer is a recorded problem")]
fn optional_seconds(keys: &mut Reader<'_>, key: &'static str) -> Option<Option<Duration>> {
    let value = keys.optional::<Seconds>(key)?.map(|Seconds(value)| value);
    if value.is_some_and(|value| value.is_zero()) {
        keys.problem(key, "must be at least 1");
        return None;
    }
    Some(value)
}

/// Without a configured interval, that of the stamp polls depends on how fast the Cloud Controller
/// responds.
fn poll(keys: &mut Reader<'_>) -> Option<poll::Settings> {
    let interval = optional_seconds(keys, "asg_poll_interval_seconds");
    let full = seconds(keys, "full_sync_interval_seconds", 300);
    let unstamped = seconds(keys, "unstamped_sync_interval_seconds", 60);
    let retry_deadline = seconds(keys, "retry_deadline_seconds", 300);
    let max_staleness = seconds(keys, "max_staleness_seconds", 30);
    let interval = interval?;
    let intervals = Intervals {
        poll: interval.unwrap_or(poll::FASTEST_POLL),
        poll_share: if interval.is_none() { poll::POLL_SHARE } else { 0 },
        full: full?,
        unstamped: unstamped?,
        repair: poll::REPAIR,
    };
    let (retry_deadline, max_staleness) = (retry_deadline?, max_staleness?);
    Some(poll::Settings { intervals, retry_deadline, max_staleness })
}

/// Maximum page size of the Cloud Controller.
const LARGEST_PAGE: u16 = 5000;

impl CloudController {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let url = url(keys, "cc_url");
        let internal_url = self::url(keys, "cc_internal_url");
        let uaa_base = self::url(keys, "uaa_url");
        let uaa_port = keys.required::<u16>("uaa_port");
        let uaa_client = keys.required("uaa_client");
        let uaa_client_secret = keys.required("uaa_client_secret");
        let uaa_ca = keys.optional::<PathBuf>("uaa_ca");
        let cc_ca = keys.optional::<PathBuf>("cc_ca_cert");
        let internal_tls = InternalTls::read(keys);
        let page_size = page_size(keys);
        let call_timeout = seconds(keys, "cc_timeout_seconds", 10);
        let page_timeout = seconds(keys, "cc_page_timeout_seconds", 120);
        let agent = concat!("portcullis-syncer/", env!("CARGO_PKG_VERSION"));
        let user_agent = keys.or("cc_user_agent", agent.to_owned());
        let uaa = Uaa {
            url: format!("{}:{}", uaa_base?, uaa_port?),
            client: uaa_client?,
            secret: Secret(uaa_client_secret?),
        };
        let settings = cloud_controller::Settings {
            url: url?,
            internal_url: internal_url?,
            uaa,
            page_size: page_size?,
            call_timeout: call_timeout?,
            page_timeout: page_timeout?,
        };
        let authorities = [uaa_ca?, cc_ca?].into_iter().flatten().collect();
        let (internal_tls, user_agent) = (internal_tls?, user_agent?);
        Some(Self { settings, authorities, internal_tls, user_agent })
    }
}

fn page_size(keys: &mut Reader<'_>) -> Option<u16> {
    let size = keys.or("cc_page_size", LARGEST_PAGE)?;
    if (1..=LARGEST_PAGE).contains(&size) {
        return Some(size);
    }
    keys.problem("cc_page_size", format_args!("must be from 1 to {LARGEST_PAGE}"));
    None
}

/// Reads a base URL. Drops a trailing slash and user info: requests have their own
/// `Authorization` header, as in the original.
fn url(keys: &mut Reader<'_>, key: &'static str) -> Option<String> {
    let text: String = keys.required(key)?;
    let trimmed = text.trim_end_matches('/');
    let uri = trimmed.parse::<http::Uri>().ok();
    let scheme = uri.as_ref().and_then(http::Uri::scheme_str);
    if uri.as_ref().and_then(http::Uri::host).is_some() && matches!(scheme, Some("http" | "https"))
    {
        return Some(redact::without_user(trimmed));
    }
    keys.problem(key, "expects a URL that begins with https:// or http://");
    None
}

impl InternalTls {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        const CA: &str = "cc_internal_ca_cert";
        const CERT: &str = "cc_internal_client_cert";
        const KEY: &str = "cc_internal_client_key";
        if keys.or("skip_ssl_validation", false)? {
            keys.ignore(&[CA]);
            let cert = keys.optional::<PathBuf>(CERT);
            let key = keys.optional::<PathBuf>(KEY);
            return Some(Self::Skip(cert?.zip(key?).map(|(cert, key)| Identity { cert, key })));
        }
        Files::required(keys, [CA, CERT, KEY]).map(Self::Files)
    }
}

/// Those of the original.
const USUAL_TIMES: Times =
    Times { ttl: Duration::from_secs(15), retry_interval: Duration::from_secs(5) };
/// Our lock server writes a renewal within milliseconds, and a store accepts no write of a
/// leader that lost its lock unnoticed.
const USUAL_TIMES_WITH_TOKENS: Times =
    Times { ttl: Duration::from_secs(5), retry_interval: Duration::from_secs(1) };

impl Lock {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let address = keys.required("locket_address");
        let tls = Files::required(
            keys,
            ["locket_ca_cert_file", "locket_client_cert_file", "locket_client_key_file"],
        );
        let ttl = optional_seconds(keys, "lock_ttl_seconds");
        let retry_interval = optional_seconds(keys, "lock_retry_interval_seconds");
        let keepalive_time = keys.or("locket_client_keepalive_time", Seconds::new(0));
        let keepalive_timeout = keys.or("locket_client_keepalive_timeout", Seconds::new(0));
        let exit_on_loss = keys.or("exit_on_lock_loss", false);
        let configured = (ttl?, retry_interval?);
        let times = Times {
            ttl: configured.0.unwrap_or(USUAL_TIMES.ttl),
            retry_interval: configured.1.unwrap_or(USUAL_TIMES.retry_interval),
        };
        // One renewal may fail without losing the lease.
        if times.retry_interval * 2 > times.ttl {
            keys.problem("lock_retry_interval_seconds", "must be at most half of lock_ttl_seconds");
            return None;
        }
        let times_with_tokens =
            if configured == (None, None) { USUAL_TIMES_WITH_TOKENS } else { times };
        let set = |Seconds(value): Seconds| (!value.is_zero()).then_some(value);
        Some(Self {
            address: address?,
            tls: tls?,
            times,
            times_with_tokens,
            keepalive_time: set(keepalive_time?),
            keepalive_timeout: set(keepalive_timeout?),
            exit_on_loss: exit_on_loss?,
        })
    }
}

impl Store {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let address = keys.required("policy_store_address");
        let tls = Files::required(
            keys,
            [
                "policy_store_ca_cert_file",
                "policy_store_client_cert_file",
                "policy_store_client_key_file",
            ],
        );
        let timeout = seconds(keys, "policy_store_timeout_seconds", 60);
        let allow_mass_removal = keys.or("allow_mass_removal", false);
        Some(Self {
            address: address?,
            tls: tls?,
            timeout: timeout?,
            allow_mass_removal: allow_mass_removal?,
        })
    }
}
