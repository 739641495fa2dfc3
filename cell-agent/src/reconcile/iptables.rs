//! The iptables plane: our chains among those of the CNI plugin.
//!
//! Nothing is believed of the kernel: each time both filter tables are read, and
//! what differs is written, under the lock that the CNI plugin takes as well. So
//! an agent that was restarted, or a table that somebody edited, needs nothing
//! of its own. Reading costs one process a family, so it is left out as long as a
//! [`Notice`] says that nobody was at work since the last look.

use std::collections::{BTreeMap, BTreeSet};

use model::ids::{ContainerHandle, GroupGuid};

use crate::{
    apply::{
        Error,
        iptables::{Iptables, Refusal},
        isolate::Unit,
    },
    batch::{Step, TRIAL_LOG},
    notice::Notice,
    plan::{Policy, Ruleset, Standing},
    render::iptables::{Family, Filter, Part, all_permits, render},
};

use super::Rehearsed;

/// After so many looks that were left out there is one all the same: somebody may
/// have changed the tables without taking a lock.
const LEFT_OUT_MOST: u32 = 120;

/// Our chains in the kernel.
#[derive(Debug)]
pub struct Chains {
    iptables: Iptables,
    families: Vec<FamilyState>,
    /// Containers whose chain cannot be there yet, with the reason.
    waiting: BTreeMap<ContainerHandle, String>,
    /// Containers that keep a chain of an earlier process.
    kept: BTreeSet<ContainerHandle>,
    /// Whether something can be done that nobody waits for.
    work: bool,
    notice: Notice,
    /// Whether nothing differed at the last look.
    right: bool,
    /// Looks that were left out since then.
    left_out: u32,
}

/// One family's table.
#[derive(Debug)]
struct FamilyState {
    family: Family,
    wanted: Filter,
    /// Chains of ours that were right after the last batch.
    placed: BTreeSet<String>,
    /// Those of them that hold what this process wants.
    written: BTreeSet<String>,
}

impl FamilyState {
    /// What differs, if any of it had been right before.
    fn strayed(&self, step: &Step) -> bool {
        let written = step.batch.iter().flat_map(|batch| &batch.written);
        let mut owners = written.map(|written| &written.handle);
        let placed = |handle: &ContainerHandle| {
            let chain = self.wanted.chains.iter().find(|chain| chain.handle == *handle);
            chain.is_some_and(|chain| self.placed.contains(&chain.names.asg))
        };
        owners.any(placed)
    }
}

impl Chains {
    /// Nothing is known of the kernel before the loop begins.
    ///
    /// # Errors
    /// iptables cannot be used.
    pub async fn open(iptables: Iptables) -> Result<Self, Error> {
        let notice = match iptables.is_nft().await? {
            true => Notice::by_kernel(),
            false => Notice::by_locks(iptables.lock_file()),
        };
        iptables.save(Family::V4).await?;
        let mut families = vec![Family::V4];
        match iptables.save(Family::V6).await {
            Ok(_) => families.push(Family::V6),
            Err(error) => tracing::info!(reason = %error, "ip6tables-cannot-be-used"),
        }
        let state = |family| FamilyState {
            family,
            wanted: Filter::default(),
            placed: BTreeSet::new(),
            written: BTreeSet::new(),
        };
        Ok(Self {
            iptables,
            families: families.into_iter().map(state).collect(),
            waiting: BTreeMap::new(),
            kept: BTreeSet::new(),
            work: false,
            notice,
            right: false,
            left_out: 0,
        })
    }

    /// Takes what an earlier process left as what is wanted, until it is known
    /// what is.
    pub(super) async fn recover(&mut self) -> Result<(), Error> {
        let _locked = self.iptables.lock().await?;
        for state in &mut self.families {
            let saved = self.iptables.save(state.family).await?;
            state.wanted = saved.as_wanted();
            state.placed = saved.step(&state.wanted, state.family).placed;
        }
        Ok(())
    }

    pub(super) fn holds_rules(&self) -> bool {
        self.families.iter().any(|state| !state.wanted.chains.is_empty())
    }

    /// The transactions of a rehearsal, each with how it would be handed over.
    pub(super) fn rehearsed(&self) -> Option<Vec<Rehearsed>> {
        let batches = self.iptables.rehearsed()?.iter();
        let command = |family| format!("{family}-restore --noflush");
        let batches = batches.map(|(family, text)| (command(family), text.clone()));
        Some(batches.collect())
    }

    /// How many rules the chains have that are in place, in both families.
    pub(super) fn rules(&self) -> u64 {
        let placed = self.families.iter().flat_map(|state| {
            state.wanted.chains.iter().filter(|chain| state.placed.contains(&chain.names.asg))
        });
        placed.map(|chain| chain.body.rules().count() as u64).sum()
    }

    pub(super) fn waiting(&self) -> &BTreeMap<ContainerHandle, String> {
        &self.waiting
    }

    pub(super) fn kept(&self) -> &BTreeSet<ContainerHandle> {
        &self.kept
    }

    pub(super) fn has_work(&self) -> bool {
        self.work
    }

    /// Makes the kernel hold the ruleset. Whether there was anything to do.
    pub(super) async fn bring(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        for state in &mut self.families {
            state.wanted = render(ruleset, state.family);
            state.wanted.close(&state.written);
        }
        self.commit(Some(ruleset)).await
    }

    /// Puts back what was there before somebody changed it.
    pub(super) async fn restore(&mut self) -> Result<bool, Error> {
        let known = self.holds_rules();
        if known {
            self.commit(None).await?;
        }
        Ok(known)
    }

    /// One batch a family, if anything differs.
    async fn commit(&mut self, ruleset: Option<&Ruleset>) -> Result<bool, Error> {
        let _locked = self.iptables.lock().await?;
        // Before the first look: who does not keep to the lock may work beside us.
        self.notice.mark();
        self.right = false;
        let mut changed = false;
        let (mut waiting, mut kept) = (BTreeMap::new(), BTreeSet::new());
        for state in &mut self.families {
            let saved = self.iptables.save(state.family).await?;
            let step = saved.step(&state.wanted, state.family);
            // After a failure nothing is known to have been right.
            state.placed.clear();
            if let Some(batch) = &step.batch {
                let restored = self.iptables.restore(state.family, batch).await;
                restored.map_err(|refusal| refused(refusal, state, &step, ruleset))?;
                let (written, swept) = (batch.written.len(), batch.swept());
                tracing::debug!(family = %state.family, written, swept, "batch-applied");
                changed = true;
            }
            if ruleset.is_some() {
                state.written.clone_from(&step.placed);
            }
            state.placed = step.placed;
            waiting.extend(step.waiting);
            kept.extend(step.kept);
        }
        self.without_family(ruleset, &mut waiting);
        // What we wrote ourselves is looked at once more.
        self.right = !changed;
        self.left_out = 0;
        for (handle, reason) in &waiting {
            if self.waiting.get(handle) != Some(reason) {
                tracing::info!(container = %handle, reason, "container-waits");
            }
        }
        self.waiting = waiting;
        self.kept = kept;
        self.work = false;
        Ok(changed)
    }

    /// Containers of a family that this cell has no iptables for.
    fn without_family(
        &self,
        ruleset: Option<&Ruleset>,
        waiting: &mut BTreeMap<ContainerHandle, String>,
    ) {
        if self.families.iter().any(|state| state.family == Family::V6) {
            return;
        }
        let containers = ruleset.into_iter().flat_map(|ruleset| &ruleset.containers);
        let v6 = containers.filter(|(_, planned)| planned.address.is_some_and(|a| a.is_ipv6()));
        let reason = "its address is IPv6, and ip6tables cannot be used";
        waiting.extend(v6.map(|(handle, _)| (handle.clone(), reason.to_owned())));
    }

    /// Whether the kernel would take these rules, if no packet met them.
    pub(super) async fn check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let _locked = self.iptables.lock().await?;
        for FamilyState { family, .. } in &self.families {
            let saved = self.iptables.save(*family).await?;
            let permits = all_permits(ruleset, *family, TRIAL_LOG);
            let trial = saved.trial(&render(ruleset, *family), &permits);
            self.iptables.attempt(*family, &trial).await.map_err(|refusal| match refusal {
                Refusal::Refused { reason, .. } => Error::Refused(reason),
                Refusal::Failed(error) => error,
            })?;
        }
        Ok(())
    }

    /// Whether somebody else changed what was right. Not thoroughly means only if
    /// anybody was at work.
    pub(super) async fn has_strayed(&mut self, thoroughly: bool) -> Result<bool, Error> {
        if !thoroughly && self.right && !self.notice.stirred() {
            self.left_out += 1;
            if self.left_out < LEFT_OUT_MOST {
                return Ok(false);
            }
        }
        let _locked = self.iptables.lock().await?;
        self.notice.mark();
        self.right = false;
        let (mut strayed, mut work) = (false, false);
        for state in &self.families {
            let saved = self.iptables.save(state.family).await?;
            let step = saved.step(&state.wanted, state.family);
            strayed |= state.strayed(&step);
            work |= step.batch.is_some();
        }
        self.work = work;
        self.right = !work;
        self.left_out = 0;
        Ok(strayed)
    }
}

/// What iptables refuses, by its name in the inputs if it tells the line.
fn refused(refusal: Refusal, state: &FamilyState, step: &Step, ruleset: Option<&Ruleset>) -> Error {
    let (line, reason) = match refusal {
        Refusal::Failed(error) => return error,
        Refusal::Refused { line, reason } => (line, reason),
    };
    let unit = || {
        let batch = step.batch.as_ref()?;
        let (handle, part) = batch.blame(line?, &state.wanted)?;
        culprit(ruleset?, state.family, handle, part)
    };
    match unit() {
        Some(unit) => Error::Culprit { unit, reason },
        None => Error::Refused(reason),
    }
}

fn culprit(
    ruleset: &Ruleset,
    family: Family,
    handle: &ContainerHandle,
    part: Part,
) -> Option<Unit> {
    let place = match part {
        Part::Fixed => return Some(Unit::Container(handle.clone())),
        Part::Permit(place) => place,
    };
    let Standing::Bound(belongs) = &ruleset.containers.get(handle)?.standing else { return None };
    let (group, rule) = source(ruleset.policies.get(belongs)?, family, place)?;
    Some(Unit::Rule(group, rule))
}

/// Where the permit was written that is at this place in a chain.
fn source(policy: &Policy, family: Family, place: usize) -> Option<(GroupGuid, usize)> {
    let permits = policy.segments.iter().flat_map(|segment| &segment.permits);
    let of_family = |permit: &&model::effective::Permit| {
        permit.destination.first().is_ipv4() == (family == Family::V4)
    };
    let permit = permits.filter(of_family).nth(place)?;
    let (_, source) = policy.rules.permits.iter().find(|(written, _)| written == permit)?;
    Some((source.group.clone(), source.rule))
}
