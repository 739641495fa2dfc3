//! A wire between two processes that can be cut.
//!
//! While it is cut nothing passes, and nothing breaks: what was sent arrives
//! when the wire is mended, however late that is. This is the worst that a
//! network does to somebody who counts on time.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

/// It passes everything on until it is cut.
#[derive(Debug)]
pub struct Wire {
    /// Where to connect to instead.
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
    /// Nobody needs the wire any more.
    over: bool,
    /// Pieces that wait on their way to the far end.
    waiting: usize,
    /// After how many more bytes to the far end it shuts.
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

    /// Waits until a piece of so many bytes may pass.
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
    /// A wire to `target`.
    ///
    /// # Panics
    /// There is no free port.
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
                // As if nobody listened, while nobody does.
                let Ok(far) = TcpStream::connect(&target) else { continue };
                pass_on(&near, &far, &passing, Way::ToFar);
                pass_on(&far, &near, &passing, Way::ToNear);
            }
        });
        Self { address, gate, listener: Some(listener) }
    }

    /// Nothing passes from now on.
    pub fn cut(&self) {
        self.gate.set(|state| state.shut = true);
    }

    /// Nothing passes once so many bytes more have gone to the far end, nor the
    /// piece that would exceed them.
    pub fn cut_after(&self, bytes: usize) {
        self.gate.set(|state| state.left = Some(bytes));
    }

    /// Everything passes again, also what waited.
    pub fn mend(&self) {
        self.gate.set(|state| state.shut = false);
    }

    /// Whether something that was sent waits for the wire to be mended.
    pub fn holds_back(&self) -> bool {
        let State { shut, waiting, .. } = *self.gate.state();
        shut && waiting > 0
    }
}

/// The threads of open connections end with the processes at the ends.
impl Drop for Wire {
    fn drop(&mut self) {
        self.gate.set(|state| *state = State { shut: false, over: true, left: None, ..*state });
        // Wakes the listener, so that it sees that it is over.
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
        // The other direction ends with it.
        for end in [&from, &to] {
            drop(end.shutdown(Shutdown::Both));
        }
    });
}
