//! The options of a systemd unit that restrict system calls, as seccomp filters.
//!
//! A test machine need not have systemd as its first process; the filters are those that systemd
//! 252 makes of these options. The options that restrict users, capabilities and files are up to
//! the test, which sets them with setpriv and unshare.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// `systemd-analyze syscall-filter @system-service`, with the sets in it expanded.
const SYSTEM_SERVICE: &str = include_str!("../tests/fixtures/system-service.txt");

/// Options of `docs/security.md` that are no filter.
const OTHERS: [&str; 10] = [
    "ExecStart",
    "Restart",
    "CapabilityBoundingSet",
    "NoNewPrivileges",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "ReadWritePaths",
    "UMask",
    "User",
];

/// `EPERM`, `ENOSYS` and `EAFNOSUPPORT`.
const NOT_PERMITTED: u32 = 1;
const NO_SUCH_CALL: u32 = 38;
const NO_SUCH_FAMILY: u32 = 97;
/// `CLONE_NEW*`: namespaces of time, mounts, cgroups, names, IPC, users, processes and networks.
const NAMESPACES: [u64; 8] =
    [0x80, 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// The filters of the section `[Service]` of a unit.
///
/// # Panics
/// When an option is not known here.
pub fn filters(unit: &str) -> Vec<BpfProgram> {
    let (_, section) = unit.split_once("[Service]").expect("a section [Service]");
    let options = section.lines().filter_map(|line| line.trim().split_once('='));
    options.filter_map(|(option, value)| filter(option, value)).collect()
}

fn filter(option: &str, value: &str) -> Option<BpfProgram> {
    let value = value.trim();
    Some(match option {
        "SystemCallFilter" => {
            assert_eq!(value, "@system-service");
            only(SYSTEM_SERVICE.lines())
        }
        "RestrictAddressFamilies" => {
            let others = value.split_whitespace().map(|name| {
                let family = match name {
                    "AF_UNIX" => 1,
                    "AF_INET" => 2,
                    "AF_INET6" => 10,
                    "AF_NETLINK" => 16,
                    other => panic!("the family {other} is not known here"),
                };
                condition(0, &json!("ne"), family)
            });
            refuse(NO_SUCH_FAMILY, &[call("socket", &others.collect::<Vec<_>>())])
        }
        "RestrictNamespaces" => {
            let with = |name: &str, at: u8| {
                let call = |flag| call(name, &[condition(at, &json!({ "masked_eq": flag }), flag)]);
                NAMESPACES.map(call)
            };
            let mut calls = [with("clone", 0), with("unshare", 0), with("setns", 1)].concat();
            calls.push(call("setns", &[condition(1, &json!("eq"), 0)]));
            refuse(NOT_PERMITTED, &calls)
        }
        "MemoryDenyWriteExecute" => {
            let both = condition(2, &json!({ "masked_eq": 6 }), 6);
            let run = [condition(2, &json!({ "masked_eq": 4 }), 4)];
            let calls =
                [call("mmap", &[both]), call("mprotect", &run), call("pkey_mprotect", &run)];
            refuse(NOT_PERMITTED, &calls)
        }
        "LockPersonality" => {
            refuse(NOT_PERMITTED, &[call("personality", &[condition(0, &json!("ne"), 0)])])
        }
        // Every filter ends a process with a call of another architecture. The flags of clone3
        // are in memory, where a filter cannot read them.
        "SystemCallArchitectures" => refuse(NO_SUCH_CALL, &[call("clone3", &[])]),
        other if OTHERS.contains(&other) => return None,
        other => panic!("the option {other} is not known here"),
    })
}

fn condition(index: u8, op: &Value, val: u64) -> Value {
    json!({ "index": index, "type": "dword", "op": op, "val": val })
}

fn call(name: &str, conditions: &[Value]) -> Value {
    match conditions.is_empty() {
        true => json!({ "syscall": name }),
        false => json!({ "syscall": name, "args": conditions }),
    }
}

/// Any other call ends the process.
fn only<'a>(names: impl Iterator<Item = &'a str>) -> BpfProgram {
    let compiles =
        |name: &&str| compile("kill_process", &json!("allow"), &[call(name, &[])]).is_some();
    // The list has names of all architectures.
    let calls: Vec<Value> = names.filter(compiles).map(|name| call(name, &[])).collect();
    assert!(calls.len() > 200, "only {} calls are known", calls.len());
    compile("kill_process", &json!("allow"), &calls).expect("each call compiles")
}

fn refuse(error: u32, calls: &[Value]) -> BpfProgram {
    compile("allow", &json!({ "errno": error }), calls).expect("the calls are known")
}

fn compile(others: &str, action: &Value, calls: &[Value]) -> Option<BpfProgram> {
    let filter = json!({ "mismatch_action": others, "match_action": action, "filter": calls });
    let text = json!({ "main": filter }).to_string();
    let machine = TargetArch::try_from(std::env::consts::ARCH).expect("seccompiler knows it");
    compile_from_json(text.as_bytes(), machine).ok()?.remove("main")
}
