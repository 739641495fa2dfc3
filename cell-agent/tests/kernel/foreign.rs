//! Creates a table that this version of nft does not understand.

use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// User data of a set whose key has a type (`typeof`) with a number that no version
/// knows yet.
const USER_DATA: &[u8] = &[3, 8, 0, 4, 0, 0, 0, 255, 1, 4];

const REQUEST: u16 = 1;
const CONFIRM: u16 = 4;
const CREATE: u16 = 0x400;
const INET: u8 = 1;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_SET: u16 = NFTABLES << 8 | 9;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, (family, resource): (u8, u16), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap();
    let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]];
    [&head.concat(), &[family, 0][..], &resource.to_be_bytes(), body].concat()
}

/// Creates the table `inet theirs` with one set.
pub(crate) fn table_of_a_newer_nft() {
    let number = |n: u32| n.to_be_bytes();
    let table = attribute(1, b"theirs\0");
    let set = [
        table.clone(),
        attribute(2, b"odd\0"),
        attribute(3, &number(0)),
        attribute(4, &number(7)),
        attribute(5, &number(4)),
        attribute(10, &number(1)),
        attribute(13, USER_DATA),
    ];
    transaction(&[
        message(NEW_TABLE, REQUEST | CREATE, (INET, 0), &table),
        message(NEW_SET, REQUEST | CREATE | CONFIRM, (INET, 0), &set.concat()),
    ]);
}

/// Deletes the table.
pub(crate) fn take_away() {
    let table = attribute(1, b"theirs\0");
    transaction(&[message(DELETE_TABLE, REQUEST | CONFIRM, (INET, 0), &table)]);
}

fn transaction(messages: &[Vec<u8>]) {
    let begin = message(16, REQUEST, (0, NFTABLES), &[]);
    let end = message(17, REQUEST, (0, NFTABLES), &[]);
    let batch = [begin, messages.concat(), end].concat();
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .unwrap();
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &batch, &kernel, MsgFlags::empty()).unwrap();
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    assert!(
        length >= 20 && answer[16..20] == [0; 4],
        "the kernel refuses: {:?}",
        &answer[..length]
    );
}
