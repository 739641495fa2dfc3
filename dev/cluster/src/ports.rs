//! Ports of the control plane, on the loopback address of the launcher's namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use anyhow::Context;

/// Number of syncers in a cluster: one leader, the others standby.
pub(crate) const SYNCERS: usize = 2;

/// One port for each listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    /// The Cloud Controller's public API.
    pub(crate) api: u16,
    /// Its internal API, with mutual TLS.
    pub(crate) internal_api: u16,
    /// The UAA.
    pub(crate) uaa: u16,
    /// The lock server's gRPC.
    pub(crate) lock_server: u16,
    /// Its metrics and health.
    pub(crate) lock_server_debug: u16,
    /// The policy store's gRPC.
    pub(crate) policy_store: u16,
    /// Its metrics and health.
    pub(crate) policy_store_debug: u16,
    /// Metrics and health of each syncer.
    pub(crate) syncer_debug: [u16; SYNCERS],
}

/// How ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// The same ports at every start, so that commands stay valid
    Default,
    /// Any free ports
    Auto,
}

const LISTENERS: usize = 7 + SYNCERS;

const DEFAULT: [u16; LISTENERS] = [9022, 9023, 8443, 8891, 17_018, 4004, 4005, 17_021, 17_022];

impl Ports {
    /// Chooses ports, all of which are free at this moment.
    pub(crate) fn choose(choice: Choice) -> anyhow::Result<Self> {
        let wanted = match choice {
            Choice::Default => DEFAULT,
            Choice::Auto => [0; LISTENERS],
        };
        // Bound simultaneously, so that none is chosen twice.
        let bound: Vec<TcpListener> = wanted.into_iter().map(bind).collect::<Result<_, _>>()?;
        let mut ports = [0; LISTENERS];
        for (port, listener) in ports.iter_mut().zip(&bound) {
            *port = listener.local_addr()?.port();
        }
        Ok(Self::from(ports))
    }
}

impl From<[u16; LISTENERS]> for Ports {
    fn from(ports: [u16; LISTENERS]) -> Self {
        let [api, internal_api, uaa, lock_server, lock_server_debug, rest @ ..] = ports;
        let [policy_store, policy_store_debug, syncer_debug @ ..] = rest;
        Self {
            api,
            internal_api,
            uaa,
            lock_server,
            lock_server_debug,
            policy_store,
            policy_store_debug,
            syncer_debug,
        }
    }
}

/// The address of a port.
pub(crate) fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(local(port));
    bound.with_context(|| match port {
        0 => "no free port on 127.0.0.1".to_owned(),
        port => format!("port {port} on 127.0.0.1 is taken; --ports auto takes any that are free"),
    })
}

/// Whether a server listens on the port.
pub(crate) async fn answers(port: u16) -> Result<(), io::Error> {
    tokio::net::TcpStream::connect(local(port)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(ports: &Ports) -> Vec<u16> {
        let Ports {
            api,
            internal_api,
            uaa,
            lock_server,
            lock_server_debug,
            policy_store,
            policy_store_debug,
            syncer_debug: [first, second],
        } = *ports;
        let control = [api, internal_api, uaa, lock_server, lock_server_debug];
        control.into_iter().chain([policy_store, policy_store_debug, first, second]).collect()
    }

    #[test]
    fn every_listener_has_a_port_of_its_own() {
        let free = Ports::choose(Choice::Auto).unwrap();
        for ports in [free, Ports::from(DEFAULT)] {
            let distinct: BTreeSet<u16> = all(&ports).into_iter().collect();
            assert_eq!(distinct.len(), LISTENERS);
            assert!(!distinct.contains(&0));
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind(local(0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(port).unwrap_err().to_string();
        let expected =
            format!("port {port} on 127.0.0.1 is taken; --ports auto takes any that are free");
        assert_eq!(error, expected);
    }
}
