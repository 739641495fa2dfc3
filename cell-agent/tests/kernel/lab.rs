//! A cell between two other namespaces: the containers inside, the world outside. Each
//! is a network namespace that lives as long as a thread. Nothing is left after the
//! test, however it ends, since it creates nothing outside those threads.

use std::{
    fs, future::Future, net::Ipv4Addr, panic::resume_unwind, process::Command, sync::mpsc, thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use tokio::task::LocalSet;

/// A namespace held by a thread that runs jobs in it.
pub(crate) struct Namespace {
    thread_id: i32,
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            enter();
            ready.send(gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        let thread_id = is_ready.recv().expect("the thread of a namespace is up");
        Self { thread_id, jobs }
    }

    /// The thread that holds the namespace; `ip` finds the namespace by this ID.
    pub(crate) fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs a job inside and waits for the result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, answer) = mpsc::channel();
        self.jobs.send(Box::new(move || _ = result.send(job()))).unwrap();
        answer.recv().expect("the job did not panic")
    }

    /// Runs a command line inside.
    pub(crate) fn sh(&self, command: &str) {
        let command = command.to_owned();
        self.run(move || sh(&command));
    }
}

/// Creates a namespace for this thread.
fn enter() {
    unshare(CloneFlags::CLONE_NEWNET)
        .expect("kernel tests make network namespaces: run them as root, or under unshare -rn");
    sh("ip link set lo up");
    write("ipv4/conf/all/rp_filter", "0");
    write("ipv4/conf/default/rp_filter", "0");
    write("ipv6/conf/default/disable_ipv6", "0");
}

fn write(setting: &str, value: &str) {
    let path = format!("/proc/sys/net/{setting}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Runs a command line in this thread's namespace; it must succeed.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh is there");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The three namespaces; this thread is in the cell's.
pub(crate) struct Lab {
    /// The containers' namespace; all containers share one interface.
    pub(crate) inside: Namespace,
    /// The namespace of every other address; no server runs in it.
    pub(crate) outside: Namespace,
}

impl Lab {
    /// Adds an address to the containers' namespace.
    pub(crate) fn container(&self, address: Ipv4Addr) {
        self.inside.sh(&format!("ip address replace {address}/16 dev uplink"));
    }

    /// A container as silk-cni creates it: in a namespace of its own, with an interface
    /// named after its IPv4 address, and an additional IPv6 address.
    pub(crate) fn silk(&self, v4: Ipv4Addr, v6: &str) -> Namespace {
        let container = Namespace::new();
        let [a, b, c, d] = v4.octets();
        let name = format!("s-{a:03}{b:03}{c:03}{d:03}");
        let id = container.thread_id;
        sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {id} && ip link set {name} up"
        ));
        sh(&format!("ip address add 169.254.0.1 peer {v4}/32 dev {name} scope link"));
        sh(&format!(
            "ip -6 address add fe80::1/64 dev {name} nodad && ip -6 route add {v6}/128 dev {name}"
        ));
        container.sh("ip link set eth0 up");
        container.sh(&format!("ip address add {v4} peer 169.254.0.1/32 dev eth0"));
        container.sh("ip route add default via 169.254.0.1 dev eth0");
        container.sh(&format!("ip -6 address add {v6}/128 dev eth0 nodad"));
        container.sh("ip -6 route add default via fe80::1 dev eth0");
        container
    }

    fn new() -> Self {
        let (inside, outside) = (Namespace::new(), Namespace::new());
        for (link, namespace) in [("containers", &inside), ("eth0", &outside)] {
            let id = namespace.thread_id;
            sh(&format!("ip link add {link} type veth peer name uplink netns {id}"));
            sh(&format!("ip link set {link} up"));
            namespace.sh("ip link set uplink up");
        }
        sh("ip address add 10.255.0.1/16 dev containers");
        sh("ip address add 10.99.0.1/24 dev eth0 && ip route add default via 10.99.0.2");
        sh("ip -6 address add fd00:255::1/64 dev containers nodad");
        sh(
            "ip -6 address add fd00:99::1/64 dev eth0 nodad && ip -6 route add default via fd00:99::2",
        );
        inside.sh("ip address add 10.255.0.2/16 dev uplink && ip route add default via 10.255.0.1");
        inside.sh("ip -6 address add fd00:255::2/64 dev uplink nodad && ip -6 route add default via fd00:255::1");
        outside.sh("ip address add 10.99.0.2/24 dev uplink && ip route add default via 10.99.0.1");
        outside.sh("ip -6 address add fd00:99::2/64 dev uplink nodad && ip -6 route add default via fd00:99::1");
        write("ipv4/ip_forward", "1");
        write("ipv6/conf/all/forwarding", "1");
        // The kernel's own rate limit of ICMP errors would hide some of our rejects.
        write("ipv4/icmp_ratelimit", "0");
        write("ipv4/icmp_msgs_per_sec", "1000000");
        write("ipv4/icmp_msgs_burst", "1000000");
        write("ipv6/icmp/ratelimit", "0");
        Self { inside, outside }
    }
}

/// Runs a test on a thread of its own, inside the cell's namespace.
pub(crate) fn lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        enter();
        let lab = Lab::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test(lab));
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}
