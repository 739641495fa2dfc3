//! nf_tables over netlink, without an nft process.
//!
//! nft compiles rules, and reads the existing state for that; that and its start take
//! longer than most changes. The most frequent changes need no compiler: a chain's jump
//! target, and an address's jump target. Those, and reads of the nf_tables generation,
//! use a netlink socket here.
//!
//! Invariants: a transaction is applied completely or not at all, unless its error
//! leaves that open ([`Netlink::commit`]); and the kernel accepts the transaction only
//! if nothing changed since the generation that it was built for.

mod generation;
mod message;

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

pub use generation::KernelGeneration;
pub use message::NftOp;
pub(crate) use message::{HEADER, HEADERS, head, value};

/// Larger than a batch of all containers of a cell.
const SEND: usize = 2 << 20;
/// Larger than the kernel's datagrams.
const RECEIVE: usize = 64 << 10;

/// A netfilter socket of this network namespace.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(2, 0))?;
        // Without this privilege, large batches are applied by nft.
        let _may_be_small = setsockopt(&socket, SndBufForce, &SEND);
        Ok(Self(socket))
    }

    /// Current nf_tables generation.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub fn generation(&self) -> io::Result<KernelGeneration> {
        self.send(&message::ask_generation())?;
        let mut answer = [0; 1024];
        let received = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..received).unwrap_or_default();
        let number = message::generation(answer);
        number.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the response has no generation")
        })
    }

    /// Packet counts of the named counters of our table; empty without the table.
    ///
    /// # Errors
    /// The kernel does not respond.
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

    /// Applies operations in one transaction, if nothing changed since `generation`.
    /// Blocks during transactions of other processes.
    ///
    /// # Errors
    /// The kernel refuses, or does not acknowledge; then the generation shows whether
    /// the transaction was applied nevertheless. The socket must not be used any more.
    pub fn commit(&self, orders: &[NftOp], generation: KernelGeneration) -> io::Result<()> {
        self.send(&message::batch(orders, generation))?;
        let mut answer = message::Answer::default();
        let mut datagram = vec![0; RECEIVE];
        // The kernel has processed the batch and responded before the send returns.
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

/// A socket that is opened on first use, and again after a failure.
#[derive(Debug, Default)]
pub struct NetlinkConnection(Option<Netlink>);

impl NetlinkConnection {
    /// Current nf_tables generation, if available.
    pub fn generation(&mut self) -> Option<KernelGeneration> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok).ok()?;
        let generation = netlink.generation().ok()?;
        self.0 = Some(netlink);
        Some(generation)
    }

    /// [`Netlink::counters`]; `None` on failure.
    pub fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok).ok()?;
        let counters = netlink.counters().ok()?;
        self.0 = Some(netlink);
        Some(counters)
    }

    /// [`Netlink::commit`] on a blocking thread.
    ///
    /// # Errors
    /// Same as [`Netlink::commit`].
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
