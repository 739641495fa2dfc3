//! Computes the changes from the filter table that iptables-save prints to the desired
//! table, as the input of one `iptables-restore --noflush`.
//!
//! Pure. A full cell has some 10 MB of rules: equal rules are stored once for all
//! chains, and the output is generated chain by chain.
//!
//! A batch is one transaction for all containers (law 8): a chain that differs is
//! flushed and refilled, and the parent gets its jump in the same commit, so a packet
//! meets either the old or the new rules. The original's candidate chains are not
//! needed; a leftover candidate is deleted.
//!
//! - Chains that are already right are not in the batch.
//! - A container waits while its parent chain, or a chain that its rules jump to, is
//!   missing: the CNI plugin creates those. Other containers are not affected.
//! - A chain without a container is deleted, with the log chains that only it jumped
//!   to. While another rule still jumps to the chain, it is only flushed, as the
//!   original does: then the parent's reject is next.

mod difference;
mod guard;
mod reading;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    iter,
    sync::Arc,
};

use model::ids::ContainerHandle;

use super::{
    chains::{Family, Names},
    guard::{GUARD, RECORD, TO_RECORD},
    render::{Body, Chain, Filter, Part},
    spelling::{Comparison, Spellings},
};
use crate::plane::TO_STRING;

pub use reading::Reading;

/// Chain in which rules are tried; no packet reaches it.
const TRIAL: &str = "portcullis-trial";
/// The chain that all forwarded packets pass.
const FORWARD: &str = "FORWARD";
/// Jump target of logging rules in a trial.
pub(crate) const TRIAL_LOG: &str = "portcullis-trial--log";

/// The filter table as iptables-save printed it.
#[derive(Debug, Default)]
pub struct Saved {
    declared: HashSet<String>,
    /// The rules, one a line, of our chains and of their possible parents.
    rules: HashMap<String, Arc<str>>,
    /// For each such chain, the chains with a rule that jumps to it.
    references: HashMap<String, Vec<String>>,
    /// Indexes, from 0, of the FORWARD rules that jump to [`GUARD`].
    guarded: Vec<usize>,
    /// Number of rules in FORWARD.
    forward: usize,
}

/// The next change, and the state after it.
#[derive(Debug, Default)]
pub struct Step {
    /// The input of iptables-restore, if there is anything to change.
    pub batch: Option<Batch>,
    /// Containers that cannot have a chain yet, with the reason.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// The chains that are right after the batch.
    pub placed: BTreeSet<String>,
    /// Containers whose groups are unknown and that still use the chain of an earlier
    /// process.
    pub kept: BTreeSet<ContainerHandle>,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// Chains that differ, in rule order.
    pub written: Vec<Written>,
    /// Names of those chains.
    names: BTreeSet<String>,
    /// Chains that belong to no container, with their rules.
    guards: Vec<(&'static str, Vec<String>)>,
    /// Number of FORWARD rules with a jump to [`GUARD`] to delete; a new one is
    /// inserted at the head.
    relink: Option<usize>,
    /// Chains without a container: those to flush, and those to delete.
    empty: BTreeSet<String>,
    delete: BTreeSet<String>,
}

/// A chain that differs.
#[derive(Debug)]
pub struct Written {
    chain: String,
    /// The container.
    pub handle: ContainerHandle,
    rules: Body,
}

/// Whether a chain name is one of the agent's, which is swept when it has no container:
/// `^c?asg-[A-Za-z0-9]+`.
fn is_ours(name: &str) -> bool {
    let own = own(name).and_then(|own| own.bytes().next());
    own.is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// The part of a chain's name that comes from the handle, if the chain may be one of
/// the agent's. A handle may begin with a character that no swept name begins with.
fn own(name: &str) -> Option<&str> {
    name.strip_prefix('c').unwrap_or(name).strip_prefix("asg-")
}

fn may_be_parent(name: &str) -> bool {
    name.starts_with("netout--")
}

fn is_log(name: &str) -> bool {
    may_be_parent(name) && (name.ends_with("--log") || name.ends_with("--rl-log"))
}

impl Saved {
    /// Parses chains and rules as `iptables-save -t filter` prints them; the text may
    /// be a part of a table.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut reading = Reading::default();
        reading.take(text.as_bytes());
        reading.part()
    }

    fn refer(&mut self, chain: &str, target: &str) {
        let sources = match self.references.get_mut(target) {
            Some(sources) => sources,
            None => self.references.entry(target.to_owned()).or_default(),
        };
        if sources.last().is_none_or(|last| last != chain) {
            sources.push(chain.to_owned());
        }
    }

    fn rules(&self, chain: &str) -> impl Iterator<Item = &str> {
        self.rules.get(chain).into_iter().flat_map(|text| text.lines())
    }

    fn is_empty(&self, chain: &str) -> bool {
        !self.rules.contains_key(chain)
    }

    /// Whether any of our chains exists.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.declared.iter().any(|name| is_ours(name))
    }

    /// Our chains that their parents jump to, as the desired state, for use while the
    /// real one is unknown. The handles are guessed from the chain names.
    #[must_use]
    pub fn as_wanted(&self) -> Filter {
        let parents = self.declared.iter().filter(|name| may_be_parent(name) && !is_log(name));
        let linked = parents.filter_map(|parent| {
            let asg = self.rules(parent).find_map(|rule| rule.strip_prefix("-j "))?;
            own(asg).map(|_| (parent, asg))
        });
        let chains = linked.filter_map(|(parent, asg)| {
            let handle = ContainerHandle::parse(parent.strip_prefix("netout--")?).ok()?;
            let names = Names::of(&handle).ok()?;
            Some(Chain {
                handle,
                names: Names { asg: asg.to_owned(), netout: parent.clone(), ..names },
                expected: false,
                body: Body::shared(self.rules.get(asg).cloned().unwrap_or_default()),
                targets: Vec::new(),
                silent: None,
            })
        });
        let chains = chains.collect();
        // Without known containers nothing is swept.
        let kept = self.declared.iter().filter(|name| is_ours(name) || *name == RECORD);
        let kept = kept.cloned().collect();
        Filter { chains, kept, ..Filter::default() }
    }

    /// The changes that lead to `wanted`.
    #[must_use]
    pub fn step(&self, wanted: &Filter, spellings: &Spellings) -> Step {
        let (family, mut comparison) = (spellings.family(), Comparison::new(spellings));
        let mut step =
            Step { waiting: wanted.nameless.iter().cloned().collect(), ..Step::default() };
        let mut batch = Batch::default();
        let placed = self.placed(wanted, family, &mut step.waiting);
        for chain in &placed {
            let names = &chain.names;
            step.placed.insert(names.asg.clone());
            let body = self.body(chain);
            let same = self.declared.contains(&*names.asg)
                && comparison.same_rules(self.rules(&names.asg), body.rules());
            if !same {
                batch.fill(&names.asg, &chain.handle, body.clone());
            }
            if wanted.guard.is_some() && !self.declared.contains(&*names.netout) {
                continue;
            }
            let jump = format!("-j {}", names.asg);
            let mut parent = self.rules(&names.netout);
            let linked = parent.next() == Some(&jump)
                && comparison.same_rules(parent, iter::once(family.reject()));
            if !linked {
                let parent = [&*jump, family.reject()];
                batch.fill(&names.netout, &chain.handle, Body::of(&parent));
            }
        }
        let mut live = wanted.kept.clone();
        for Chain { names, .. } in &wanted.chains {
            // A waiting container keeps its chain.
            if !step.placed.contains(&names.asg) {
                live.insert(names.candidate());
            }
            live.insert(names.asg.clone());
        }
        let led_to = wanted.led_to();
        for Chain { handle, names, .. } in &wanted.unknown {
            let leads = self.leads(names) || led_to.contains(handle);
            if leads && !self.is_empty(&names.asg) {
                step.kept.insert(handle.clone());
            }
            live.extend([names.candidate(), names.asg.clone()]);
        }
        let placed = placed.iter().map(|chain| &chain.handle).collect();
        self.guard(&mut batch, wanted, placed, spellings, &mut step);
        self.record(&mut batch, wanted, spellings, &mut step);
        live.extend(wanted.record.iter().map(|_| RECORD.to_owned()));
        self.sweep(&mut batch, &live);
        step.batch = (!batch.is_empty()).then_some(batch);
        step
    }

    /// Resolves colliding chain names: the container whose parent already jumps to the
    /// chain wins, or else the first one.
    fn placed<'w>(
        &self,
        wanted: &'w Filter,
        family: Family,
        waiting: &mut BTreeMap<ContainerHandle, String>,
    ) -> Vec<&'w Chain> {
        let led_to = wanted.led_to();
        let mut candidates: Vec<&Chain> = Vec::with_capacity(wanted.chains.len());
        for chain in &wanted.chains {
            match self.missing(chain, &led_to) {
                None => candidates.push(chain),
                Some(name) if chain.expected => {
                    let reason = format!("its chain {name} is not in {family} yet");
                    waiting.insert(chain.handle.clone(), reason);
                }
                Some(_) => {}
            }
        }
        candidates.sort_by_cached_key(|chain| !self.leads(&chain.names));
        let mut owners = HashMap::new();
        candidates.retain(|chain| {
            let names = [chain.names.asg.as_str(), chain.names.netout.as_str()];
            if let Some((name, owner)) = names.iter().find_map(|name| owners.get_key_value(name)) {
                let reason = format!("the chain {name} is that of container {owner}");
                waiting.insert(chain.handle.clone(), reason);
                return false;
            }
            owners.extend(names.map(|name| (name, &chain.handle)));
            true
        });
        candidates
    }

    /// Whether the parent jumps to the chain.
    fn leads(&self, names: &Names) -> bool {
        let jump = format!("-j {}", names.asg);
        self.rules(&names.netout).any(|rule| rule == jump)
    }

    /// The first required chain that the CNI plugin has not created.
    fn missing<'w>(&self, chain: &'w Chain, led_to: &HashSet<&ContainerHandle>) -> Option<&'w str> {
        if led_to.contains(&chain.handle) {
            return None;
        }
        let needed = iter::once(&chain.names.netout).chain(&chain.targets);
        needed.map(String::as_str).find(|name| !self.declared.contains(*name))
    }

    /// Deletes chains without a container.
    fn sweep(&self, batch: &mut Batch, live: &BTreeSet<String>) {
        let tried = [TRIAL, TRIAL_LOG, RECORD];
        let orphan = |name: &&str| (is_ours(name) || tried.contains(name)) && !live.contains(*name);
        let orphans: BTreeSet<&str> =
            self.declared.iter().map(String::as_str).filter(orphan).collect();
        // Chains that this batch flushes or rewrites no longer have their old jumps.
        let gone = |source: &str| orphans.contains(source) || batch.names.contains(source);
        let held = |name: &str| {
            self.references.get(name).is_some_and(|sources| sources.iter().any(|from| !gone(from)))
        };
        let (stuck, free): (Vec<&str>, Vec<&str>) = orphans.iter().partition(|name| held(name));
        let logs =
            self.logs_of(&orphans).into_iter().filter(|name| !held(name)).collect::<Vec<_>>();
        batch
            .empty
            .extend(stuck.into_iter().filter(|name| !self.is_empty(name)).map(str::to_owned));
        batch.delete.extend(free.into_iter().chain(logs).map(str::to_owned));
    }

    /// The log chains that these chains jump to, of containers whose parent is gone.
    fn logs_of(&self, orphans: &BTreeSet<&str>) -> BTreeSet<&str> {
        let leads = |name: &&str| {
            let sources = self.references.get(*name);
            sources
                .is_some_and(|sources| sources.iter().any(|from| orphans.contains(from.as_str())))
        };
        let logs = self.declared.iter().map(String::as_str).filter(|name| is_log(name));
        let parents = || self.declared.iter().filter(|name| may_be_parent(name) && !is_log(name));
        let of_nobody = |name: &&str| {
            !parents().any(|parent| {
                let handle =
                    parent.strip_prefix("netout--").and_then(|h| ContainerHandle::parse(h).ok());
                let names = handle.and_then(|handle| Names::of(&handle).ok());
                names.is_some_and(|names| [&*names.log, &*names.limit_log].contains(name))
            })
        };
        logs.filter(leads).filter(of_nobody).collect()
    }

    /// A transaction that tries the permits and the containers' own rules in a chain
    /// without packets, and leaves nothing behind. The permits come from the policies,
    /// so permits of an excluded container are tried as well.
    #[must_use]
    pub fn trial(&self, wanted: &Filter, permits: &str) -> Trial {
        let led_to = wanted.led_to();
        let there = wanted.chains.iter().filter(|chain| self.missing(chain, &led_to).is_none());
        let own = there.flat_map(|chain| self.body(chain).own());
        // That chain may not exist yet.
        let own = own.filter(|rule| !rule.ends_with(TO_RECORD));
        Trial::of(own.chain(permits.lines()))
    }
}

/// Rules in chains that no packet reaches.
#[derive(Debug)]
pub struct Trial(String);

impl Saved {
    /// The batch's rules that are in their places but are not recognised, from chains
    /// that differ again after the batch.
    #[must_use]
    pub fn unrecognised(&self, batch: &Batch, again: &Batch, spellings: &Spellings) -> Vec<String> {
        let mut rules = BTreeSet::new();
        let written = batch.written.iter().filter(|written| again.names.contains(&written.chain));
        for Written { chain, handle: _, rules: written } in written {
            if self.rules(chain).count() == written.rules().count() {
                let pairs = self.rules(chain).zip(written.rules());
                let odd = pairs.filter(|(printed, written)| !spellings.same(printed, written));
                rules.extend(odd.map(|(_, written)| written));
            }
        }
        rules.into_iter().map(str::to_owned).collect()
    }

    /// The rules of a trial, as printed.
    pub fn tried(&self) -> impl Iterator<Item = &str> {
        self.rules(TRIAL)
    }
}

impl Trial {
    /// A trial of these rules.
    #[must_use]
    pub fn of<'a>(rules: impl Iterator<Item = &'a str>) -> Self {
        let mut text = format!("*filter\n:{TRIAL} - [0:0]\n:{TRIAL_LOG} - [0:0]\n");
        for rule in rules {
            writeln!(text, "-A {TRIAL} {rule}").expect(TO_STRING);
        }
        text.push_str("COMMIT\n");
        Self(text)
    }

    /// The input that creates the chains.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The input that creates and then deletes the chains.
    #[must_use]
    pub fn with_cleanup(&self) -> String {
        format!("{}{}", self.0, Self::cleanup())
    }

    /// The input that deletes the chains.
    #[must_use]
    pub fn cleanup() -> String {
        let sweep = format!("-F {TRIAL}\n-F {TRIAL_LOG}\n-X {TRIAL}\n-X {TRIAL_LOG}\n");
        format!("*filter\n{sweep}COMMIT\n")
    }
}

impl Batch {
    fn fill(&mut self, chain: &str, handle: &ContainerHandle, rules: Body) {
        self.names.insert(chain.to_owned());
        self.written.push(Written { chain: chain.to_owned(), handle: handle.clone(), rules });
    }

    fn is_empty(&self) -> bool {
        let chains = [self.empty.len(), self.delete.len(), self.names.len()];
        chains == [0; 3] && self.relink.is_none()
    }

    /// A chain of this batch that differs again after it.
    #[must_use]
    pub fn unseen(&self, again: &Self) -> Option<&str> {
        let pairs = [
            (&self.names, &again.names),
            (&self.empty, &again.empty),
            (&self.delete, &again.delete),
        ];
        pairs.into_iter().find_map(|(this, again)| {
            this.iter().find(|name| again.contains(*name)).map(String::as_str)
        })
    }

    /// Number of chains without a container that are deleted or flushed.
    #[must_use]
    pub fn swept(&self) -> usize {
        self.empty.len() + self.delete.len()
    }

    /// The input of iptables-restore, in pieces. Chains are declared first, which
    /// creates or flushes them, and deleted last.
    pub fn pieces(&self) -> impl Iterator<Item = String> {
        let mut head = "*filter\n".to_owned();
        for name in self.names.iter().chain(&self.empty).chain(&self.delete) {
            writeln!(head, ":{name} - [0:0]").expect(TO_STRING);
        }
        let rules = self.written.iter().map(|Written { chain, handle: _, rules }| {
            let mut text = String::new();
            for rule in rules.rules() {
                writeln!(text, "-A {chain} {rule}").expect(TO_STRING);
            }
            text
        });
        let mut tail = String::new();
        for (chain, rules) in &self.guards {
            for rule in rules {
                writeln!(tail, "-A {chain} {rule}").expect(TO_STRING);
            }
        }
        if let Some(old) = self.relink {
            tail.push_str(&format!("-D {FORWARD} -j {GUARD}\n").repeat(old));
            writeln!(tail, "-I {FORWARD} 1 -j {GUARD}").expect(TO_STRING);
        }
        for name in &self.delete {
            writeln!(tail, "-X {name}").expect(TO_STRING);
        }
        tail.push_str("COMMIT\n");
        iter::once(head).chain(rules).chain(iter::once(tail))
    }

    /// The whole input.
    #[must_use]
    pub fn text(&self) -> String {
        self.pieces().collect()
    }

    /// The container and the part of its body for a line of the text, counted from 1;
    /// `None` for a line that belongs to no container.
    #[must_use]
    pub fn blame(&self, line: usize, wanted: &Filter) -> Option<(&ContainerHandle, Part)> {
        let mut first = 2 + self.names.len() + self.swept();
        let written = self.written.iter().find_map(|written| {
            let place = line.checked_sub(first)?;
            first += written.rules.rules().count();
            (line < first).then_some((written, place))
        });
        let (Written { chain: name, handle, rules: _ }, place) = written?;
        let chain = wanted.chains.iter().find(|chain| chain.handle == *handle)?;
        if chain.names.asg != *name {
            return Some((handle, Part::Fixed));
        }
        Some((handle, chain.body.part(place)))
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "batch_fuzz_tests.rs"]
mod fuzz_tests;
