//! The data planes that a test is played on, and what can be put between the
//! agent and their programs.

use std::{
    fs, future::Future, os::unix::fs::PermissionsExt as _, panic::resume_unwind, path::Path, thread,
};

use serde_json::{Value, json};

use crate::{
    agent::listing,
    lab::{Lab, lab, sh},
    silk::{BACKENDS, Silk},
};

/// Where the agent has its rules.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plane {
    Nftables,
    Iptables(Silk),
}

pub(crate) const PLANES: [Plane; 3] =
    [Plane::Nftables, Plane::Iptables(BACKENDS[0]), Plane::Iptables(BACKENDS[1])];

/// Plays a test on each plane, in namespaces of its own each time.
pub(crate) fn on_every_plane<F: Future<Output = ()>>(
    test: impl Fn(Plane, Lab) -> F + Copy + Send + 'static,
) {
    for plane in PLANES {
        println!("on {plane:?}");
        lab(move |lab| test(plane, lab));
    }
}

/// The same at the same time, for tests that mostly wait.
pub(crate) fn on_all_planes_at_once<F: Future<Output = ()>>(
    test: impl Fn(Plane, Lab) -> F + Copy + Send + 'static,
) {
    let start = |plane| thread::spawn(move || lab(move |lab| test(plane, lab)));
    for thread in PLANES.map(start) {
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    }
}

impl Plane {
    /// What the agent's configuration says of it.
    pub(crate) fn config(self, overrides: Value) -> Value {
        match self {
            Self::Nftables => overrides,
            Self::Iptables(silk) => silk.config(overrides),
        }
    }

    /// What of ours is in the kernel, in a form that does not depend on order.
    pub(crate) fn ours(self) -> Vec<String> {
        match self {
            Self::Nftables => content(&listing()),
            Self::Iptables(silk) => silk.ours(),
        }
    }

    /// Takes away what the agent wrote for the container c1.
    pub(crate) fn wreck(self) {
        match self {
            Self::Nftables => _ = sh("nft delete table inet portcullis"),
            Self::Iptables(silk) => _ = silk.run("-F asg-c1"),
        }
    }

    /// The programs that the agent starts, each with the configuration key that
    /// says where it is.
    fn programs(self) -> (&'static str, Vec<String>) {
        match self {
            Self::Nftables => ("nft_path", vec!["nft".to_owned()]),
            Self::Iptables(Silk { backend }) => {
                let name =
                    |family| ["save", "restore"].map(|what| format!("{family}-{backend}-{what}"));
                ("iptables_path", [name("iptables"), name("ip6tables")].concat())
            }
        }
    }
}

/// What a table holds, in any order; chains of rules get new names when they are
/// written again.
fn content(listing: &str) -> Vec<String> {
    let nameless = |line: &str| {
        let parts = line.split("rules-").enumerate();
        parts.map(|(n, part)| if n == 0 { part } else { &part[16..] }).collect()
    };
    let mut lines: Vec<String> = listing.lines().map(nameless).collect();
    lines.sort();
    lines
}

/// Scripts that the agent takes for the programs of a plane.
pub(crate) struct Programs {
    plane: Plane,
    directory: tempfile::TempDir,
}

impl Programs {
    /// Lines of shell that are run before the program and after it. They have the
    /// script that it is given as `$input`, empty if it only looks, and are in a
    /// directory of their own.
    pub(crate) fn new(plane: Plane, before: &str, after: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let programs = Self { plane, directory };
        let here = programs.directory.path().display().to_string();
        for name in plane.programs().1 {
            // nft is started ahead of a script, which may never come.
            let script = format!(
                "#!/bin/sh\ninput=$(cat)\ncase \"$*\" in *'-f -') [ -n \"$input\" ] || exit 0;; esac\n\
                 cd {here}\n{before}\nprintf '%s\\n' \"$input\" | {name} \"$@\"\nstatus=$?\n\
                 {after}\nexit $status\n"
            );
            let path = programs.directory.path().join(&name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        programs
    }

    /// The agent's configuration with them.
    pub(crate) fn config(&self, overrides: Value) -> Value {
        let mut config = self.plane.config(overrides);
        let (key, names) = self.plane.programs();
        let name = names[0].trim_end_matches("-save");
        config[key] = json!(self.directory.path().join(name));
        config
    }

    /// A file beside them.
    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.directory.path().join(name), content).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    /// How many lines such a file has; none if it is not there.
    pub(crate) fn lines(&self, name: &str) -> usize {
        let path: &Path = self.directory.path();
        fs::read_to_string(path.join(name)).map_or(0, |text| text.lines().count())
    }
}
