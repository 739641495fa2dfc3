//! Whole processes, real sockets, and what holds across crates.

#[path = "suite/addresses.rs"]
mod addresses;
#[path = "suite/alarms.rs"]
mod alarms;
#[path = "suite/cell_agent.rs"]
mod cell_agent;
#[path = "suite/citations.rs"]
mod citations;
#[path = "suite/dependencies.rs"]
mod dependencies;
#[path = "suite/failover.rs"]
mod failover;
#[path = "suite/hostile.rs"]
mod hostile;
#[path = "suite/load.rs"]
mod load;
#[path = "suite/local_cluster.rs"]
mod local_cluster;
#[path = "suite/lock_server.rs"]
mod lock_server;
#[path = "suite/metrics.rs"]
mod metrics;
#[path = "suite/policy_store.rs"]
mod policy_store;
#[path = "suite/portcullisctl.rs"]
mod portcullisctl;
#[path = "suite/start_failures.rs"]
mod start_failures;
#[path = "suite/syncers.rs"]
mod syncers;
