//! A netlink socket that receives the packets of an NFLOG group
//! (`linux/netfilter/nfnetlink_log.h`).
//!
//! The kernel collects messages and sends them together: a flood does not wake the agent for
//! each packet.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockFlag, SockProtocol, recv, setsockopt, sockopt::RcvBufForce},
};
use tokio::io::unix::AsyncFd;

use crate::{
    netlink::{
        self,
        message::{CONFIRM, Draft, ERROR, REQUEST, code, head, refusal},
        receive, send,
    },
    plan::COPIED,
};

/// `NFNL_SUBSYS_ULOG` and `NFULNL_MSG_CONFIG`.
const CONFIG: u16 = (4 << 8) | 1;
/// `NFULNL_CFG_CMD_BIND` and `NFULNL_COPY_PACKET`.
const BIND: u8 = 1;
const COPY: u8 = 2;

/// Maximum size of a datagram of messages.
const DATAGRAM: u32 = 32 << 10;
/// The kernel sends after this number of messages, or after this time in 1/100 s.
const MESSAGES: u32 = 100;
const CENTISECONDS: u32 = 20;
/// Size of the socket's buffer, for the pauses between reads.
const BUFFER: usize = 4 << 20;

/// The socket.
#[derive(Debug)]
pub struct Nflog {
    socket: AsyncFd<OwnedFd>,
    datagram: Vec<u8>,
}

impl Nflog {
    /// Binds the group in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel refuses: without support for NFLOG with `EINVAL`, and with `EBUSY` or
    /// `EPERM` while another process has the group.
    pub fn open(group: u16) -> io::Result<Self> {
        let socket = netlink::open(SockProtocol::NetlinkNetFilter, SockFlag::SOCK_NONBLOCK)?;
        // With a small buffer more packets are lost; the losses are counted.
        let _may_be_small = setsockopt(&socket, RcvBufForce, &BUFFER);
        send(&socket, &configuration(group))?;
        // The kernel has responded before the send returns.
        let mut answer = [0; 1024];
        acknowledged(receive(&socket, &mut answer)?)?;
        let datagram = vec![0; 2 * DATAGRAM as usize];
        #[expect(deprecated, reason = "the other constructor is unsafe; an OwnedFd stays open")]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, datagram })
    }

    /// The next datagram. Cancel-safe.
    ///
    /// # Errors
    /// `ENOBUFS`: the kernel dropped messages, since the buffer was full. Other errors are
    /// permanent.
    pub async fn datagram(&mut self) -> io::Result<&[u8]> {
        let Self { socket, datagram } = self;
        loop {
            let mut ready = socket.readable().await?;
            let read = ready.try_io(|socket| {
                Ok(recv(socket.get_ref().as_raw_fd(), datagram, MsgFlags::empty())?)
            });
            if let Ok(length) = read {
                return length.map(|length| datagram.get(..length).unwrap_or_default());
            }
        }
    }
}

impl Nflog {
    /// [`Nflog::datagram`] if one has arrived.
    pub fn arrived(&mut self) -> Option<io::Result<&[u8]>> {
        let read = recv(self.socket.get_ref().as_raw_fd(), &mut self.datagram, MsgFlags::empty());
        match read {
            Err(Errno::EAGAIN) => None,
            Err(error) => Some(Err(error.into())),
            Ok(length) => Some(Ok(self.datagram.get(..length).unwrap_or_default())),
        }
    }
}

/// The message that binds the group and sets the modes of sending.
fn configuration(group: u16) -> Vec<u8> {
    let ([high, low], [a, b, c, d]) = (group.to_be_bytes(), COPIED.to_be_bytes());
    let mut draft = Draft::default();
    draft.request(CONFIG, REQUEST | CONFIRM, &[0, 0, high, low], |draft| {
        draft.value(1, &[BIND]);
        draft.value(2, &[a, b, c, d, COPY, 0]);
        draft.value(3, &DATAGRAM.to_be_bytes());
        draft.value(4, &CENTISECONDS.to_be_bytes());
        draft.value(5, &MESSAGES.to_be_bytes());
    });
    draft.0
}

fn acknowledged(answer: &[u8]) -> io::Result<()> {
    match (head(answer), code(answer)) {
        (Some((_, ERROR)), Some(0)) => Ok(()),
        (Some((_, ERROR)), Some(code)) if code < 0 => Err(refusal(code)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_acknowledgement_an_error_or_torn() {
        let answer = |code: i32| {
            let mut answer = 36_u32.to_ne_bytes().to_vec();
            answer.extend(ERROR.to_ne_bytes());
            answer.extend([0; 10]);
            answer.extend(code.to_ne_bytes());
            answer
        };
        acknowledged(&answer(0)).unwrap();
        assert_eq!(acknowledged(&answer(-16)).unwrap_err().raw_os_error(), Some(16));
        let whole = answer(0);
        for length in 0..whole.len() {
            assert!(acknowledged(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn the_configuration_is_well_formed() {
        let message = configuration(0x0102);
        assert_eq!(head(&message), Some((message.len(), CONFIG)));
        assert_eq!(message[18..20], [1, 2]);
    }
}
