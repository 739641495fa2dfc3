//! Running without root: the launcher starts itself again in a user namespace
//! where it is root over a network and a mount namespace of its own.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

use super::tools;

/// Set for the process that is already inside.
const MARK: &str = "PORTCULLIS_DEV_INSIDE";

/// How the launcher may make network namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// It is root: on this machine itself.
    Root,
    /// It is nobody special: inside namespaces of its own.
    Inside,
}

impl Footing {
    /// What a shell needs in front of a command so that it runs where the
    /// cluster is.
    pub fn shell_prefix(self) -> Option<String> {
        match self {
            Self::Root => None,
            Self::Inside => Some(format!(
                "nsenter --target {} --user --net --mount --preserve-credentials",
                std::process::id()
            )),
        }
    }
}

/// Finds the footing; when that takes namespaces, starts this program again in
/// them and does not return.
pub fn find_footing() -> anyhow::Result<Footing> {
    if std::env::var_os(MARK).is_some() {
        prepare_inside()?;
        return Ok(Footing::Inside);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(Footing::Root);
    }
    let error = start_again()?;
    bail!("cannot run `unshare`: {error}; run this as root")
}

/// Replaces this process; returns only if that failed.
fn start_again() -> anyhow::Result<io::Error> {
    // Asked first: where user namespaces are forbidden, `unshare` alone would
    // say so in the place of this program, without a way out.
    let namespaces = ["--user", "--map-root-user", "--net", "--mount"];
    let allowed = tools::run("unshare", namespaces.into_iter().chain(["true"]));
    allowed.context(
        "the cluster needs root, or a kernel that lets users make user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    )?;
    let own = std::env::current_exe()?;
    let mut command = Command::new(tools::find("unshare")?);
    command.args(namespaces).arg("--").arg(own).args(std::env::args_os().skip(1));
    Ok(command.env(MARK, "1").exec())
}

/// The loopback interface up, and a place where `ip netns` keeps its names.
fn prepare_inside() -> anyhow::Result<()> {
    tools::run("ip", ["link", "set", "lo", "up"])?;
    let nothing: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing)
        .context("cannot mount a tmpfs on /run")?;
    Ok(())
}
