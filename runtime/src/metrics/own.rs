//! Metric families of every process.

use super::{Family, Kind, Label};

crate::families! {
    CONNECTIONS: Gauge "runtime_server_connections" { server: &[] },
        "Open connections of a server.";
    TLS_FAILURES: Counter "runtime_server_tls_failures_total" { server: &[] },
        "TLS handshakes of clients that failed.";
    UNFINISHED: Gauge "runtime_server_unfinished_bytes" { server: &[] },
        "Bytes of gRPC messages that have not arrived completely.";
    UNFINISHED_REFUSED: Counter "runtime_server_unfinished_refused_total" { server: &[] },
        "Calls refused because unfinished messages took all of the budget.";
    LINES_LEFT_OUT: Counter "runtime_log_lines_left_out_total",
        "Log lines left out because one place in the code logged too much.";
    DROPSONDE_LOST: Counter "runtime_dropsonde_lost_total",
        "Metrics that could not be sent to the metron agent.";
    LOGGREGATOR_SENT: Counter "runtime_loggregator_sent_total" when "loggregator is configured",
        "Envelopes sent to the loggregator agent.";
    LOGGREGATOR_DROPPED: Counter "runtime_loggregator_dropped_total" when "loggregator is configured",
        "Envelopes dropped because the queue to the loggregator agent was full.";
    LOGGREGATOR_CONNECTED: Gauge "runtime_loggregator_connected" when "loggregator is configured",
        "1 while the loggregator agent is connected, else 0.";
    OTLP_SENT: Counter "runtime_otlp_spans_sent_total" when "otlp is configured",
        "Spans that the OpenTelemetry collector accepted.";
    OTLP_FAILED: Counter "runtime_otlp_spans_failed_total" when "otlp is configured",
        "Spans lost because an export to the OpenTelemetry collector failed.";
}

/// Initializes the series of a server.
pub(crate) fn begin_server(server: &'static str) {
    for family in [CONNECTIONS, TLS_FAILURES, UNFINISHED, UNFINISHED_REFUSED] {
        family.begin(&[("server", server)]);
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family::new(Kind::Gauge, name, help)
}

pub(super) const BUILD: Family =
    gauge("portcullis_build_info", "Always 1; the labels name the service and its version.")
        .by(&[Label { name: "service", values: &[] }, Label { name: "version", values: &[] }]);
pub(super) const RESIDENT: Family = gauge("process_resident_memory_bytes", "Resident memory size.");
pub(super) const PEAK: Family =
    gauge("process_resident_memory_peak_bytes", "Largest resident memory size so far.");
pub(super) const VIRTUAL: Family = gauge("process_virtual_memory_bytes", "Virtual memory size.");
pub(super) const THREADS: Family = gauge("process_threads", "Threads of the process.");
pub(super) const CPU: Family = Family::new(
    Kind::Counter,
    "process_cpu_seconds_total",
    "User and system CPU time of the process.",
);
pub(super) const STARTED: Family =
    gauge("process_start_time_seconds", "Start time of the process as Unix time.");
pub(super) const OPEN_FILES: Family = gauge("process_open_fds", "Open file descriptors.");
pub(super) const MAX_FILES: Family = gauge("process_max_fds", "Limit of open file descriptors.");

/// Kernel figures read at each scrape, and build information.
pub const PROCESS: &[Family] =
    &[BUILD, RESIDENT, PEAK, VIRTUAL, THREADS, CPU, STARTED, OPEN_FILES, MAX_FILES];
