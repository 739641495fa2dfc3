//! A TCP proxy between two processes that can stop forwarding.
//!
//! While the proxy is stopped, connections stay open and data is queued; the data arrives
//! when the proxy continues, however late: the hardest network fault for a client that
//! depends on time.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

/// Forwards until it is cut.
#[derive(Debug)]
pub struct Wire {
    /// The proxy's own address.
    pub address: String,
    gate: Arc<Gate>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    shut: bool,
    /// The handle was dropped.
    over: bool,
    /// Number of queued chunks to the server.
    waiting: usize,
    /// Number of bytes to the server until the proxy stops.
    left: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToFar,
    ToNear,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until a chunk of this size may be forwarded.
    fn pass(&self, way: Way, bytes: usize) {
        let pieces = usize::from(way == Way::ToFar);
        let mut state = self.state();
        if let (Way::ToFar, Some(left)) = (way, state.left) {
            state.left = left.checked_sub(bytes);
            state.shut |= state.left.is_none();
        }
        state.waiting += pieces;
        while state.shut {
            state = self.changed.wait(state).expect("no panic while the lock is held");
        }
        state.waiting -= pieces;
    }
}

impl Wire {
    /// Starts a proxy to `target`.
    ///
    /// # Panics
    /// No port is free.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let (gate, target) = (Arc::new(Gate::default()), target.to_owned());
        let passing = Arc::clone(&gate);
        let listener = thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if passing.state().over {
                    return;
                }
                // The server does not listen: refuse the connection as well.
                let Ok(far) = TcpStream::connect(&target) else { continue };
                pass_on(&near, &far, &passing, Way::ToFar);
                pass_on(&far, &near, &passing, Way::ToNear);
            }
        });
        Self { address, gate, listener: Some(listener) }
    }

    /// Stops forwarding.
    pub fn cut(&self) {
        self.gate.set(|state| state.shut = true);
    }

    /// Stops forwarding before the chunk that would exceed this number of further bytes to
    /// the server.
    pub fn cut_after(&self, bytes: usize) {
        self.gate.set(|state| state.left = Some(bytes));
    }

    /// Forwards again, including queued data.
    pub fn mend(&self) {
        self.gate.set(|state| state.shut = false);
    }

    /// Whether data to the server is queued.
    pub fn holds_back(&self) -> bool {
        let State { shut, waiting, .. } = *self.gate.state();
        shut && waiting > 0
    }
}

/// The threads of open connections end with their processes.
impl Drop for Wire {
    fn drop(&mut self) {
        self.gate.set(|state| *state = State { shut: false, over: true, left: None, ..*state });
        // Wakes the listener, which then sees the end.
        let woken = TcpStream::connect(&self.address);
        if let (Ok(_), Some(listener)) = (woken, self.listener.take()) {
            listener.join().expect("a listener does not panic");
        }
    }
}

fn pass_on(from: &TcpStream, to: &TcpStream, gate: &Arc<Gate>, way: Way) {
    let mut from = from.try_clone().expect("a socket can be shared");
    let mut to = to.try_clone().expect("a socket can be shared");
    let gate = Arc::clone(gate);
    thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            gate.pass(way, count);
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        // The other direction ends as well.
        for end in [&from, &to] {
            drop(end.shutdown(Shutdown::Both));
        }
    });
}
