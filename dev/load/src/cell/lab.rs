//! Network namespaces of the tool: the process itself is in the cell's; the containers
//! and the outside have one each. They have no names, so nothing is left when the tool
//! ends, for whatever reason.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::Context;
use cni::namespace::Resident;
use cni::tools;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::data::{PEER, PORT, address};

/// The cell's interface towards the outside.
pub(super) const UNDERLAY: &str = "outside";
/// The cell's address on that interface.
const GATE: &str = "10.99.0.1";

/// Moves the process into a new, empty network namespace.
pub fn leave() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context(
        "making a network namespace: this needs root, or `unshare --user --map-root-user --net`",
    )?;
    tools::run("ip", ["link", "set", "lo", "up"])?;
    Ok(())
}

/// The containers on one side of the cell, the outside on the other.
#[derive(Debug)]
pub(super) struct Lab {
    inside: Resident,
    outside: Resident,
}

impl Lab {
    /// Links both namespaces to the cell.
    pub(super) async fn raise() -> anyhow::Result<Self> {
        let inside = side("containers").await?;
        let outside = side(UNDERLAY).await?;
        batch(&[
            "address add 10.255.0.1/16 dev containers".to_owned(),
            format!("address add {GATE}/24 dev {UNDERLAY}"),
            format!("route add default via {PEER}"),
        ])?;
        let container = format!("address add {}/16 dev uplink", address(1));
        in_side(&inside, vec![container, "route add default via 10.255.0.1".to_owned()]).await?;
        let home = format!("address add {PEER}/24 dev uplink");
        in_side(&outside, vec![home, format!("route add default via {GATE}")]).await?;
        write("net/ipv4/ip_forward", "1")?;
        Ok(Self { inside, outside })
    }

    /// A UDP socket in the container's namespace, for sending.
    pub(super) async fn udp(&self) -> anyhow::Result<UdpSocket> {
        let bound = self.inside.run(|| UdpSocket::bind((address(1), 0))).await?;
        bound.context("a socket in the container")
    }

    /// Runs a job in the container's namespace.
    pub(super) async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        self.inside.run(work).await
    }

    /// The servers outside.
    pub(super) async fn servers(&self) -> anyhow::Result<(UdpSocket, TcpListener)> {
        let home: (Ipv4Addr, u16) = (PEER, PORT);
        let udp = self.outside.run(move || UdpSocket::bind(home)).await?;
        let tcp = self.outside.run(move || TcpListener::bind(home)).await?;
        Ok((udp.context("the outside's UDP socket")?, tcp.context("the outside's listener")?))
    }
}

/// A namespace that is linked to the cell by a link of this name.
async fn side(link: &'static str) -> anyhow::Result<Resident> {
    let resident = Resident::apart(link)?;
    let thread = resident.run(gettid).await?;
    batch(&[
        format!("link add {link} type veth peer name uplink netns {thread}"),
        format!("link set {link} up"),
    ])?;
    in_side(&resident, vec!["link set lo up".to_owned(), "link set uplink up".to_owned()]).await?;
    Ok(resident)
}

async fn in_side(resident: &Resident, lines: Vec<String>) -> anyhow::Result<()> {
    resident.run(move || batch(&lines)).await?
}

fn batch(lines: &[String]) -> anyhow::Result<()> {
    let lines = lines.join("\n") + "\n";
    tools::run_with_input("ip", ["-batch", "-"], &lines)?;
    Ok(())
}

fn write(parameter: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new("/proc/sys").join(parameter);
    std::fs::write(&path, value).with_context(|| format!("writing {}", path.display()))
}
