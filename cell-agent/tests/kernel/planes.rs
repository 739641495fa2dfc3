//! The data planes that a test runs on, and scripts in place of their programs.

use std::{
    fs, future::Future, os::unix::fs::PermissionsExt as _, panic::resume_unwind, path::Path, thread,
};

use serde_json::{Value, json};

use crate::{
    agent::listing,
    lab::{Lab, lab, sh},
    silk::{BACKENDS, Silk},
};

/// The agent's data plane.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plane {
    Nftables,
    Iptables(Silk),
}

pub(crate) const PLANES: [Plane; 3] =
    [Plane::Nftables, Plane::Iptables(BACKENDS[0]), Plane::Iptables(BACKENDS[1])];

/// Runs a test on each plane, each time in new namespaces.
pub(crate) fn on_every_plane<F: Future<Output = ()>>(
    test: impl Fn(Plane, Lab) -> F + Copy + Send + 'static,
) {
    for plane in PLANES {
        println!("on {plane:?}");
        lab(move |lab| test(plane, lab));
    }
}

/// The same in parallel, for tests that mostly wait.
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
    /// The agent's configuration for this plane.
    pub(crate) fn config(self, overrides: Value) -> Value {
        match self {
            Self::Nftables => overrides,
            Self::Iptables(silk) => silk.config(overrides),
        }
    }

    /// Our rules in the kernel, independent of order.
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

    /// The programs that the agent starts, each with the configuration key of its path.
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

/// The content of a table, independent of order and without the elements of sets, which the
/// kernel adds; rule chains get new names when they are written again.
fn content(listing: &str) -> Vec<String> {
    let (mut in_set, mut in_elements) = (false, false);
    let written = |line: &&str| {
        in_set = if line.starts_with("\t\t") { in_set } else { line.starts_with("\tset ") };
        in_elements = in_set && (in_elements || line.trim().starts_with("elements = "));
        !in_elements
    };
    let nameless = |line: &str| {
        let parts = line.split("rules-").enumerate();
        parts.map(|(n, part)| if n == 0 { part } else { &part[16..] }).collect()
    };
    let mut lines: Vec<String> = listing.lines().filter(written).map(nameless).collect();
    lines.sort();
    lines
}

/// Wrapper scripts for the programs of a plane.
pub(crate) struct Programs {
    plane: Plane,
    directory: tempfile::TempDir,
}

impl Programs {
    /// Shell lines that run before and after the program. `$input` holds the script
    /// that the program receives, empty if it only reads; the working directory is the
    /// scripts' own.
    pub(crate) fn new(plane: Plane, before: &str, after: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let programs = Self { plane, directory };
        let here = programs.directory.path().display().to_string();
        for name in plane.programs().1 {
            // nft is started before its script exists, which may never arrive.
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

    /// The agent's configuration with the wrapper scripts.
    pub(crate) fn config(&self, overrides: Value) -> Value {
        let mut config = self.plane.config(overrides);
        let (key, names) = self.plane.programs();
        let name = names[0].trim_end_matches("-save");
        config[key] = json!(self.directory.path().join(name));
        config
    }

    /// A file in their directory.
    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.directory.path().join(name), content).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    /// Number of lines of such a file; 0 if it is missing.
    pub(crate) fn lines(&self, name: &str) -> usize {
        let path: &Path = self.directory.path();
        fs::read_to_string(path.join(name)).map_or(0, |text| text.lines().count())
    }
}
