//! What leads from the filter table that iptables-save shows to the one that is
//! wanted, as the input of one `iptables-restore --noflush`.
//!
//! Pure. A batch is one transaction for all containers (law 8): a chain that
//! differs is emptied and filled in it, and the parent gets its jump in the same
//! commit, so for packets there is only before and after. The original's way by
//! way of a candidate chain is not needed; a candidate that it left is cleared
//! away.
//!
//! - What is right is not in the batch.
//! - A container whose parent, or a chain that its rules lead to, is not there
//!   waits: those are the CNI plugin's. It costs no other container anything.
//! - A chain that no container has is deleted, with the log chains that only it
//!   led to. As long as something still leads to it, it is only emptied, as the
//!   original does: then the parent's reject is next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
};

use model::ids::ContainerHandle;

use crate::render::{
    iptables::{Body, Chain, Family, Filter, Names, Part},
    table::TO_STRING,
};

/// Where rules are tried that no packet meets.
const TRIAL: &str = "portcullis-trial";
/// Where those that log lead to.
pub(crate) const TRIAL_LOG: &str = "portcullis-trial--log";

/// The filter table as iptables-save printed it.
#[derive(Debug, Default)]
pub struct Saved<'a> {
    declared: HashSet<&'a str>,
    /// The rules of chains that are ours, and of their possible parents.
    rules: BTreeMap<&'a str, Vec<&'a str>>,
    /// From which chains rules lead to such a chain.
    references: HashMap<&'a str, Vec<&'a str>>,
}

/// What to do.
#[derive(Debug, Default)]
pub struct Step {
    /// The input of iptables-restore, if there is anything to change.
    pub batch: Option<Batch>,
    /// Containers that cannot have a chain yet, with the reason.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// The chains that are right after the batch.
    pub placed: BTreeSet<String>,
    /// Containers whose groups are unknown and whose packets meet the chain that
    /// an earlier process left.
    pub kept: BTreeSet<ContainerHandle>,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// The input of iptables-restore.
    pub text: String,
    /// Chains that differ, by name, with whose they are and where in the text
    /// their rules begin.
    pub written: BTreeMap<String, (ContainerHandle, usize)>,
    /// Chains that no container has.
    pub swept: BTreeSet<String>,
}

/// Whether a chain is one of the agent's, to be swept when no container has it:
/// `^c?asg-[A-Za-z0-9]+`.
fn is_ours(name: &str) -> bool {
    let own = own(name).and_then(|own| own.bytes().next());
    own.is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// What the name of a chain says of the handle, if the chain may be one of the
/// agent's. A handle may begin with a character that no swept name begins with.
fn own(name: &str) -> Option<&str> {
    name.strip_prefix('c').unwrap_or(name).strip_prefix("asg-")
}

fn may_be_parent(name: &str) -> bool {
    name.starts_with("netout--")
}

fn is_log(name: &str) -> bool {
    may_be_parent(name) && (name.ends_with("--log") || name.ends_with("--rl-log"))
}

impl<'a> Saved<'a> {
    /// Reads what `iptables-save -t filter` printed.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        let mut saved = Self::default();
        for line in text.lines() {
            if let Some(declaration) = line.strip_prefix(':') {
                saved.declared.extend(declaration.split(' ').next());
            } else if let Some((chain, rule)) =
                line.strip_prefix("-A ").and_then(|line| line.split_once(' '))
            {
                saved.add(chain, rule);
            }
        }
        saved
    }

    fn add(&mut self, chain: &'a str, rule: &'a str) {
        if own(chain).is_some() || may_be_parent(chain) {
            self.rules.entry(chain).or_default().push(rule);
        }
        let mut words = rule.rsplit(' ');
        if let (Some(target), Some("-j" | "-g")) = (words.next(), words.next())
            && (is_ours(target) || may_be_parent(target))
        {
            let sources = self.references.entry(target).or_default();
            if sources.last() != Some(&chain) {
                sources.push(chain);
            }
        }
    }

    fn rules(&self, chain: &str) -> &[&'a str] {
        self.rules.get(chain).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether any chain of ours is there.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.declared.iter().any(|name| is_ours(name))
    }

    /// The chains of ours whose parent leads to them, as what is wanted: for when
    /// nobody can tell what should be there. The handles are those that the chains
    /// suggest.
    #[must_use]
    pub fn as_wanted(&self) -> Filter {
        let parents = self.declared.iter().filter(|name| may_be_parent(name) && !is_log(name));
        let linked = parents.filter_map(|parent| {
            let asg = self.rules(parent).iter().find_map(|rule| rule.strip_prefix("-j "))?;
            own(asg).map(|_| (*parent, asg))
        });
        let chains = linked.filter_map(|(parent, asg)| {
            let handle = ContainerHandle::parse(parent.strip_prefix("netout--")?).ok()?;
            let names = Names::of(&handle).ok()?;
            Some(Chain {
                handle,
                names: Names { asg: asg.to_owned(), netout: parent.to_owned(), ..names },
                expected: false,
                body: Body::of(self.rules(asg)),
                targets: Vec::new(),
            })
        });
        let chains = chains.collect();
        // Nothing is swept for want of knowledge.
        let kept = self.declared.iter().filter(|name| is_ours(name));
        let kept = kept.map(|name| (*name).to_owned()).collect();
        Filter { chains, kept, ..Filter::default() }
    }

    /// What leads to `wanted`.
    #[must_use]
    pub fn step(&self, wanted: &Filter, family: Family) -> Step {
        let mut step =
            Step { waiting: wanted.nameless.iter().cloned().collect(), ..Step::default() };
        let mut draft = Draft::default();
        for chain in self.placed(wanted, family, &mut step.waiting) {
            let names = &chain.names;
            step.placed.insert(names.asg.clone());
            let parent = [&*format!("-j {}", names.asg), family.reject()];
            let linked = self.rules(&names.netout) == parent;
            let same = self.declared.contains(&*names.asg)
                && self.rules(&names.asg).iter().copied().eq(chain.body.rules());
            if !same {
                draft.fill(&names.asg, &chain.handle, chain.body.rules());
            }
            if !linked {
                draft.fill(&names.netout, &chain.handle, parent.into_iter());
            }
        }
        let mut live = wanted.kept.clone();
        for Chain { names, .. } in &wanted.chains {
            // One that waits keeps what it has.
            if !step.placed.contains(&names.asg) {
                live.insert(names.candidate());
            }
            live.insert(names.asg.clone());
        }
        for Chain { handle, names, .. } in &wanted.unknown {
            if self.leads(names) && !self.rules(&names.asg).is_empty() {
                step.kept.insert(handle.clone());
            }
            live.extend([names.candidate(), names.asg.clone()]);
        }
        self.sweep(&mut draft, &live);
        step.batch = draft.finish();
        step
    }

    /// Who of those that want a name has it: whose parent leads there already, or
    /// who comes first.
    fn placed<'w>(
        &self,
        wanted: &'w Filter,
        family: Family,
        waiting: &mut BTreeMap<ContainerHandle, String>,
    ) -> Vec<&'w Chain> {
        let mut candidates: Vec<&Chain> = Vec::with_capacity(wanted.chains.len());
        for chain in &wanted.chains {
            match self.missing(chain) {
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

    /// Whether the parent leads to the chain.
    fn leads(&self, names: &Names) -> bool {
        let jump = format!("-j {}", names.asg);
        self.rules(&names.netout).contains(&jump.as_str())
    }

    /// The first chain that the CNI plugin has not made.
    fn missing<'w>(&self, chain: &'w Chain) -> Option<&'w str> {
        let needed = std::iter::once(&chain.names.netout).chain(&chain.targets);
        needed.map(String::as_str).find(|name| !self.declared.contains(name))
    }

    /// Takes away what no container has.
    fn sweep(&self, draft: &mut Draft, live: &BTreeSet<String>) {
        let orphan = |name: &&&str| is_ours(name) && !live.contains(**name);
        let orphans: BTreeSet<&str> = self.declared.iter().filter(orphan).copied().collect();
        // Of what is emptied or written in this batch nothing old leads anywhere.
        let gone = |source: &str| orphans.contains(source) || draft.written.contains_key(source);
        let held = |name: &str| {
            self.references.get(name).is_some_and(|sources| sources.iter().any(|from| !gone(from)))
        };
        let (stuck, free): (Vec<&str>, Vec<&str>) = orphans.iter().partition(|name| held(name));
        let logs =
            self.logs_of(&orphans).into_iter().filter(|name| !held(name)).collect::<Vec<_>>();
        draft.empty.extend(
            stuck.into_iter().filter(|name| !self.rules(name).is_empty()).map(str::to_owned),
        );
        draft.delete.extend(free.into_iter().chain(logs).map(str::to_owned));
    }

    /// The log chains that these lead to, of containers whose parent is gone.
    fn logs_of(&self, orphans: &BTreeSet<&str>) -> BTreeSet<&'a str> {
        let leads = |name: &&str| {
            let sources = self.references.get(*name);
            sources.is_some_and(|sources| sources.iter().any(|from| orphans.contains(from)))
        };
        let logs = self.declared.iter().copied().filter(|name| is_log(name));
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

    /// A transaction that tries the permits and the containers' own rules where no
    /// packet comes by, and leaves nothing behind. The permits come from the
    /// policies: those of a container that is left out are tried all the same.
    #[must_use]
    pub fn trial(&self, wanted: &Filter, permits: &str) -> Trial {
        let mut text = format!("*filter\n:{TRIAL} - [0:0]\n:{TRIAL_LOG} - [0:0]\n");
        let there = wanted.chains.iter().filter(|chain| self.missing(chain).is_none());
        for rule in there.flat_map(|chain| chain.body.own()).chain(permits.lines()) {
            writeln!(text, "-A {TRIAL} {rule}").expect(TO_STRING);
        }
        text.push_str("COMMIT\n");
        Trial(text)
    }
}

/// Rules in chains that no packet meets.
#[derive(Debug)]
pub struct Trial(String);

impl Trial {
    /// Makes the chains.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Makes the chains and takes them away.
    #[must_use]
    pub fn with_cleanup(&self) -> String {
        let sweep = format!("-F {TRIAL}\n-F {TRIAL_LOG}\n-X {TRIAL}\n-X {TRIAL_LOG}\n");
        format!("{}*filter\n{sweep}COMMIT\n", self.0)
    }
}

/// A batch in the making.
#[derive(Debug, Default)]
struct Draft {
    rules: String,
    lines: usize,
    /// By chain: whose, and in which of `lines` its rules begin.
    written: BTreeMap<String, (ContainerHandle, usize)>,
    empty: BTreeSet<String>,
    delete: BTreeSet<String>,
}

impl Draft {
    fn fill<'r>(
        &mut self,
        chain: &str,
        handle: &ContainerHandle,
        rules: impl Iterator<Item = &'r str>,
    ) {
        self.written.insert(chain.to_owned(), (handle.clone(), self.lines));
        for rule in rules {
            writeln!(self.rules, "-A {chain} {rule}").expect(TO_STRING);
            self.lines += 1;
        }
    }

    /// Chains are declared first, which makes or empties them, and deleted last.
    fn finish(self) -> Option<Batch> {
        let Self { rules, lines: _, mut written, empty, delete } = self;
        if written.is_empty() && empty.is_empty() && delete.is_empty() {
            return None;
        }
        let mut text = "*filter\n".to_owned();
        for name in written.keys().chain(&empty).chain(&delete) {
            writeln!(text, ":{name} - [0:0]").expect(TO_STRING);
        }
        let before = 2 + written.len() + empty.len() + delete.len();
        written.values_mut().for_each(|(_, line)| *line += before);
        text.push_str(&rules);
        for name in &delete {
            writeln!(text, "-X {name}").expect(TO_STRING);
        }
        text.push_str("COMMIT\n");
        Some(Batch { text, written, swept: empty.into_iter().chain(delete).collect() })
    }
}

impl Batch {
    /// Whose rule stands in a line of the text, counted from 1, and which part of
    /// its body it is; `None` for a line that is nobody's.
    #[must_use]
    pub fn blame(&self, line: usize, wanted: &Filter) -> Option<(&ContainerHandle, Part)> {
        let behind = self.written.iter().filter(|(_, (_, first))| *first <= line);
        let (name, (handle, first)) = behind.max_by_key(|(_, (_, first))| *first)?;
        let text = self.text.lines().nth(line.checked_sub(1)?)?;
        text.strip_prefix("-A ")?.strip_prefix(name.as_str())?;
        let chain = wanted.chains.iter().find(|chain| chain.handle == *handle)?;
        if chain.names.asg != *name {
            return Some((handle, Part::Fixed));
        }
        Some((handle, chain.body.part(line - first)))
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
