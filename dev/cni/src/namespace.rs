//! Network namespaces, each with one resident thread.
//!
//! A socket belongs to the namespace of the thread that creates it, and a process to
//! that of the thread that starts it. So one thread per namespace creates sockets and
//! starts processes on request; they are then used from the ordinary runtime.
//!
//! Invariants:
//! - Only the resident thread ever leaves the launcher's own namespace.
//! - A process that a resident started with a parent death signal gets this signal from
//!   the kernel when the resident ends, hence also when the launcher is killed.
//! - A namespace's name is deleted with its [`Namespace`]; the namespace itself exists
//!   as long as a foreign process is in it.

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::tools;

type Job = Box<dyn FnOnce() + Send>;

/// Queue length of a resident; callers wait for the result anyway.
const WAITING_JOBS: usize = 64;

/// A thread in a network namespace that runs jobs there.
#[derive(Debug)]
pub struct Resident {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Resident {
    /// A resident of the caller's namespace.
    pub fn here() -> anyhow::Result<Self> {
        Self::start("resident", || Ok(()))
    }

    /// A resident of a named namespace.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn of(name: &str) -> anyhow::Result<Self> {
        let path = path_of(name);
        let moved = move || {
            let file = File::open(&path)?;
            setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        };
        Self::start(name, moved)
    }

    /// A resident of a new unnamed namespace, which the kernel deletes after its last
    /// process.
    pub fn apart(name: &str) -> anyhow::Result<Self> {
        Self::start(name, || unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from))
    }

    fn start(
        name: &str,
        settle: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_JOBS);
        let (settled, outcome) = sync_channel(1);
        let live = move || {
            let result = settle();
            let moved_in = result.is_ok();
            if settled.send(result).is_ok() && moved_in {
                serve(&waiting);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(live)?;
        let settled = outcome.recv().with_context(|| format!("the thread for {name} ended"))?;
        settled.with_context(|| format!("cannot enter the network namespace {name}"))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` in the namespace; it must be short.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, outcome) = oneshot::channel();
        let job = Box::new(move || {
            // A cancelled caller no longer waits.
            let _ = answer.send(work());
        });
        let gone = || anyhow!("the thread of a network namespace has ended");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.try_send(job).map_err(|_full_or_closed| gone())?;
        outcome.await.map_err(|_dropped| gone())
    }

    /// Starts a process in the namespace.
    pub async fn spawn(&self, mut command: Command) -> anyhow::Result<Child> {
        let runtime = tokio::runtime::Handle::current();
        let started = self
            .run(move || {
                let _entered = runtime.enter();
                command.spawn()
            })
            .await?;
        Ok(started?)
    }

    /// An IPv4 socket in the namespace, registered with the runtime.
    pub async fn socket(&self, kind: Type, protocol: Protocol) -> anyhow::Result<Socket> {
        let socket = self
            .run(move || {
                let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
                socket.set_nonblocking(true)?;
                io::Result::Ok(socket)
            })
            .await?;
        Ok(socket?)
    }

    /// A TCP listener in the namespace.
    pub async fn listen(&self, address: SocketAddrV4) -> anyhow::Result<tokio::net::TcpListener> {
        let socket = self.socket(Type::STREAM, Protocol::TCP).await?;
        socket.set_reuse_address(true)?;
        let bound = socket.bind(&address.into()).and_then(|()| socket.listen(1024));
        bound.with_context(|| format!("cannot listen on {address}"))?;
        Ok(tokio::net::TcpListener::from_std(socket.into())?)
    }

    /// A bound UDP socket in the namespace.
    pub async fn udp(&self, address: SocketAddrV4) -> anyhow::Result<tokio::net::UdpSocket> {
        let socket = self.socket(Type::DGRAM, Protocol::UDP).await?;
        socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
        Ok(tokio::net::UdpSocket::from_std(socket.into())?)
    }

    /// An unconnected TCP socket.
    pub async fn tcp(&self) -> anyhow::Result<tokio::net::TcpSocket> {
        let socket = self.socket(Type::STREAM, Protocol::TCP).await?;
        Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
    }

    /// Sets a kernel parameter of the namespace, for example `net/ipv4/ip_forward`.
    pub async fn set(&self, parameter: &'static str, value: &'static str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys").join(parameter);
        let written = self.run(move || std::fs::write(path, value)).await?;
        written.with_context(|| format!("cannot set {parameter} to {value}"))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // The thread ends soon: its queue is closed, and jobs are short.
            let _ = thread.join();
        }
    }
}

fn serve(waiting: &Receiver<Job>) {
    while let Ok(job) = waiting.recv() {
        job();
    }
}

/// A named network namespace of the cluster.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    resident: Option<Resident>,
}

impl Namespace {
    /// Creates a namespace. The name must be free.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        tools::run("ip", ["netns", "add", name])?;
        match Resident::of(name) {
            Ok(resident) => Ok(Self { name: name.to_owned(), resident: Some(resident) }),
            Err(error) => {
                // Only the first error is reported.
                let _ = tools::run("ip", ["netns", "del", name]);
                Err(error)
            }
        }
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The thread that lives in it.
    pub fn resident(&self) -> &Resident {
        self.resident
            .as_ref()
            .expect("only deletion takes the resident, and that consumes the value")
    }

    /// The inode: distinguishes this namespace from a later one of the same name.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(path_of(&self.name))?.ino())
    }

    /// Ends the resident and deletes the name.
    pub fn delete(mut self) -> Result<(), tools::Error> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), tools::Error> {
        match self.resident.take() {
            Some(resident) => drop(resident),
            None => return Ok(()),
        }
        tools::run("ip", ["netns", "del", &self.name]).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Callers that need the result use `delete`.
        let _ = self.remove();
    }
}

/// Whether a namespace of that name exists.
pub fn exists(name: &str) -> bool {
    path_of(name).exists()
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
