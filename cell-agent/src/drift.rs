//! Notices what others do to our table.
//!
//! The kernel numbers each change to the packet filter of a network namespace.
//! As long as the number is the one after our own last change, nobody has done
//! anything, and asking for it costs two system calls. When it has moved, nft's
//! listing of our table is compared with the one taken after our last change.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvmsg, sendmsg,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};
use sha2::{Digest as _, Sha256};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`, and the answer's type.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// A netlink header and the netfilter header behind it.
const HEADERS: usize = 16 + 4;

/// The kernel's number for the packet filter in this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelGeneration(u32);

impl KernelGeneration {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn now() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(2, 0))?;
        ask(&socket)
    }

    /// A text that no earlier generation of this namespace gave.
    #[must_use]
    pub fn salt(self) -> String {
        self.0.to_string()
    }

    /// Whether one change lies between.
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        // The kernel leaves 0 out when the number wraps.
        self.0 == before.0.wrapping_add(1) || (before.0 == u32::MAX && self.0 == 1)
    }
}

fn ask(socket: &OwnedFd) -> io::Result<KernelGeneration> {
    let mut request = Vec::with_capacity(HEADERS);
    request.extend(u32::try_from(HEADERS).expect("small").to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; 4]);
    let kernel = NetlinkAddr::new(0, 0);
    let fd = socket.as_raw_fd();
    sendmsg(fd, &[IoSlice::new(&request)], &[], MsgFlags::empty(), Some(&kernel))?;
    let mut answer = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let received = recvmsg::<NetlinkAddr>(fd, &mut parts, None, MsgFlags::empty())?.bytes;
    let answer = answer.get(..received).unwrap_or_default();
    parse(answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no generation told"))
}

/// Reads the number out of the kernel's answer.
fn parse(answer: &[u8]) -> Option<KernelGeneration> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NEW_GENERATION {
        return None;
    }
    let mut attributes = answer.get(HEADERS..)?;
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(attributes[..2].try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes[2..4].try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == GENERATION_ID {
            return Some(KernelGeneration(u32::from_be_bytes(value.try_into().ok()?)));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// What nft's listing of a table says, without what the kernel itself puts into
/// sets (connection buckets), as a hash.
#[must_use]
pub fn fingerprint(listing: &str) -> String {
    let mut hash = Sha256::new();
    let mut in_set = false;
    let mut in_elements = false;
    for line in listing.lines() {
        if line.starts_with("\tset ") {
            in_set = true;
        } else if line == "\t}" {
            (in_set, in_elements) = (false, false);
        }
        in_elements |= in_set && line.trim_start().starts_with("elements = ");
        if !in_elements {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
    }
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_read() {
        let mut answer = vec![0; HEADERS];
        answer[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        answer.extend([6_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat());
        answer.extend(*b"x\0\0\0");
        answer.extend([8_u16.to_ne_bytes(), GENERATION_ID.to_ne_bytes()].concat());
        answer.extend(77_u32.to_be_bytes());
        assert_eq!(parse(&answer), Some(KernelGeneration(77)));
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn one_change_is_told_from_more() {
        assert!(KernelGeneration(8).follows(KernelGeneration(7)));
        assert!(KernelGeneration(1).follows(KernelGeneration(u32::MAX)));
        assert!(!KernelGeneration(9).follows(KernelGeneration(7)));
        assert!(!KernelGeneration(7).follows(KernelGeneration(7)));
    }

    #[test]
    fn buckets_do_not_count_and_everything_else_does() {
        let listing = |bucket: &str, element: &str| {
            format!(
                "table inet portcullis {{\n\tmap policies {{\n\t\telements = {{ {element} }}\n\t}}\n\
                 \tset connections {{\n\t\tsize 65535\n{bucket}\t}}\n\tchain a {{\n\t}}\n}}\n"
            )
        };
        let bucket = "\t\telements = { 10.0.0.1 . 10.0.0.2 . 80 limit rate over 1/second,\n\t\t\t     10.0.0.3 . 1 }\n";
        let plain = fingerprint(&listing("", "10.0.0.1 : jump p"));
        assert_eq!(fingerprint(&listing(bucket, "10.0.0.1 : jump p")), plain);
        assert_ne!(fingerprint(&listing("", "10.0.0.2 : jump p")), plain);
    }
}
