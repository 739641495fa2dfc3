//! The iptables chains of a cell, changed in the original's steps
//! (docs/compatibility/vxlan-policy-agent.md#applying): a candidate chain is filled, then
//! takes the place of the chain.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::rules::REJECT;

/// The filter table of this namespace.
#[derive(Debug, Clone)]
pub(super) struct Chains {
    /// The program; its restore is `PROGRAM-restore`.
    pub(super) iptables: String,
    /// Held during each single command.
    pub(super) lock: PathBuf,
}

/// The asg chain of a container.
pub(super) fn asg(handle: &str) -> String {
    let handle = handle.strip_prefix("check-").unwrap_or(handle);
    let letters = handle.chars().filter(|letter| *letter != '-').take(20);
    format!("asg-{}", letters.collect::<String>())
}

/// The chain that the CNI plugin made for a container.
fn netout(handle: &str) -> String {
    format!("netout--{handle}").chars().take(28).collect()
}

impl Chains {
    /// Puts the rules in force for a container.
    pub(super) fn enforce(&self, handle: &str, rules: &[String]) -> anyhow::Result<()> {
        let (asg, netout) = (asg(handle), netout(handle));
        let candidate = format!("c{asg}");
        let (is_linked, is_candidate_linked) =
            (self.is_linked(&netout, &asg), self.is_linked(&netout, &candidate));
        match (is_linked, is_candidate_linked) {
            (true, true) => self.remove(&netout, &candidate)?,
            (false, true) => self.run(&format!("-E {candidate} {asg}"))?,
            (_, false) => {}
        }
        if is_linked || is_candidate_linked {
            self.fill(&netout, &candidate, rules)?;
            self.remove(&netout, &asg)?;
            self.run(&format!("-E {candidate} {asg}"))?;
        } else {
            self.fill(&netout, &asg, rules)?;
        }
        self.clean_parent(&netout)
    }

    /// Links a new chain before all others, and fills it in one commit; meanwhile packets
    /// fall through it.
    fn fill(&self, netout: &str, chain: &str, rules: &[String]) -> anyhow::Result<()> {
        self.run(&format!("-N {chain}"))?;
        let linked = self.restore(&[format!("-I {netout} 1 -j {chain}")]);
        let rules: Vec<String> = rules.iter().map(|rule| format!("-A {chain} {rule}")).collect();
        let filled = linked.and_then(|()| self.restore(&rules));
        if filled.is_err() {
            // The rules in force stay.
            let _gone = self.remove(netout, chain);
        }
        filled.with_context(|| format!("bulk appending to {chain}"))
    }

    /// Unlinks and deletes a chain.
    fn remove(&self, netout: &str, chain: &str) -> anyhow::Result<()> {
        if self.is_linked(netout, chain) {
            self.run(&format!("-D {netout} -j {chain}"))?;
        }
        self.delete(chain)
    }

    fn delete(&self, chain: &str) -> anyhow::Result<()> {
        self.run(&format!("-F {chain}"))?;
        self.run(&format!("-X {chain}"))
    }

    /// Deletes everything after the jump, and appends the reject again.
    fn clean_parent(&self, netout: &str) -> anyhow::Result<()> {
        let listing = self.output(&format!("-S {netout}"))?;
        let rules = listing.lines().filter(|line| line.starts_with("-A ")).count();
        for _rule in 1..rules {
            self.run(&format!("-D {netout} 2"))?;
        }
        if self.run(&format!("-C {netout} {REJECT}")).is_err() {
            self.run(&format!("-A {netout} {REJECT}"))?;
        }
        Ok(())
    }

    /// Empties and deletes every asg chain and candidate that is not wanted.
    pub(super) fn sweep(&self, wanted: &[String]) -> anyhow::Result<()> {
        let listing = self.output("-S")?;
        let chains = listing.lines().filter_map(|line| line.strip_prefix("-N "));
        for chain in chains.filter(|chain| is_asg(chain)) {
            let own = chain.strip_prefix('c').unwrap_or(chain);
            if !wanted.iter().any(|wanted| wanted == own) {
                self.delete(chain).with_context(|| format!("clean-up-asg-chains: {chain}"))?;
            }
        }
        Ok(())
    }

    /// Deletes the chain of a container that is gone.
    pub(super) fn clean_up(&self, handle: &str) -> anyhow::Result<()> {
        let asg = asg(handle);
        if self.output(&format!("-S {asg}")).is_err() {
            return Ok(());
        }
        self.delete(&asg)
    }

    fn is_linked(&self, netout: &str, chain: &str) -> bool {
        self.run(&format!("-C {netout} -j {chain}")).is_ok()
    }

    fn run(&self, arguments: &str) -> anyhow::Result<()> {
        self.output(arguments).map(drop)
    }

    fn output(&self, arguments: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.iptables);
        command.arg("--wait").args(arguments.split_whitespace());
        self.locked(&mut command, "").with_context(|| format!("iptables {arguments}"))
    }

    fn restore(&self, lines: &[String]) -> anyhow::Result<()> {
        let mut command = Command::new(format!("{}-restore", self.iptables));
        command.args(["--noflush", "--wait"]);
        let text = format!("*filter\n{}\nCOMMIT\n", lines.join("\n"));
        self.locked(&mut command, &text).context("iptables-restore").map(drop)
    }

    fn locked(&self, command: &mut Command, input: &str) -> anyhow::Result<String> {
        let lock = File::options().create(true).truncate(false).write(true).open(&self.lock)?;
        lock.lock()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that ends early closes the pipe; its status is the better error.
            let _written = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `^c?asg-[A-Za-z0-9]+`
fn is_asg(chain: &str) -> bool {
    let name = chain.strip_prefix('c').unwrap_or(chain).strip_prefix("asg-");
    name.is_some_and(|name| name.starts_with(|first: char| first.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut() {
        let handle = "00000001-aaaa-bbbb-cccc-0123456789ab";
        assert_eq!(asg(handle), "asg-00000001aaaabbbbcccc");
        assert_eq!(asg("check-00000001-aaaa"), "asg-00000001aaaa");
        assert_eq!(netout(handle), "netout--00000001-aaaa-bbbb-c");
        assert!(is_asg("casg-1") && is_asg("asg-a") && !is_asg("asg--a") && !is_asg("xasg-a"));
    }
}
