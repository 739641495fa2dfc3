//! The forced sync of a container, which decides about its start: the CNI plugin fails the
//! container unless the agent answers 200.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use cluster::control;
use cni::namespace::Resident;
use tokio::time::Instant;

use crate::ledger::At;

const PAUSE: Duration = Duration::from_millis(200);
/// The plugin itself has no timeout.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `Err` is the response of an agent that refuses. An agent that is not there, or stops, is
/// not asked: a cell whose agent is replaced is drained before, and gets no containers.
pub(crate) type Outcome = Result<(), String>;

/// Threads in the cells that force the sync of a container again and again.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    outcomes: Arc<Mutex<Vec<At<Outcome>>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Starts {
    /// Starts the thread of a cell.
    pub(crate) async fn add(&mut self, cell: &Resident, handle: String) -> anyhow::Result<()> {
        let (outcomes, over) = (Arc::clone(&self.outcomes), Arc::clone(&self.over));
        let work = move || {
            while !over.load(Ordering::Relaxed) {
                if let Some(what) = force(&handle) {
                    let at = At { at: Instant::now(), what };
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(at);
                }
                pause();
            }
        };
        // A thread is in the namespace of the thread that starts it.
        self.threads.push(cell.run(move || thread::spawn(work)).await?);
        Ok(())
    }

    /// Ends all threads.
    pub(crate) fn end(self) -> anyhow::Result<Vec<At<Outcome>>> {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("a thread panicked")?;
        }
        Ok(std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What our agent answers while it stops.
const STOPPING: &str = "the agent is shutting down";

/// `None` if no agent answers.
fn force(handle: &str) -> Option<Outcome> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, control::PORT)).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let path = format!("/force-asgs-for-container?container={handle}");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    if answer.is_empty() {
        let is_late = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        return is_late.then(|| Err(format!("no answer within {TIMEOUT:?}")));
    }
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    if status == "200" {
        return Some(Ok(()));
    }
    let reason = answer.lines().last().unwrap_or_default();
    (!reason.ends_with(STOPPING)).then(|| Err(reason.to_owned()))
}

#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
fn pause() {
    thread::sleep(PAUSE);
}
