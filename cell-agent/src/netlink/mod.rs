//! Netlink sockets, for nf_tables, NFLOG and routes.

pub(crate) mod message;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Opens a socket in the network namespace of this thread.
pub(crate) fn open(protocol: SockProtocol, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | flags;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?)
}

/// Sends messages to the kernel.
pub(crate) fn send(socket: &OwnedFd, messages: &[u8]) -> io::Result<()> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), messages, &kernel, MsgFlags::empty())?;
    Ok(())
}

/// Receives a datagram.
pub(crate) fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let received = recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?;
    Ok(buffer.get(..received).unwrap_or_default())
}
