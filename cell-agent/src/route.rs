//! Asks the kernel for the route to an address (`linux/rtnetlink.h`).

use std::{io, net::IpAddr};

use nix::{
    errno::Errno,
    net::if_::if_indextoname,
    sys::{
        socket::{AddressFamily, SockFlag, SockProtocol, setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
    },
};

use crate::netlink::{
    message::{Draft, ERROR, HEADER, REQUEST, code, value},
    open, receive, send,
};

/// `RTM_NEWROUTE` and `RTM_GETROUTE`.
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// Attributes of a route.
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const INCOMING: u16 = 3;
const OUTGOING: u16 = 4;
/// Types of routes: `RTN_UNICAST`, `RTN_LOCAL` and `RTN_ANYCAST`.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const ANYCAST: u8 = 4;
/// Length of `struct rtmsg`.
const ROUTE: usize = 12;

/// Where the kernel sends packets to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To this machine.
    Local,
    /// Out through this interface.
    Leaves(String),
    /// Nowhere: there is no route, or a prohibiting one.
    None,
}

/// The route of packets that arrive on an interface with a source address, or of
/// packets of this machine, in the network namespace of this thread.
///
/// # Errors
/// The kernel does not respond, or refuses such packets.
pub fn route(to: IpAddr, coming: Option<(u32, IpAddr)>) -> io::Result<Route> {
    let socket = open(SockProtocol::NetlinkRoute, SockFlag::empty())?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(1, 0))?;
    send(&socket, &question(to, coming))?;
    let mut answer = [0; 4096];
    let answer = receive(&socket, &mut answer)?;
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no route");
    match read(answer).ok_or_else(torn)? {
        Answer::Refused(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => {
            Ok(Route::None)
        }
        Answer::Refused(error) => Err(error.into()),
        Answer::Route(LOCAL | ANYCAST, _) => Ok(Route::Local),
        Answer::Route(UNICAST, Some(index)) => {
            let name = if_indextoname(index)?;
            Ok(Route::Leaves(name.to_string_lossy().into_owned()))
        }
        Answer::Route(..) => Ok(Route::None),
    }
}

fn question(to: IpAddr, coming: Option<(u32, IpAddr)>) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let source = coming.map(|(_, from)| from).filter(|from| from.is_ipv4() == to.is_ipv4());
    let source_bits = source.map_or(0, bits);
    let head = [family as u8, bits(to), source_bits, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut draft = Draft::default();
    draft.request(GET_ROUTE, REQUEST, &head, |draft| {
        draft.value(DESTINATION, &octets(to));
        if let Some(source) = source {
            draft.value(SOURCE, &octets(source));
        }
        if let Some((interface, _)) = coming {
            draft.value(INCOMING, &interface.to_ne_bytes());
        }
    });
    draft.0
}

/// The kernel's response.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Refused(Errno),
    /// The type of the route, and the index of the interface.
    Route(u8, Option<u32>),
}

fn read(message: &[u8]) -> Option<Answer> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let body = message.get(HEADER..)?;
    match kind {
        ERROR => Some(Answer::Refused(Errno::from_raw(code(message)?.checked_neg()?))),
        NEW_ROUTE => {
            let route_type = *body.get(7)?;
            let outgoing = value(body.get(ROUTE..)?, OUTGOING);
            let index = outgoing.and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
            Some(Answer::Route(route_type, index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_its_own_addresses() {
        assert_eq!(route("127.0.0.1".parse().unwrap(), None).unwrap(), Route::Local);
    }

    #[test]
    fn a_torn_answer_is_no_answer() {
        let mut answer = vec![0_u8; HEADER + ROUTE];
        answer[4..6].copy_from_slice(&NEW_ROUTE.to_ne_bytes());
        answer[HEADER + 7] = UNICAST;
        answer.extend([8, 0, 4, 0, 7, 0, 0, 0]);
        assert_eq!(read(&answer), Some(Answer::Route(UNICAST, Some(7))));
        for length in 0..answer.len() {
            let cut = read(&answer[..length]);
            assert!(cut.is_none() || cut == Some(Answer::Route(UNICAST, None)), "{length}");
        }
        // An attribute length of 0 would loop forever.
        answer[HEADER + ROUTE] = 0;
        assert_eq!(read(&answer), Some(Answer::Route(UNICAST, None)));
    }
}

#[cfg(test)]
#[path = "route_fuzz_tests.rs"]
mod fuzz_tests;
