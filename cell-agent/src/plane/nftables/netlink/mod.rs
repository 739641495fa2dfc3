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

mod counts;
mod generation;
mod message;

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            MsgFlags, SockFlag, SockProtocol, recv, setsockopt,
            sockopt::{ReceiveTimeout, SndBufForce},
        },
        time::TimeVal,
    },
};

pub use counts::Counters;
pub use generation::KernelGeneration;
pub use message::NftOp;

use crate::netlink::{open, receive, send};

/// Larger than a batch of all containers of a cell.
const SEND: usize = 2 << 20;
/// Larger than the kernel's datagrams.
const RECEIVE: usize = 64 << 10;
/// Number of reads of a chain whose table others change meanwhile.
const TRIES: u32 = 20;

/// A netfilter socket of this network namespace.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> io::Result<Self> {
        let socket = open(SockProtocol::NetlinkNetFilter, SockFlag::empty())?;
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
        send(&self.0, &message::ask_generation())?;
        let mut answer = [0; 1024];
        let number = message::generation(receive(&self.0, &mut answer)?);
        number
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the response has no generation"))
    }

    /// Packet counts of the named counters of our table; empty without the table.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub fn counters(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut counted = BTreeMap::new();
        self.dump(&counts::ask_counters(), |datagram| counts::counters(datagram, &mut counted))?;
        Ok(counted)
    }

    /// The counters of the rules of a chain of our table, in order; empty without the chain.
    ///
    /// # Errors
    /// The kernel does not respond, or the chain changed meanwhile. The socket must not be
    /// used any more.
    pub fn counters_of(&self, chain: &str) -> io::Result<Vec<Counters>> {
        let mut found = Vec::new();
        self.dump(&counts::ask_rules(chain), |datagram| counts::rules(datagram, &mut found))?;
        let counters = found.into_iter().map(|rule| match (rule.packets, rule.set) {
            (Some(packets), _) => Ok(Counters::Rule(packets)),
            (None, None) => Ok(Counters::None),
            (None, Some(set)) => {
                let mut elements = BTreeMap::new();
                let ask = counts::ask_elements(&set);
                self.dump(&ask, |datagram| counts::elements(datagram, &mut elements))?;
                Ok(Counters::Elements(elements))
            }
        });
        counters.collect()
    }

    /// Sends a request, and passes the datagrams of its response on.
    fn dump(
        &self,
        request: &[u8],
        mut read: impl FnMut(&[u8]) -> ControlFlow<io::Result<()>>,
    ) -> io::Result<()> {
        send(&self.0, request)?;
        let mut datagram = vec![0; RECEIVE];
        loop {
            if let ControlFlow::Break(end) = read(receive(&self.0, &mut datagram)?) {
                return end;
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
        send(&self.0, &message::batch(orders, generation))?;
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
}

/// A socket that is opened on first use, and again after a failure.
#[derive(Debug, Default)]
pub struct NetlinkConnection(Option<Netlink>);

impl NetlinkConnection {
    /// Current nf_tables generation, if available.
    pub fn generation(&mut self) -> Option<KernelGeneration> {
        self.ask(Netlink::generation)
    }

    /// [`Netlink::counters`]; `None` on failure.
    pub fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        self.ask(Netlink::counters)
    }

    fn ask<T>(&mut self, question: impl FnOnce(&Netlink) -> io::Result<T>) -> Option<T> {
        let netlink = self.0.take().map_or_else(Netlink::open, Ok).ok()?;
        let answer = question(&netlink).ok()?;
        self.0 = Some(netlink);
        Some(answer)
    }

    /// [`Netlink::counters_of`] for several chains, on a blocking thread.
    ///
    /// # Errors
    /// The counters of a chain cannot be read.
    pub async fn counters_of(
        &mut self,
        chains: Vec<String>,
    ) -> io::Result<Vec<(String, Vec<Counters>)>> {
        let mut netlink = self.0.take();
        let read = move || {
            let mut all = Vec::with_capacity(chains.len());
            for chain in chains {
                let mut tries = TRIES;
                let counters = loop {
                    let socket = netlink.take().map_or_else(Netlink::open, Ok)?;
                    match socket.counters_of(&chain) {
                        Ok(counters) => {
                            netlink = Some(socket);
                            break counters;
                        }
                        // Another process changed a table meanwhile.
                        Err(error) if error.kind() == ErrorKind::Interrupted && tries > 1 => {
                            tries -= 1;
                        }
                        Err(error) => return Err(error),
                    }
                };
                all.push((chain, counters));
            }
            Ok((all, netlink))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (all, netlink) = read.expect("reading counters does not panic")?;
        self.0 = netlink;
        Ok(all)
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

#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod fuzz_tests;
