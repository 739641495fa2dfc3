//! The groups of a fresh deployment, as cf-deployment has them
//! (docs/compatibility/cloud-controller.md#default-groups).

use std::sync::Arc;

use jiff::Timestamp;

use super::{Group, State, whole_seconds};
use crate::json::{Json, object};

const PUBLIC: [&str; 5] = [
    "0.0.0.0-9.255.255.255",
    "11.0.0.0-169.253.255.255",
    "169.255.0.0-172.15.255.255",
    "172.32.0.0-192.167.255.255",
    "192.169.0.0-255.255.255.255",
];

impl State {
    /// Adds the default groups if there is no group.
    pub fn seed(&mut self, now: Timestamp, mut guid: impl FnMut() -> String) {
        if !self.groups.is_empty() {
            return;
        }
        let everything = |range| object! { "protocol": "all", "destination": range };
        let port_53 = |protocol| {
            object! { "protocol": protocol, "destination": "0.0.0.0/0", "ports": "53" }
        };
        let public_networks: Json = PUBLIC.map(everything).into_iter().collect();
        let dns: Json = ["tcp", "udp"].map(port_53).into_iter().collect();
        let now = whole_seconds(now);
        for (name, rules) in [("public_networks", public_networks), ("dns", dns)] {
            let group = Group {
                guid: guid(),
                created_at: now,
                updated_at: now,
                name: name.to_owned(),
                rules,
                running: true,
                staging: true,
                running_spaces: Vec::new(),
                staging_spaces: Vec::new(),
            };
            let number = self.number();
            self.groups.insert(number, Arc::new(group));
        }
    }
}
