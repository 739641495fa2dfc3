//! The configuration files of all parts.

use std::net::Ipv4Addr;

use certificates::Files;
use cluster::control;
use cluster::topology::OVERLAY;
use serde_json::{Value, json};

use crate::database::{Database, GROUPS, LOCKS as LOCKS_DATABASE};
use crate::part::Part;
use crate::site::{API, INTERNAL_API, IPTABLES, LOCKS, LOCKS_NAME, STORE, STORE_NAME, Site, UAA};

/// More than the longest run, in seconds.
const LONGEST_RUN: u32 = 200_000;

impl Site {
    /// The configuration of a part.
    pub(crate) fn configuration(&self, part: Part, database: Option<&Database>) -> Value {
        match part {
            Part::CloudController | Part::Database => self.cloud_controller(),
            Part::LockServer(_) => self.lock_server(part, database),
            Part::PolicyStore(_) => self.policy_store(part, database),
            Part::Syncer(_) => self.syncer(part),
            Part::Agent(number) => self.agent(number),
        }
    }

    fn cloud_controller(&self) -> Value {
        let part = Part::CloudController;
        let Files { ca, cert, key } = self.certificate(part);
        json!({
            "api_address": self.at(part, API), "uaa_address": self.at(part, UAA),
            "internal_address": self.at(part, INTERNAL_API),
            "tls": { "cert_file": cert, "key_file": key },
            "internal_tls": { "ca_file": ca, "cert_file": cert, "key_file": key },
            "state_file": self.root.join("data").join("cloud-controller.json"),
            "trouble_file": self.trouble(),
            // The client of a run logs in once.
            "access_token_seconds": LONGEST_RUN,
        })
    }

    fn lock_server(&self, part: Part, database: Option<&Database>) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let (driver, connection) = match database {
            Some(database) => {
                let router = self.router(part);
                (database.driver(), database.connection_string(&router, LOCKS_DATABASE))
            }
            None => ("sqlite", self.database_file(part).to_string_lossy().into_owned()),
        };
        json!({
            "listen_address": self.at(part, LOCKS), "debug_address": "127.0.0.1:17018",
            "ca_file": ca, "cert_file": cert, "key_file": key,
            "database_driver": driver, "database_connection_string": connection,
            "log_level": "info", "time_format": "rfc3339",
        })
    }

    /// The router as that part sees it.
    fn router(&self, part: Part) -> String {
        let place = self.place(part).expect("the schedule has only parts of the shape");
        place.router().to_string()
    }

    fn policy_store(&self, part: Part, database: Option<&Database>) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let database = match database {
            Some(database) => json!({
                "type": database.driver(), "user": "tester", "password": "secret",
                "host": self.router(part), "port": database.port(), "timeout": 60,
                "database_name": GROUPS,
            }),
            None => json!({
                "type": "sqlite", "path": self.database_file(part),
            }),
        };
        let writers = (1..=self.shape.syncers).map(|n| format!("cn=syncer-{n}"));
        let writers: Vec<_> = writers.chain(["cn=operator".to_owned()]).collect();
        json!({
            "grpc_listen_address": self.at(part, STORE), "admin_listen_address": "127.0.0.1:4005",
            "ca_cert_file": ca, "server_cert_file": cert, "server_key_file": key,
            "database": database,
            "writer_identities": writers,
            "cell_identities": ["ou=cell"], "operator_identities": ["cn=operator"],
            "cell_id_from": "any", "log_level": "info",
        })
    }

    fn syncer(&self, part: Part) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let controller = self.at(Part::CloudController, UAA);
        let controller = controller.split(':').next().unwrap_or_default();
        json!({
            "uuid": part.to_string(), "log_level": "info", "log_prefix": "cfnetworking",
            "debug_server_port": 17021,
            "cc_url": self.url(API), "cc_ca_cert": ca,
            "cc_internal_url": self.url(INTERNAL_API), "cc_internal_ca_cert": ca,
            "cc_internal_client_cert": cert, "cc_internal_client_key": key,
            "uaa_url": format!("https://{controller}"), "uaa_port": UAA, "uaa_ca": ca,
            "uaa_client": "network-policy", "uaa_client_secret": "network-policy-secret",
            "locket_address": format!("{LOCKS_NAME}:{LOCKS}"), "locket_ca_cert_file": ca,
            "locket_client_cert_file": cert, "locket_client_key_file": key,
            "policy_store_address": format!("{STORE_NAME}:{STORE}"),
            "policy_store_ca_cert_file": ca, "policy_store_client_cert_file": cert,
            "policy_store_client_key_file": key,
        })
    }

    fn agent(&self, number: u8) -> Value {
        let part = Part::Agent(number);
        let Files { ca, cert, key } = self.certificate(part);
        let directory = self.cell(number);
        json!({
            "cell_id": format!("cell-{number}"),
            "policy_store_address": format!("{STORE_NAME}:{STORE}"),
            "ca_cert_file": ca, "client_cert_file": cert, "client_key_file": key,
            "cni_datastore_path": self.metadata(number), "overlay_network": OVERLAY,
            "underlay_ips": [self.address(part).unwrap_or(Ipv4Addr::UNSPECIFIED)],
            "state_directory": directory.join("agent"), "control_socket": self.socket(number),
            "data_plane": self.plane.name(), "iptables_path": IPTABLES,
            "iptables_lock_file": directory.join("iptables.lock"),
            "force_policy_poll_cycle_host": "127.0.0.1",
            "force_policy_poll_cycle_port": control::PORT,
            "debug_server_host": "127.0.0.1", "debug_server_port": 8721, "log_level": "info",
        })
    }
}
