//! The attacks.
//!
//! All are paced: attacker, service and honest client share the processors of one machine, and
//! an attacker without a pace would measure the machine.

mod connections;
mod flood;
mod http1;
mod keys;
mod messages;
mod tls;
mod unread;

use std::future::Future;
use std::pin::Pin;

use super::context::Context;
use super::dial::Protocol;
use super::target::{Door, Security};

pub(crate) use keys::RATE as KEYS_A_SECOND;

type Ends = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// An attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The HTTP version with which the attack is possible on a door, if at all.
    pub(crate) on: fn(Door) -> Option<Protocol>,
    /// Seconds that the attack takes to begin.
    pub(crate) ramp: u64,
    pub(crate) run: fn(Context) -> Ends,
}

fn any(door: Door) -> Option<Protocol> {
    http1(door).or_else(|| http2(door))
}

fn http1(door: Door) -> Option<Protocol> {
    door.speaks(Protocol::Http1).then_some(Protocol::Http1)
}

fn http2(door: Door) -> Option<Protocol> {
    door.speaks(Protocol::Http2).then_some(Protocol::Http2)
}

fn grpc(door: Door) -> Option<Protocol> {
    door.is_grpc().then_some(Protocol::Http2)
}

fn locks(door: Door) -> Option<Protocol> {
    (door == Door::LockServer).then_some(Protocol::Http2)
}

fn secured(door: Door) -> Option<Protocol> {
    if door.security() == Security::None { None } else { any(door) }
}

fn mutual(door: Door) -> Option<Protocol> {
    if door.security() == Security::Mutual { any(door) } else { None }
}

macro_rules! attack {
    ($name:literal, $about:literal, $on:expr, $ramp:literal, $run:path) => {
        Attack {
            name: $name,
            about: $about,
            on: $on,
            ramp: $ramp,
            run: |context| Box::pin($run(context)),
        }
    };
}

/// All attacks, in the order of the table.
pub(crate) const ALL: &[Attack] = &[
    attack!("idle", "5,000 idle connections that answer pings", any, 20, connections::idle),
    attack!("half-open-tls", "1,000 unfinished TLS handshakes", secured, 2, connections::half_open),
    attack!(
        "slow-headers",
        "500 requests, a header byte a second",
        any,
        3,
        connections::slow_headers
    ),
    attack!("slow-bodies", "300 large bodies that never end", any, 3, connections::slow_bodies),
    attack!("rapid-reset", "10,000 cancelled requests a second", http2, 0, flood::rapid_reset),
    attack!("continuation", "header blocks without an end", http2, 0, flood::continuation),
    attack!("settings", "20,000 SETTINGS a second, unread answers", http2, 0, flood::settings),
    attack!("ping", "20,000 PING a second, unread answers", http2, 0, flood::ping),
    attack!("window-update", "20,000 WINDOW_UPDATE a second", http2, 0, flood::window_update),
    attack!("empty-data", "20,000 empty DATA frames a second", http2, 0, flood::empty_data),
    attack!("header-list", "header lists of 64 KiB", http2, 0, flood::header_list),
    attack!(
        "hpack-bomb",
        "header blocks of 16 KiB that decode to 64 MiB",
        http2,
        0,
        flood::hpack_bomb
    ),
    attack!("streams", "100,000 open streams on 25 connections", http2, 11, flood::streams),
    attack!("messages", "messages above and at the limit", grpc, 0, messages::huge),
    attack!(
        "compressed",
        "compressed messages or bodies that grow 1,000 times",
        any,
        0,
        messages::compressed
    ),
    attack!(
        "every-byte",
        "every byte in keys, values, paths and headers",
        any,
        0,
        messages::every_byte
    ),
    attack!(
        "unread",
        "2,000 watchers or pipelined requests that never read",
        any,
        3,
        unread::watchers
    ),
    attack!("keys", "many lock keys, see --keys", locks, 0, keys::many),
    attack!("header-bomb", "1,000 heads of 400 KiB, unfinished", http1, 4, http1::header_bomb),
    attack!("bodies", "bodies of 1 GiB, and chunks with long extensions", http1, 0, http1::bodies),
    attack!("renegotiation", "TLS 1.2 renegotiation", secured, 0, tls::renegotiation),
    attack!("old-tls", "ClientHello of SSL 3.0, TLS 1.0 and 1.1", secured, 0, tls::old_versions),
    attack!("alpn", "other ALPN protocols, or none", secured, 0, tls::protocols),
    attack!("certificates", "certificates of every wrong kind", mutual, 0, tls::certificates),
];
