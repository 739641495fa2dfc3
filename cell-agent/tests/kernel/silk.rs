//! silk-cni's iptables chains: those that its CNI plugin creates for each container
//! (docs/compatibility/vxlan-policy-agent.md#cni-chains), as far as they affect egress.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Map, Value, json};

use crate::{lab::sh, recorded::chains};

/// The plugin, with one of the two programs that are called iptables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silk {
    /// `legacy` or `nft`.
    pub(crate) backend: &'static str,
}

pub(crate) const BACKENDS: [Silk; 2] = [Silk { backend: "legacy" }, Silk { backend: "nft" }];

impl Silk {
    /// The agent's configuration for this plugin.
    pub(crate) fn config(self, mut overrides: Value) -> Value {
        let lock = std::env::temp_dir().join(format!("iptables-{}.lock", uuid()));
        let ours = json!({
            "data_plane": "iptables",
            "iptables_path": format!("iptables-{}", self.backend),
            "iptables_lock_file": lock,
        });
        overrides.as_object_mut().unwrap().extend(ours.as_object().unwrap().clone());
        overrides
    }

    /// Creates and links the chains of a container.
    pub(crate) fn add(self, handle: &str, ip: &str, config: &Value) {
        let Names { netout, log, limit_log } = names(handle);
        let prefix = |kind: &str| cut(&format!("{kind}{handle}"), 28);
        let (udp, denied) = (
            config["iptables_accepted_udp_logs_per_sec"].as_u64().unwrap_or(100),
            config["iptables_denied_logs_per_sec"].as_u64().unwrap_or(1),
        );
        let reject = format!("-j REJECT --reject-with {}-port-unreachable", icmp(ip));
        let denied = format!("-m limit --limit {denied}/s --limit-burst {denied}");
        let mut text = format!(
            "*filter\n:{netout} - [0:0]\n:{log} - [0:0]\n\
             -A FORWARD -s {ip} -o eth0 -j {netout}\n\
             -A {log} ! -p udp -m conntrack --ctstate INVALID,NEW,UNTRACKED -j LOG --log-prefix \"{ok} \"\n\
             -A {log} -p udp -m limit --limit {udp}/s --limit-burst {udp} -j LOG --log-prefix \"{ok} \"\n\
             -A {log} -j ACCEPT\n",
            ok = prefix("OK_"),
        );
        if config["iptables_asg_logging"] == true {
            text += &format!("-A {netout} {denied} -j LOG --log-prefix \"{} \"\n", prefix("DENY_"));
        }
        text += &format!("-A {netout} {reject}\n");
        let limit = &config["outbound_connections"];
        if limit["limit"] == true && limit["logging"] == true {
            text += &format!(
                ":{limit_log} - [0:0]\n-A {limit_log} {denied} -j LOG --log-prefix \"{} \"\n-A {limit_log} {reject}\n",
                prefix("DENY_ORL_")
            );
        }
        self.restore(family(ip), &format!("{text}COMMIT\n"));
    }

    /// Deletes the chains of an IPv4 container; the log chain stays while a rule jumps
    /// to it.
    pub(crate) fn delete(self, handle: &str, ip: &str) {
        let Names { netout, log, limit_log } = names(handle);
        self.run(&format!("-D FORWARD -s {ip} -o eth0 -j {netout}"));
        self.run(&format!("-F {netout}"));
        self.run(&format!("-X {netout}"));
        for log in [log, limit_log] {
            let iptables = format!("iptables-{} -w", self.backend);
            sh(&format!(
                "{iptables} -F {log} 2>/dev/null; {iptables} -X {log} 2>/dev/null || true"
            ));
        }
    }

    pub(crate) fn run(self, arguments: &str) -> String {
        sh(&format!("iptables-{} -w {arguments}", self.backend))
    }

    /// The filter table, with counters before each rule.
    pub(crate) fn save(self) -> String {
        sh(&format!("iptables-{}-save -c -t filter", self.backend))
    }

    /// The plugin that an agent's configuration implies.
    pub(crate) fn of(config: &Map<String, Value>) -> Option<Self> {
        let programs = config.get("iptables_path")?.as_str()?.rsplit('/').next()?;
        let beside = config.get("data_plane").is_some_and(|plane| plane == "iptables");
        BACKENDS.into_iter().find(|silk| beside && programs.ends_with(silk.backend))
    }

    /// Our chains and their parents, sorted.
    pub(crate) fn ours(self) -> Vec<String> {
        let table = self.save();
        let uncounted = |line: &str| {
            line.strip_prefix('[').and_then(|rest| Some(rest.split_once("] ")?.1.to_owned()))
        };
        let lines = table.lines().map(|line| uncounted(line).unwrap_or_else(|| line.to_owned()));
        chains(lines)
    }

    /// Packet count of the log rules for allowed connections.
    pub(crate) fn logged(self) -> u64 {
        let table = self.save();
        let rules = table.lines().filter(|line| line.contains("--log-prefix \"OK_"));
        let packets = |line: &str| line.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok();
        rules.filter_map(packets).sum()
    }

    fn restore(self, family: &str, text: &str) {
        let mut child = Command::new(format!("{family}-{}-restore", self.backend))
            .args(["--noflush", "-w"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("iptables is installed");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
    }
}

struct Names {
    netout: String,
    log: String,
    limit_log: String,
}

fn names(handle: &str) -> Names {
    let netout = cut(&format!("netout--{handle}"), 28);
    let log = format!("{}--log", cut(&netout, 23));
    let limit_log = format!("{}--rl-log", cut(&netout, 20));
    Names { netout, log, limit_log }
}

fn family(ip: &str) -> &'static str {
    if ip.contains(':') { "ip6tables" } else { "iptables" }
}

fn icmp(ip: &str) -> &'static str {
    if ip.contains(':') { "icmp6" } else { "icmp" }
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

fn uuid() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
