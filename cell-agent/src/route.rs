//! Asks the kernel for the route to an address (`linux/rtnetlink.h`).

use std::{io, net::IpAddr, os::fd::AsRawFd as _};

use nix::{
    errno::Errno,
    net::if_::if_indextoname,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

/// `NLMSG_ERROR`, `RTM_NEWROUTE` and `RTM_GETROUTE`.
const ERROR: u16 = 2;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// Attributes of a route.
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const INCOMING: u16 = 3;
const OUTGOING: u16 = 4;
/// Types of routes: `RTN_UNICAST`, `RTN_LOCAL` and `RTN_ANYCAST`.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const ANYCAST: u8 = 4;
/// Lengths of `struct nlmsghdr` and `struct rtmsg`.
const HEADER: usize = 16;
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
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(1, 0))?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &question(to, coming), &kernel, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let received = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no route");
    match read(answer.get(..received).unwrap_or_default()).ok_or_else(torn)? {
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
    let mut body = vec![family as u8, bits(to), source_bits, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).expect("an address is short");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    };
    attribute(DESTINATION, &octets(to));
    if let Some(source) = source {
        attribute(SOURCE, &octets(source));
    }
    if let Some((interface, _)) = coming {
        attribute(INCOMING, &interface.to_ne_bytes());
    }
    let length = u32::try_from(HEADER + body.len()).expect("the message is short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(GET_ROUTE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
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
        ERROR => {
            let error = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
            Some(Answer::Refused(Errno::from_raw(error.checked_neg()?)))
        }
        NEW_ROUTE => {
            let route_type = *body.get(7)?;
            let outgoing = attribute(body.get(ROUTE..)?, OUTGOING);
            let index = outgoing.and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
            Some(Answer::Route(route_type, index))
        }
        _ => None,
    }
}

/// The value of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?);
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..usize::from(length))?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
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
