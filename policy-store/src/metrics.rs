//! Prometheus metrics. The original's names go only to the metron agent
//! (docs/compatibility/policy-server-internal.md#metrics).

runtime::families! {
    certificates "policy_store";
    DENIED: Counter "policy_store_denied_total",
        "Calls refused because the client's certificate does not permit them.";
    REPLACES: Counter "policy_store_replaces_total" {
        outcome: &["changed", "unchanged", "fenced", "mass-removal", "overtaken", "failed"],
    },
        "Replaces of the set of security groups by outcome.";
    REFUSED_REMOVAL: Gauge "policy_store_refused_removal_groups",
        "Groups that the last refused mass removal would remove; 0 after a committed Replace.";
    CHANGE_SECONDS: Histogram "policy_store_change_seconds" {
        hop: &["notice", "read", "commit", "enforce"],
    },
        "Time of a change by hop: notice, from the Cloud Controller's stamp until the syncer noticed it; read, until the syncer had read the list; commit, until this instance served it; enforce, until a cell that was connected at the commit reported it.";
    QUESTIONS: Counter "policy_store_questions_total" {
        outcome: &["answered", "failed", "timeout", "refused"],
    },
        "Requests passed to agents of cells by outcome: answered, an error of the agent, no answer in time, not passed or the watch ended.";
    COMMIT_SECONDS: Histogram "policy_store_commit_seconds",
        "Time of a Replace from its commit until all readers see it.";
    ORIGINAL_CURRENT: Gauge "policy_store_original_tables_current" when "write_original_tables is true",
        "1 if the last attempt made the original's tables equal to the set, else 0.";
    ORIGINAL_SECONDS: Histogram "policy_store_original_tables_seconds" when "write_original_tables is true",
        "Time of an attempt to write the original's tables, with the transaction that it is part of.";
    ORIGINAL_WRITES: Counter "policy_store_original_tables_writes_total" {
        outcome: &["changed", "unchanged", "partial", "failed"],
    } when "write_original_tables is true",
        "Attempts to write the original's tables by outcome.";
    FROZEN: Gauge "policy_store_frozen",
        "1 while cells are frozen at a generation, else 0.";
    RELEASED_GENERATION: Gauge "policy_store_released_generation",
        "Generation that cells get: the newest one, or the one at which they are frozen; during a \
         roll-out the one of the cells that no step includes yet.";
    ROLLOUT_STEP: Gauge "policy_store_rollout_step",
        "Step, from 1, of the generation that is rolled out; 0 without a roll-out.";
    ROLLOUT_STOPPED: Gauge "policy_store_rollout_stopped",
        "1 while a roll-out is stopped since cells had problems with its generation, else 0.";
    GENERATION: Gauge "policy_store_generation",
        "Number of the set of security groups that is served.";
    GROUPS: Gauge "policy_store_groups",
        "Security groups that are served.";
    WATCHERS: Gauge "policy_store_watchers",
        "Open watches of cells on this instance.";
    CELLS_KNOWN: Gauge "policy_store_cells_known",
        "Cells that are connected or reported within the last seven days, to any instance.";
    CELLS_CONNECTED: Gauge "policy_store_cells_connected",
        "Known cells that watch this instance.";
    CELLS_DISCONNECTED: Gauge "policy_store_cells_disconnected",
        "Known cells that do not watch this instance.";
    CELLS_BEHIND: Gauge "policy_store_cells_behind",
        "Known cells, connected or not, that have not reported the newest generation as enforced.";
    CELLS_BEHIND_SECONDS: Gauge "policy_store_cells_behind_seconds_max",
        "Longest time since the first generation that a known cell has not enforced.";
    CONTAINERS: Gauge "policy_store_containers",
        "Containers that cells reported to this instance, including those of disconnected cells.";
    CELL_LAG: Histogram "policy_store_cell_enforced_seconds",
        "Time from the commit of the first generation that a cell lacked to the report that the cell enforces the newest one.";
    HTTP_LISTS: Gauge "policy_store_http_lists_in_flight",
        "Lists of security groups that are being sent by HTTP.";
    HTTP_LISTS_REFUSED: Counter "policy_store_http_lists_refused_total",
        "Lists refused because concurrent_lists were being sent.";
    HTTP_LIST_BYTES: Counter "policy_store_http_list_bytes_total",
        "Bytes of lists handed to HTTP connections.";
    HTTP_STALE: Counter "policy_store_http_stale_total",
        "HTTP requests refused because the database did not answer in time.";
    HTTP_REQUESTS: Counter "policy_store_http_requests_total" {
        route: ROUTES, status: &["200", "403", "500", "503"],
    },
        "HTTP requests by route and status.";
    HTTP_SECONDS: Histogram "policy_store_http_request_seconds" { route: ROUTES },
        "Time to the first byte of an HTTP answer.";
    DB_OPEN: Gauge "policy_store_db_open_connections" when "the database is on a server",
        "Open connections to the database server.";
    DB_QUERIES: Counter "policy_store_db_queries_total" when "the database is on a server",
        "Statements sent to the database server.";
    DB_SUCCEEDED: Counter "policy_store_db_queries_succeeded_total" when "the database is on a server",
        "Statements that succeeded.";
    DB_FAILED: Counter "policy_store_db_queries_failed_total" when "the database is on a server",
        "Statements that failed.";
    DB_IN_FLIGHT: Gauge "policy_store_db_queries_in_flight_max" when "the database is on a server",
        "Most statements at the same time in the last 30 s.";
    DB_LONGEST: Gauge "policy_store_db_query_seconds_max" when "the database is on a server",
        "Longest statement in the last 30 s.";
}

/// The original's names of the routes.
const ROUTES: &[&str] = &[
    "InternalPolicies",
    "InternalPoliciesLastUpdated",
    "InternalSecurityGroups",
    "InternalSecurityGroupsLastUpdated",
    "CreateTags",
    "Uptime",
    "Health",
];
