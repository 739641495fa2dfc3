//! Connects to one of several addresses.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::lookup_host,
    time::{Instant, sleep, timeout},
};

use crate::{Stream, memory, order::order};

/// Delay before the next address is tried (RFC 8305, section 5).
pub const STAGGER: Duration = Duration::from_millis(250);
/// Timeout of the handshake above TCP while there are other addresses. Longer than [`STAGGER`]: a
/// server that is slow under the load of many new connections must not get each of them twice.
pub const HANDSHAKE: Duration = Duration::from_secs(2);

/// A non-empty list of addresses, in the order of attempts.
#[derive(Debug, Clone)]
pub struct Addresses(Vec<SocketAddr>);

impl Addresses {
    /// Resolves a name; an IP address is returned as it is.
    ///
    /// # Errors
    /// When the name cannot be resolved.
    pub async fn of(host: &str, port: u16) -> io::Result<Self> {
        let resolved: Vec<_> = lookup_host((host, port)).await?.collect();
        if resolved.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(Self(order(&resolved, memory::has_failed)))
    }

    /// Appends the addresses of another name; failed addresses come last.
    #[must_use]
    pub fn then(mut self, others: Self) -> Self {
        let new = others.0.into_iter().filter(|other| !self.0.contains(other));
        let new: Vec<_> = new.collect();
        self.0.extend(new);
        self.0.sort_by_key(memory::has_failed);
        self
    }

    /// The addresses, in the order of attempts.
    pub fn as_slice(&self) -> &[SocketAddr] {
        &self.0
    }

    /// Moves the address that accepts a TCP connection first to the front, for a client that
    /// connects by itself and tries the addresses in order. A single address is not probed.
    pub async fn probed(mut self) -> Self {
        if self.0.len() > 1
            && let Ok((first, _closed)) = self.race(Stream::connect).await
        {
            self.0.sort_by_key(|address| *address != first);
        }
        self
    }

    /// The remaining addresses, if any.
    fn without(&self, address: SocketAddr) -> Option<Self> {
        let others: Vec<_> = self.0.iter().copied().filter(|other| *other != address).collect();
        (!others.is_empty()).then_some(Self(others))
    }

    /// Starts staggered attempts to the addresses, and returns the result of the first that
    /// succeeds; the others are cancelled.
    ///
    /// # Errors
    /// All attempts failed; the error is that of the first one that failed.
    pub async fn race<T, E, F>(
        &self,
        attempt: impl Fn(SocketAddr) -> F,
    ) -> Result<(SocketAddr, T), E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let begin = |address: SocketAddr| {
            let attempted = attempt(address);
            async move { (address, attempted.await) }
        };
        let mut waiting = self.0.iter().copied();
        let mut next = waiting.next();
        let mut running = FuturesUnordered::new();
        // Start time of each attempt that has not failed.
        let mut begun: Vec<(SocketAddr, Option<Instant>)> = Vec::new();
        let mut first_error = None;
        loop {
            if let Some(address) = next.take() {
                begun.push((address, Some(Instant::now())));
                running.push(begin(address));
            }
            tokio::select! {
                Some((address, attempted)) = running.next() => match attempted {
                    Ok(value) => {
                        note(address, &begun);
                        return Ok((address, value));
                    }
                    Err(error) => {
                        let failed = begun.iter_mut().filter(|(begun, _)| *begun == address);
                        failed.for_each(|(_, since)| *since = None);
                        let error = first_error.take().unwrap_or(error);
                        next = waiting.next();
                        if next.is_none() && running.is_empty() {
                            return Err(error);
                        }
                        first_error = Some(error);
                    }
                },
                () = sleep(STAGGER), if waiting.len() > 0 => next = waiting.next(),
            }
        }
    }
}

/// Records the addresses that failed or were slow while `winner` succeeded.
fn note(winner: SocketAddr, begun: &[(SocketAddr, Option<Instant>)]) {
    memory::forget(&winner);
    let lost = begun.iter().filter(|(address, since)| {
        *address != winner && since.is_none_or(|since| since.elapsed() >= STAGGER)
    });
    lost.for_each(|(address, _)| memory::note(*address));
}

/// Connects to one of the addresses and runs a handshake there, such as TLS. When a handshake
/// fails, or takes longer than [`HANDSHAKE`] while there are other addresses, the next address is
/// tried.
///
/// # Errors
/// No address could be used; the error is that of the first failed handshake, or else of the first
/// failed connection.
pub async fn open<T, E, F>(
    addresses: &Addresses,
    handshake: impl Fn(SocketAddr, Stream) -> F,
) -> Result<T, E>
where
    E: From<io::Error>,
    F: Future<Output = Result<T, E>>,
{
    let mut left = addresses.clone();
    let mut first_error = None;
    loop {
        let (address, stream) = match left.race(Stream::connect).await {
            Ok(connected) => connected,
            Err(error) => return Err(first_error.unwrap_or_else(|| E::from(error))),
        };
        let shaken = handshake(address, stream);
        let Some(others) = left.without(address) else {
            return shaken.await.map_err(|error| first_error.unwrap_or(error));
        };
        let shaken = timeout(HANDSHAKE, shaken).await;
        let error = match shaken {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_elapsed) => {
                let text = format!("no handshake with {address} within {HANDSHAKE:?}");
                E::from(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        };
        memory::note(address);
        first_error.get_or_insert(error);
        left = others;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use super::*;

    fn addresses(last: impl IntoIterator<Item = u8>) -> Addresses {
        Addresses(last.into_iter().map(address).collect())
    }

    /// An address from a documentation network; each test has its own.
    fn address(last: u8) -> SocketAddr {
        ([198, 51, 100, last], 1).into()
    }

    /// Start time of each attempt, in milliseconds.
    struct Log(Instant, RefCell<Vec<(SocketAddr, u128)>>);

    impl Log {
        fn new() -> Self {
            Self(Instant::now(), RefCell::default())
        }

        fn begin(&self, address: SocketAddr) {
            self.1.borrow_mut().push((address, self.0.elapsed().as_millis()));
        }

        fn begun(self) -> Vec<(SocketAddr, u128)> {
            self.1.into_inner()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_addresses_cost_a_stagger_each_and_are_remembered() {
        let (silent, log) = ([1, 2].map(address), Log::new());
        let all = addresses([1, 2, 3, 4]);
        let raced = all.race(async |address| {
            log.begin(address);
            if silent.contains(&address) { pending().await } else { Ok::<_, ()>(address) }
        });
        assert_eq!(raced.await, Ok((address(3), address(3))));
        let times = [(address(1), 0), (address(2), 250), (address(3), 500)];
        assert_eq!(log.begun(), times);
        let failed = [1, 2, 3, 4].map(|last| memory::has_failed(&address(last)));
        assert_eq!(failed, [true, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_begins_the_next_attempt_at_once() {
        let log = Log::new();
        let all = addresses([11, 12]);
        let raced = all.race(async |asked| {
            log.begin(asked);
            if asked == address(11) { Err("refused") } else { Ok(()) }
        });
        assert_eq!(raced.await, Ok((address(12), ())));
        assert_eq!(log.begun(), [(address(11), 0), (address(12), 0)]);
        assert!(memory::has_failed(&address(11)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_wins_when_no_other_works_and_the_first_error_is_returned() {
        let all = addresses([21, 22]);
        let raced = all.race(async |asked| {
            if asked == address(21) {
                sleep(Duration::from_secs(3)).await;
                return Ok(());
            }
            Err("refused")
        });
        assert_eq!(raced.await, Ok((address(21), ())));
        let raced = all.race(async |asked| Err::<(), _>(asked));
        assert_eq!(raced.await, Err(address(21)));
    }

    #[tokio::test]
    async fn a_server_that_is_silent_above_tcp_is_left_for_another() {
        // A port that is bound but not listening refuses connections.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refusing = closed.local_addr().unwrap();
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = good.local_addr().map(|address| (good, address)).unwrap();
        let silent = silent.local_addr().map(|address| (silent, address)).unwrap();
        let all = Addresses(vec![refusing, silent.1, good.1]);
        let opened =
            open(
                &all,
                async |address, _stream| {
                    if address == silent.1 { pending().await } else { io::Result::Ok(address) }
                },
            );
        assert_eq!(opened.await.unwrap(), good.1);
        assert!(memory::has_failed(&silent.1) && !memory::has_failed(&good.1));
    }
}
