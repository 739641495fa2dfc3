//! The configuration file: the keys of vxlan-policy-agent and our own
//! (docs/compatibility/vxlan-policy-agent.md#configuration, docs/config/cell-agent.md).

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use model::ids::CellId;
use runtime::{
    config::{Configure, GoDuration, HostPort, Reader, Seconds},
    lager::Level,
    loggregator, otlp, tls,
};

use crate::denied::lines::Lines;
use crate::plan::{ConnectionLimit, DenyNetworks, RecordDenied, Settings};

/// The parsed configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cell's name at the policy store.
    pub cell: CellId,
    /// Source of the security groups.
    pub source: Source,
    /// Mutual TLS with the source.
    pub tls: tls::Files,
    /// The data file of the container metadata store.
    pub container_store: PathBuf,
    /// Directory of the state files.
    pub state_directory: PathBuf,
    /// The Unix socket of `portcullis.cell.v1`.
    pub control_socket: PathBuf,
    /// The data plane.
    pub plane: DataPlane,
    /// Path of the nft program.
    pub nft: PathBuf,
    /// Interval of checks for foreign changes of the kernel.
    pub drift_interval: Duration,
    /// Interval of full comparisons, and of polls if the source is a policy server
    /// without push.
    pub full_interval: Duration,
    /// Timeout of a forced update.
    pub force_timeout: Duration,
    /// Whether rules are enforced at all.
    pub enabled: bool,
    /// Loggregator agent for app log lines, if they are enabled.
    pub loggregator: Option<loggregator::Config>,
    /// The VM's metron agent (UDP), if metrics are sent to one.
    pub metron: Option<HostPort>,
    /// OpenTelemetry collector for the spans of changes, if any.
    pub otlp: Option<otlp::Config>,
    /// Address of the agent that enforces container-to-container policies on this cell,
    /// if any.
    pub policy_agent: Option<HostPort>,
    /// Listen address of the endpoints for the CNI plugin.
    pub control_address: String,
    /// Listen address of the endpoints for operators.
    pub debug_address: String,
    /// Prefix of the log source.
    pub log_prefix: String,
    /// Minimum log level.
    pub log_level: Level,
    /// Initial state of the switch for container-to-container logging.
    pub c2c_logging: bool,
    /// Rules apply to packets that leave through the interfaces with these addresses.
    pub underlay_ips: Vec<IpAddr>,
    /// Lines about denied connections.
    pub denied_lines: Lines,
    /// Interval of reads of the counters of rules.
    pub use_interval: Duration,
    /// Settings of the rules; `underlay` is empty until the interfaces are looked up.
    pub settings: Settings,
    /// The data plane if the file names none and nft is missing.
    pub fallback: Option<DataPlane>,
}

impl Config {
    /// Switches to the fallback data plane, if the file names none.
    pub fn fall_back(&mut self) -> bool {
        let Some(plane) = self.fallback.take() else { return false };
        self.settings.by_address = matches!(plane, DataPlane::Nftables);
        self.plane = plane;
        true
    }
}

/// Source of the security groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Our policy store, which pushes changes over gRPC.
    Grpc(HostPort),
    /// A genuine policy-server-internal, which is polled over HTTP.
    Http {
        /// Scheme, host and port.
        url: String,
        /// Timeout of one request.
        timeout: Duration,
    },
}

impl Source {
    /// The address as in the configuration.
    #[must_use]
    pub fn address(&self) -> &str {
        match self {
            Self::Grpc(address) => address.as_str(),
            Self::Http { url, .. } => url,
        }
    }
}

/// The data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPlane {
    /// An nftables table of our own.
    Nftables,
    /// iptables chains beside those of silk-cni.
    Iptables {
        /// Path prefix of the programs.
        path: PathBuf,
        /// Lock file of all users of iptables on the cell.
        lock: PathBuf,
    },
}

impl DataPlane {
    /// The name in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables { .. } => "iptables",
        }
    }
}

/// Keys of the original without effect here.
const UNUSED: &[&str] = &["poll_interval", "vni", "enable_overlay_ingress_rules"];

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(UNUSED);
        let source = source(keys);
        let cell = cell(keys, source.as_ref());
        let tls = tls_files(keys);
        let container_store: Option<PathBuf> = keys.required("cni_datastore_path");
        let state_directory =
            keys.or("state_directory", PathBuf::from("/var/vcap/data/cell-agent"));
        let control_socket: Option<Option<PathBuf>> = keys.optional("control_socket");
        let nft = keys.or("nft_path", PathBuf::from("nft"));
        let (plane, fallback) = plane(keys).unzip();
        // Reading the iptables tables costs more than reading the nf_tables generation.
        let seconds = if let Some(DataPlane::Iptables { .. }) = plane { 5 } else { 2 };
        let drift_interval = interval(keys, "drift_interval", Duration::from_secs(seconds));
        let force_timeout = interval(keys, "force_timeout", Duration::from_secs(10));
        let full_interval = keys.nonzero("asg_poll_interval", Seconds::new(60));
        let enabled = keys.or("enable_asg_syncing", true);
        let loggregator = loggregator(keys);
        let metron = keys.optional("metron_address");
        let otlp = keys.section("otlp");
        let policy_agent = keys.optional("policy_agent_address");
        let control_address =
            address(keys, ("force_policy_poll_cycle_host", "force_policy_poll_cycle_port"), 8722);
        let debug_address = address(keys, ("debug_server_host", "debug_server_port"), 8721);
        let log_prefix = keys.or("log_prefix", "cfnetworking".to_owned());
        let log_level = keys.or("log_level", Level::Info);
        let c2c_logging = keys.or("iptables_c2c_logging", false);
        let underlay_ips = underlay_ips(keys);
        let lines = keys.section::<DeniedLines>("denied_connection_logs");
        let rule_use = keys.section::<RuleUse>("rule_use");
        let rule_use = rule_use.map(|section| section.unwrap_or(RuleUse::OFF));
        let settings = settings(keys).map(|settings| Settings {
            by_address: matches!(plane, Some(DataPlane::Nftables)),
            count_use: rule_use.as_ref().is_some_and(|rule_use| rule_use.enabled),
            ..settings
        });
        let state_directory = state_directory?;
        Some(Self {
            cell: cell?,
            source: source?,
            tls: tls?,
            container_store: container_store?,
            control_socket: control_socket?
                .unwrap_or_else(|| Path::join(&state_directory, "control.sock")),
            state_directory,
            use_interval: rule_use?.interval,
            plane: plane?,
            nft: nft?,
            drift_interval: drift_interval?,
            full_interval: full_interval?.0,
            force_timeout: force_timeout?,
            enabled: enabled?,
            loggregator: loggregator?,
            metron: metron?,
            otlp: otlp?,
            policy_agent: policy_agent?,
            control_address: control_address?,
            debug_address: debug_address?,
            log_prefix: log_prefix?,
            log_level: log_level?,
            c2c_logging: c2c_logging?,
            underlay_ips: underlay_ips?,
            denied_lines: lines?.map(|lines| lines.0).unwrap_or_default(),
            settings: settings?,
            fallback: fallback?,
        })
    }
}

/// The default source is our own store if its address is configured, otherwise the
/// policy server, so that the original's file works unchanged.
fn source(keys: &mut Reader<'_>) -> Option<Source> {
    let api: Option<Option<String>> = keys.optional("policy_server_api");
    let store: Option<Option<HostPort>> = keys.optional("policy_store_address");
    let url: Option<Option<String>> = keys.optional("policy_server_url");
    let timeout = keys.nonzero("client_timeout_seconds", Seconds::new(5));
    let (api, store, url, Seconds(timeout)) = (api?, store?, url?, timeout?);
    let default = if store.is_none() && url.is_some() { "http" } else { "grpc" };
    match api.as_deref().unwrap_or(default) {
        "grpc" => match store {
            Some(store) => Some(Source::Grpc(store)),
            None => {
                let what = "is missing; or name policy_server_url for a server that is polled";
                keys.problem("policy_store_address", what);
                None
            }
        },
        "http" => {
            let url = url.unwrap_or_default();
            let good = |url: &reqwest::Url| matches!(url.scheme(), "https" | "http");
            if !reqwest::Url::parse(&url).is_ok_and(|url| good(&url)) {
                keys.problem("policy_server_url", format_args!("{url:?} is not a URL"));
                return None;
            }
            Some(Source::Http { url, timeout })
        }
        other => {
            keys.problem("policy_server_api", format_args!("{other:?} is not grpc or http"));
            None
        }
    }
}

/// Only our own store receives the cell's name.
fn cell(keys: &mut Reader<'_>, source: Option<&Source>) -> Option<CellId> {
    let parse = |text: &str| CellId::parse(text).map_err(|error| error.to_string());
    match (source, keys.optional::<String>("cell_id")?) {
        (Some(Source::Http { .. }), None) => Some(CellId::parse("cell").expect("a cell's name")),
        (_, Some(text)) => parse(&text).map_err(|error| keys.problem("cell_id", error)).ok(),
        (_, None) => {
            keys.problem("cell_id", "is missing");
            None
        }
    }
}

/// The data plane, and the fallback if the file names none.
pub(crate) fn plane(keys: &mut Reader<'_>) -> Option<(DataPlane, Option<DataPlane>)> {
    let plane: Option<Option<String>> = keys.optional("data_plane");
    let path = keys.or("iptables_path", PathBuf::from("iptables"));
    let lock =
        keys.or("iptables_lock_file", PathBuf::from("/var/vcap/data/garden-cni/iptables.lock"));
    let (plane, path, lock) = (plane?, path?, lock?);
    let iptables = DataPlane::Iptables { path, lock };
    match plane.as_deref() {
        None => Some((DataPlane::Nftables, Some(iptables))),
        Some("nftables") => Some((DataPlane::Nftables, None)),
        Some("iptables") => Some((iptables, None)),
        Some(_) => {
            keys.problem("data_plane", "must be nftables or iptables");
            None
        }
    }
}

/// Maximum rate per second of the iptables modules `limit` and `hashlimit`, and also
/// the largest burst.
const LOGS_MOST: u32 = 10_000;
const CONNECTIONS_MOST: u32 = 1_000_000;
/// Maximum of recorded packets per second and container: the whole cell's rate is 20 times
/// this one, and recording a packet takes the agent some microseconds.
const RECORDS_MOST: u32 = 500;

/// Default number of destinations that are counted per container.
const DESTINATIONS: u32 = 16_384;

/// The default overlay network: that of silk's own job.
const OVERLAY: &str = "10.255.0.0/16";

/// Settings for a table of our own.
pub(crate) fn settings(keys: &mut Reader<'_>) -> Option<Settings> {
    let overlay = keys.or("overlay_network", OVERLAY.to_owned()).and_then(|text| {
        let overlay = network(&text);
        if overlay.is_none() {
            keys.problem("overlay_network", "is not an address with a prefix length");
        }
        overlay
    });
    let disable_network_policy = keys.or("disable_container_network_policy", false);
    let deny_networks = keys.section::<DenyNetworks>("deny_networks");
    let log_all = keys.or("iptables_asg_logging", false);
    let denied_logs_per_second = rate(keys, "iptables_denied_logs_per_sec", 1, LOGS_MOST);
    let udp_logs_per_second = rate(keys, "iptables_accepted_udp_logs_per_sec", 100, LOGS_MOST);
    let connection_limit = keys.section::<OutboundConnections>("outbound_connections");
    let denied = keys.section::<DeniedConnections>("denied_connections");
    Some(Settings {
        by_address: true,
        overlay: overlay?,
        underlay: Vec::new(),
        disable_network_policy: disable_network_policy?,
        deny_networks: deny_networks?.unwrap_or_default(),
        log_all: log_all?,
        denied_logs_per_second: denied_logs_per_second?,
        udp_logs_per_second: udp_logs_per_second?,
        connection_limit: connection_limit?.and_then(|connections| connections.0),
        record_denied: denied?.unwrap_or(DeniedConnections::DEFAULT).0,
        count_use: false,
    })
}

impl Configure for DenyNetworks {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let mut list = |key| texts(keys, key, network, "an address with a prefix length");
        let (always, running, staging) = (list("always"), list("running"), list("staging"));
        Some(Self { always: always?, running: running?, staging: staging? })
    }
}

/// The section `outbound_connections`; `None` inside means no limit.
struct OutboundConnections(Option<ConnectionLimit>);

impl Configure for OutboundConnections {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        // The original's agent ignores this key, too (case 16).
        keys.ignore(&["dry_run"]);
        let limit = keys.or("limit", false);
        let log = keys.or("logging", false);
        let burst = rate(keys, "burst", 1000, CONNECTIONS_MOST);
        let per_second = rate(keys, "rate_per_sec", 100, CONNECTIONS_MOST);
        let destinations = rate(keys, "max_destinations", DESTINATIONS, CONNECTIONS_MOST);
        let connections = ConnectionLimit {
            per_second: per_second?,
            burst: burst?,
            log: log?,
            destinations: destinations?,
        };
        Some(Self(limit?.then_some(connections)))
    }
}

/// The section `denied_connections`; `None` inside means no record.
struct DeniedConnections(Option<RecordDenied>);

impl DeniedConnections {
    const DEFAULT: Self =
        Self(Some(RecordDenied { group: 7077, per_second: 100, asked_for: false }));
}

impl Configure for DeniedConnections {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let default = Self::DEFAULT.0?;
        let record: Option<Option<bool>> = keys.optional("record");
        let group = keys.nonzero("nflog_group", default.group);
        let per_second = rate(keys, "records_per_sec", default.per_second, RECORDS_MOST);
        let record = record?;
        let asked_for = record == Some(true);
        let limits = RecordDenied { group: group?, per_second: per_second?, asked_for };
        Some(Self((record != Some(false)).then_some(limits)))
    }
}

/// Maximum interval of reads: the policy store expects reports within five minutes.
const USE_INTERVAL_MOST: u32 = 120;

/// The section `rule_use`.
struct RuleUse {
    enabled: bool,
    interval: Duration,
}

impl RuleUse {
    const OFF: Self = Self { enabled: false, interval: Duration::from_secs(60) };
}

impl Configure for RuleUse {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let enabled = keys.or("enabled", false);
        let interval = rate(keys, "interval_seconds", 60, USE_INTERVAL_MOST)?;
        Some(Self { enabled: enabled?, interval: Duration::from_secs(interval.into()) })
    }
}

/// The section `denied_connection_logs`.
struct DeniedLines(Lines);

impl Configure for DeniedLines {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let (log, app_log) = (keys.or("agent", false), keys.or("app", false));
        Some(Self(Lines { log: log?, app_log: app_log? }))
    }
}

/// Like the original: nothing is sent without `loggregator_use_v2_api`.
fn loggregator(keys: &mut Reader<'_>) -> Option<Option<loggregator::Config>> {
    let section = keys.section::<loggregator::Config>("loggregator")?;
    let used = section.filter(|section| section.use_v2_api);
    if used.as_ref().is_some_and(|section| section.files.is_none()) {
        let what = "needs loggregator_ca_path, loggregator_cert_path and loggregator_key_path";
        keys.problem("loggregator", what);
        return None;
    }
    Some(used)
}

fn tls_files(keys: &mut Reader<'_>) -> Option<tls::Files> {
    tls::Files::required(keys, ["ca_cert_file", "client_cert_file", "client_key_file"])
}

/// A network; host bits are ignored.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().map(|net: IpNet| net.trunc())
}

pub(crate) fn underlay_ips(keys: &mut Reader<'_>) -> Option<Vec<IpAddr>> {
    texts(keys, "underlay_ips", |text| text.parse().ok(), "an IP address")
}

fn texts<T>(
    keys: &mut Reader<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Option<T>,
    what: &str,
) -> Option<Vec<T>> {
    let texts: Vec<String> = keys.or(key, Vec::new())?;
    let mut values = Vec::with_capacity(texts.len());
    for text in &texts {
        match parse(text) {
            Some(value) => values.push(value),
            None => {
                keys.problem(key, format_args!("{text:?} is not {what}"));
                return None;
            }
        }
    }
    Some(values)
}

/// A number from 1 to the packet filter's maximum, above which the filter refuses every
/// container's rules.
fn rate(keys: &mut Reader<'_>, key: &'static str, default: u32, most: u32) -> Option<u32> {
    let rate = keys.nonzero(key, default)?;
    if rate > most {
        keys.problem(key, format_args!("must be at most {most}"));
        return None;
    }
    Some(rate)
}

fn interval(keys: &mut Reader<'_>, key: &'static str, default: Duration) -> Option<Duration> {
    let given: GoDuration = keys.nonzero(key, default.into())?;
    if given < GoDuration::ZERO {
        keys.problem(key, "must not be negative");
        return None;
    }
    Some(given.to_duration())
}

fn address(
    keys: &mut Reader<'_>,
    (host, port): (&'static str, &'static str),
    default: u16,
) -> Option<String> {
    let host = keys.or(host, "127.0.0.1".to_owned());
    let port = keys.or(port, default);
    let (host, port) = (host?, port?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
