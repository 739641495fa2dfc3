//! nf_tables without a process.
//!
//! nft compiles rules, and for that reads what there is; that and its start take
//! longer than most changes. But what changes most often needs no compiler: where
//! a chain jumps to, and which address jumps where. That, and the number with
//! which the kernel counts changes, goes through a socket here.
//!
//! What always holds: a transaction is in force, or nothing of it is, unless its
//! failure leaves that open ([`Netlink::commit`]); and it is only taken by a
//! kernel that nobody changed since the generation that it was made for.

mod message;
pub mod route;

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg,
            setsockopt, socket,
            sockopt::{ReceiveTimeout, SndBufForce},
        },
        time::TimeVal,
    },
};

pub use message::NftOp;

use crate::drift::KernelGeneration;

/// More than a batch of all containers of a cell.
const SEND: usize = 2 << 20;
/// More than the kernel writes into one datagram.
const RECEIVE: usize = 64 << 10;

/// A socket to the packet filter of this network namespace.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// A socket in the network namespace of this thread.
    ///
    /// # Errors
    /// There is none.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(2, 0))?;
        // Without the right to it, large batches go by way of nft.
        let _may_be_small = setsockopt(&socket, SndBufForce, &SEND);
        Ok(Self(socket))
    }

    /// The kernel's number of this moment.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn generation(&self) -> io::Result<KernelGeneration> {
        self.send(&message::ask_generation())?;
        let mut answer = [0; 1024];
        let received = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..received).unwrap_or_default();
        let told = message::generation(answer);
        told.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no generation told"))
    }

    /// How many packets each named counter of our table has counted; none without the table.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn counters(&self) -> io::Result<BTreeMap<String, u64>> {
        self.send(&message::ask_counters())?;
        let mut counted = BTreeMap::new();
        let mut datagram = vec![0; RECEIVE];
        loop {
            let received = recv(self.0.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            let datagram = datagram.get(..received).unwrap_or_default();
            match message::counters(datagram, &mut counted) {
                ControlFlow::Break(ended) => return ended.map(|()| counted),
                ControlFlow::Continue(()) => {}
            }
        }
    }

    /// Puts orders in force in one transaction, if nobody changed anything since
    /// `generation`. Blocks while others do.
    ///
    /// # Errors
    /// The kernel refuses, or does not say that it agrees; the number tells whether
    /// it did all the same. The socket is not to be used any more.
    pub fn commit(&self, orders: &[NftOp], generation: KernelGeneration) -> io::Result<()> {
        self.send(&message::batch(orders, generation))?;
        let mut answer = message::Answer::default();
        let mut datagram = vec![0; RECEIVE];
        // The kernel has worked and answered before sending ends.
        loop {
            match recv(self.0.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => answer.read(datagram.get(..received).unwrap_or_default()),
                Err(Errno::EAGAIN) => return answer.outcome(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        let parts = [IoSlice::new(message)];
        sendmsg(self.0.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&kernel))?;
        Ok(())
    }
}

/// A socket that is opened when it is needed, and again after a failure.
#[derive(Debug, Default)]
pub struct NetlinkConnection(Option<Netlink>);

impl NetlinkConnection {
    /// The kernel's number of this moment, if it tells.
    pub fn generation(&mut self) -> Option<KernelGeneration> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok).ok()?;
        let generation = netlink.generation().ok()?;
        self.0 = Some(netlink);
        Some(generation)
    }

    /// [`Netlink::counters`]; `None` if the kernel does not tell.
    pub fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok).ok()?;
        let counters = netlink.counters().ok()?;
        self.0 = Some(netlink);
        Some(counters)
    }

    /// [`Netlink::commit`], away from the threads that must not block.
    ///
    /// # Errors
    /// As there.
    pub async fn commit(
        &mut self,
        orders: Vec<NftOp>,
        generation: KernelGeneration,
    ) -> io::Result<()> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok)?;
        let commit = move || netlink.commit(&orders, generation).map(|()| netlink);
        let committed = tokio::task::spawn_blocking(commit).await;
        self.0 = Some(committed.expect("talking to the kernel does not panic")?);
        Ok(())
    }
}
