//! The configuration files of the cluster's processes, as values. Pure.

use std::path::Path;

use serde_json::{Value, json};

use super::layout::Layout;
use super::ports::{Ports, local};
use super::topology::{Cell, OVERLAY};

/// The certificate of all pure servers.
pub(crate) const SERVER: &str = "server";
/// The certificate of both syncers; the policy store accepts writes with this name.
pub(crate) const SYNCER: &str = "syncer";
/// The certificate of operators; the policy store shows its status to this name.
pub(crate) const OPERATOR: &str = "operator";
/// The organizational unit of the cells' certificates.
pub(crate) const CELL_UNIT: &str = "cell";

/// The UAA client that reads security groups.
pub(crate) const UAA_CLIENT: (&str, &str) = ("network-policy", "network-policy-secret");
/// The administrator of the development Cloud Controller.
pub(crate) const ADMIN: (&str, &str) = ("admin", "admin");

/// A syncer's name: process, lock owner, log file.
pub(crate) fn syncer_name(number: usize) -> String {
    format!("syncer-{number}")
}

/// An agent's process name.
pub(crate) fn agent_name(cell: Cell) -> String {
    format!("cell-agent-{}", cell.name().trim_start_matches("cell-"))
}

/// The Cloud Controller and UAA.
pub(crate) fn cloud_controller(layout: &Layout, ports: &Ports) -> Value {
    let (cert, key) = layout.certificate(SERVER);
    json!({
        "api_address": local(ports.api).to_string(),
        "uaa_address": local(ports.uaa).to_string(),
        "internal_address": local(ports.internal_api).to_string(),
        "tls": { "cert_file": cert, "key_file": key },
        "internal_tls": { "ca_file": layout.ca(), "cert_file": cert, "key_file": key },
        "enable_ipv6": true,
        "users": [{
            "name": ADMIN.0, "password": ADMIN.1,
            "scopes": ["cloud_controller.admin", "network.admin", "scim.read", "scim.write",
                       "clients.read", "openid"],
        }],
        "clients": [{
            "id": UAA_CLIENT.0, "secret": UAA_CLIENT.1,
            "authorities": ["uaa.resource", "cloud_controller.admin_read_only"],
        }],
    })
}

/// The lock server.
pub(crate) fn lock_server(layout: &Layout, ports: &Ports) -> Value {
    let (cert, key) = layout.certificate(SERVER);
    json!({
        "listen_address": local(ports.lock_server).to_string(),
        "debug_address": local(ports.lock_server_debug).to_string(),
        "ca_file": layout.ca(),
        "cert_file": cert,
        "key_file": key,
        "database_driver": "sqlite",
        "database_connection_string": layout.database("lock-server"),
        "log_level": "info",
        "time_format": "rfc3339",
    })
}

/// The policy store.
pub(crate) fn policy_store(layout: &Layout, ports: &Ports) -> Value {
    let (cert, key) = layout.certificate(SERVER);
    json!({
        "grpc_listen_address": local(ports.policy_store).to_string(),
        "admin_listen_address": local(ports.policy_store_debug).to_string(),
        "web_page": true,
        "ca_cert_file": layout.ca(),
        "server_cert_file": cert,
        "server_key_file": key,
        "database": { "type": "sqlite", "path": layout.database("policy-store") },
        "writer_identities": [format!("cn={SYNCER}")],
        "cell_identities": [format!("ou={CELL_UNIT}")],
        "operator_identities": [format!("cn={OPERATOR}")],
        "log_level": "info",
    })
}

/// A syncer, counted from 1. Its log level is debug, since the story reads its log.
pub(crate) fn syncer(layout: &Layout, ports: &Ports, number: usize) -> Value {
    let (cert, key) = layout.certificate(SYNCER);
    json!({
        "uuid": syncer_name(number),
        "log_level": "debug",
        "log_prefix": "cfnetworking",
        "debug_server_port": ports.syncer_debug[number - 1],
        "cc_url": format!("https://{}", local(ports.api)),
        "cc_ca_cert": layout.ca(),
        "cc_internal_url": format!("https://{}", local(ports.internal_api)),
        "cc_internal_ca_cert": layout.ca(),
        "cc_internal_client_cert": cert,
        "cc_internal_client_key": key,
        "uaa_url": "https://127.0.0.1",
        "uaa_port": ports.uaa,
        "uaa_ca": layout.ca(),
        "uaa_client": UAA_CLIENT.0,
        "uaa_client_secret": UAA_CLIENT.1,
        "locket_address": local(ports.lock_server).to_string(),
        "locket_ca_cert_file": layout.ca(),
        "locket_client_cert_file": cert,
        "locket_client_key_file": key,
        "policy_store_address": local(ports.policy_store).to_string(),
        "policy_store_ca_cert_file": layout.ca(),
        "policy_store_client_cert_file": cert,
        "policy_store_client_key_file": key,
    })
}

/// A cell's agent. Its ports are on the cell's own loopback interface.
pub(crate) fn cell_agent(layout: &Layout, ports: &Ports, cell: Cell, nft: &Path) -> Value {
    let (cert, key) = layout.certificate(&cell.name());
    json!({
        "cell_id": cell.name(),
        "policy_store_address": local(ports.policy_store).to_string(),
        "ca_cert_file": layout.ca(),
        "client_cert_file": cert,
        "client_key_file": key,
        "cni_datastore_path": layout.metadata(cell),
        "overlay_network": OVERLAY,
        "underlay_ips": [cell.underlay()],
        "state_directory": layout.agent_state(cell),
        "control_socket": layout.agent_socket(cell),
        "nft_path": nft,
        "force_policy_poll_cycle_host": "127.0.0.1",
        "force_policy_poll_cycle_port": super::control::PORT,
        "debug_server_host": "127.0.0.1",
        "debug_server_port": 8721,
        "log_level": "info",
    })
}
