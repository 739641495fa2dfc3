//! Runs without root: the launcher restarts itself in a user namespace where it is root
//! over its own network and mount namespace.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use cni::tools;
use nix::mount::{MsFlags, mount};

/// Set in the restarted process.
const MARK: &str = "PORTCULLIS_DEV_INSIDE";

/// How the launcher creates network namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Footing {
    /// As root, on this machine itself.
    Root,
    /// Without root, inside namespaces of its own.
    Inside,
}

impl Footing {
    /// The shell prefix that runs a command in the cluster's namespaces.
    pub(crate) fn shell_prefix(self) -> Option<String> {
        match self {
            Self::Root => None,
            Self::Inside => Some(format!(
                "nsenter --target {} --user --net --mount --preserve-credentials",
                std::process::id()
            )),
        }
    }
}

/// Finds the footing; if namespaces are needed, restarts this program in them and does
/// not return.
pub(crate) fn find_footing() -> anyhow::Result<Footing> {
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

/// Replaces this process; returns only on failure.
fn start_again() -> anyhow::Result<io::Error> {
    // Checked first: where user namespaces are forbidden, `unshare` would report only
    // that, without the alternative.
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

/// Sets the loopback interface up, and mounts the directory in which `ip netns` keeps
/// names.
fn prepare_inside() -> anyhow::Result<()> {
    tools::run("ip", ["link", "set", "lo", "up"])?;
    let nothing: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing)
        .context("cannot mount a tmpfs on /run")?;
    Ok(())
}
