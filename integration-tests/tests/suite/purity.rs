//! The modules that `docs/architecture.md` lists as pure do no input or output and read
//! no clock: neither with an import nor with a full path.
//!
//! Only the module's own code is checked, not the modules that it imports.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    citations::{files, root},
    cycles::{code, expand},
};

/// Paths that a pure module does not name: drivers, and parts of the standard library
/// that reach outside the process.
const IMPURE: [&str; 21] = [
    "axum",
    "hyper",
    "nix",
    "rand",
    "reqwest",
    "rusqlite",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "storage::server",
    "storage::sqlite",
    "tokio",
    "tokio_postgres",
    "tokio_stream",
    "tokio_util",
    "tonic",
];

/// Calls that read the current time.
const CLOCKS: [&str; 2] = ["::now(", ".elapsed("];

/// What makes this code impure.
fn violations(code: &str) -> Vec<String> {
    let is_boundary =
        |text: &str| !text.ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
    let mut named = Vec::new();
    for (at, _) in code.match_indices("use ").filter(|(at, _)| is_boundary(&code[..*at])) {
        let tree = &code[at + "use ".len()..];
        expand(&tree[..tree.find(';').unwrap_or(tree.len())], "", &mut named);
    }
    let of_path = |c: char| c.is_alphanumeric() || "_:".contains(c);
    let inline = IMPURE.iter().flat_map(|path| code.match_indices(path));
    let inline = inline.filter(|(at, _)| is_boundary(&code[..*at]));
    named.extend(inline.map(|(at, _)| code[at..].chars().take_while(|c| of_path(*c)).collect()));
    let is_impure = |path: &String| {
        IMPURE.iter().any(|impure| {
            let rest = path.trim_start_matches("::").strip_prefix(impure);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    let mut found: Vec<String> = named.into_iter().filter(is_impure).collect();
    found.extend(CLOCKS.iter().filter(|call| code.contains(**call)).map(|&call| call.to_owned()));
    found.sort();
    found.dedup();
    found
}

/// The table of pure modules: each crate with its modules. `x` is the file of a module,
/// `x::*` all files below it, and `*` the whole crate.
fn listed() -> BTreeMap<String, Vec<String>> {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page exists");
    let (_, section) = page.split_once("\n## Pure modules\n").expect("the page has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let quoted = |line: &str| -> Vec<String> {
        line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.map(quoted).map(|mut names| (names.remove(0), names)).collect()
}

/// The files of a listed module.
fn sources(krate: &str, module: &str) -> Vec<PathBuf> {
    let sources = root().join(krate).join("src");
    let path =
        |module: &str| module.split("::").fold(sources.clone(), |path, name| path.join(name));
    let mut found = Vec::new();
    if let Some(parent) = module.strip_suffix('*') {
        files(&path(parent.trim_end_matches("::")), &["rs"], &mut found);
        let is_test = |path: &Path| path.to_string_lossy().ends_with("tests.rs");
        found.retain(|path| !is_test(path));
    } else {
        found.extend([path(module).with_extension("rs"), path(module).join("mod.rs")]);
        found.retain(|path| path.is_file());
    }
    assert!(!found.is_empty(), "{krate}: docs/architecture.md lists {module}, which has no file");
    found
}

#[test]
fn pure_modules_reach_no_kernel_network_disk_or_clock() {
    let listed = listed();
    for krate in ["model", "lock-server", "syncer", "policy-store", "cell-agent"] {
        assert!(listed.contains_key(krate), "{krate} has no row in {listed:?}");
    }
    let mut problems = Vec::new();
    for (krate, modules) in &listed {
        for path in modules.iter().flat_map(|module| sources(krate, module)) {
            let text = fs::read_to_string(&path).expect("sources are readable");
            let found = violations(&code(&text));
            problems.extend(found.iter().map(|what| format!("{}: {what}", path.display())));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn an_impure_line_is_found() {
    let pure = "use std::{collections::BTreeMap, net::IpAddr, time::{Duration, Instant}};\n\
         // std::fs::read\nfn f(now: Instant) -> u64 { known(\"tokio::spawn\", now) }\n\
         #[cfg(test)]\nmod tests { use tokio::time::Instant; }\n";
    assert_eq!(violations(&code(pure)), Vec::<String>::new());
    for (line, what) in [
        ("use tokio::{sync::watch, time};", "tokio::sync::watch"),
        ("use std::{fmt, fs::{self, File}};", "std::fs::File"),
        ("use std::net::{IpAddr, TcpStream};", "std::net::TcpStream"),
        ("use std::process::Command;", "std::process::Command"),
        ("use rusqlite as sqlite;", "rusqlite"),
        ("use tonic::Status;", "tonic::Status"),
        ("fn f() { std::fs::read(path) }", "std::fs::read"),
        ("fn f() { tokio::spawn(task) }", "tokio::spawn"),
        ("fn f() -> Instant { Instant::now() }", "::now("),
        ("fn f(at: Instant) -> Duration { at.elapsed() }", ".elapsed("),
    ] {
        let planted = pure.replacen("fn f", &format!("{line}\nfn f"), 1);
        assert!(violations(&code(&planted)).iter().any(|found| found == what), "{line}");
    }
}
