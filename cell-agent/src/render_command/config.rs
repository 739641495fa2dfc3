//! The part of the agent's configuration that affects rules. The rest of the file is
//! not checked: no certificates are needed to print a table.

use std::net::IpAddr;

use runtime::config::{Configure, Reader};

use super::PlaneName;
use crate::{
    config::{self, DataPlane},
    plan::Settings,
};

#[derive(Debug)]
pub(super) struct Config {
    pub(super) settings: Settings,
    pub(super) underlay: Vec<IpAddr>,
    pub(super) plane: PlaneName,
    pub(super) enabled: bool,
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let settings = config::settings(keys);
        let underlay = config::underlay_ips(keys);
        let plane = config::plane(keys);
        let enabled = keys.or("enable_asg_syncing", true);
        Some(Self {
            settings: settings?,
            underlay: underlay?,
            plane: match plane?.0 {
                DataPlane::Nftables => PlaneName::Nftables,
                DataPlane::Iptables { .. } => PlaneName::Iptables,
            },
            enabled: enabled?,
        })
    }
}
