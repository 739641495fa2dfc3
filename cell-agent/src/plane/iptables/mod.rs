//! The iptables data plane: our chains among those of the CNI plugin.
//!
//! No kernel state is cached: each cycle reads both filter tables and writes the
//! differences, under the lock that the CNI plugin takes as well. So neither a restart
//! nor an edited table needs special handling. Written rules are read back before they
//! count as in force. Reading costs one process per family, so the cycle skips it as
//! long as `ChangeDetector` reports that no other process made changes since the last
//! read.

pub(crate) mod arguments;
pub mod batch;
pub mod chains;
mod change_detector;
mod family;
pub mod guard;
pub mod programs;
pub mod render;
pub mod spelling;

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    time::Duration,
};

use async_trait::async_trait;
use model::ids::{ContainerHandle, GroupGuid};
use tokio::time::Instant;

use self::{
    batch::{Batch, Step, TRIAL_LOG, Trial},
    chains::Family,
    change_detector::ChangeDetector,
    family::{FamilyState, forwards_ipv6},
    guard::{RECORD, STRAY},
    programs::{Iptables, Refusal},
    render::{Part, all_permits, render},
};
use super::{Error, Plane, RECORDABLE, Status, Transaction, UNATTRIBUTED, drift::Drift};
use crate::{
    isolate::Unit,
    metrics,
    plan::{Assignment, Policy, Ruleset},
};

/// Maximum number of attempts to write a batch before it must be visible in the kernel.
const WRITINGS_MOST: usize = 2;
/// Interval of counter reads, longer where a read is slow.
const COUNT: Duration = Duration::from_secs(5);
/// Maximum number of consecutive skipped reads: another process may have changed the
/// tables without a lock.
const LEFT_OUT_MOST: u32 = 120;

/// Our chains in the kernel.
#[derive(Debug)]
pub struct IptablesPlane {
    iptables: Iptables,
    families: Vec<FamilyState>,
    status: Status,
    notice: ChangeDetector,
    /// Whether the last read showed no difference.
    right: bool,
    /// Reads skipped since then.
    left_out: u32,
    /// Time of the next counter read.
    counted: Option<Instant>,
}

impl IptablesPlane {
    /// Starts with no knowledge of the kernel.
    ///
    /// # Errors
    /// iptables cannot be used.
    pub async fn open(iptables: Iptables) -> Result<Self, Error> {
        let notice = match iptables.is_nft().await? {
            true => ChangeDetector::by_kernel(),
            false => ChangeDetector::by_locks(iptables.lock_file()),
        };
        let mut families = vec![Family::V4];
        match iptables.save(Family::V4).await {
            // An unreadable table is reported and retried by the loop.
            Ok(_) | Err(Error::Unreadable { .. }) => {}
            Err(error) => return Err(error),
        }
        match iptables.save(Family::V6).await {
            Ok(_) | Err(Error::Unreadable { .. }) => families.push(Family::V6),
            Err(error @ (Error::Missing { .. } | Error::Refused(_))) if forwards_ipv6() => {
                tracing::error!(error = %error, "ip6tables-cannot-be-used.ipv6-is-ungoverned");
            }
            Err(error @ (Error::Missing { .. } | Error::Refused(_))) => {
                tracing::info!(reason = %error, "ip6tables-cannot-be-used");
            }
            Err(error) => return Err(error),
        }
        Ok(Self {
            iptables,
            families: families.into_iter().map(FamilyState::new).collect(),
            status: Status::default(),
            notice,
            right: false,
            left_out: 0,
            counted: None,
        })
    }

    fn want(&mut self, ruleset: &Ruleset) {
        for state in &mut self.families {
            state.wanted = render(ruleset, state.family());
            state.wanted.close(&state.written);
        }
    }

    /// Counts the rules in the chains that are in place, for both families.
    fn count(&mut self) {
        let placed = self.families.iter().flat_map(|state| {
            state.wanted.chains.iter().filter(|chain| state.placed.contains(&chain.names.asg))
        });
        self.status.rules = placed.map(|chain| chain.body.rules().count() as u64).sum();
        let wanted = |state: &FamilyState| !state.wanted.chains.is_empty();
        self.status.holds_rules = self.families.iter().any(wanted);
    }

    /// Writes one batch per family that differs. A change counts as in force when the
    /// kernel shows it.
    async fn commit(&mut self, ruleset: Option<&Ruleset>) -> Result<bool, Error> {
        let committed = self.write_until_seen(ruleset).await;
        self.count();
        committed
    }

    async fn write_until_seen(&mut self, ruleset: Option<&Ruleset>) -> Result<bool, Error> {
        let _locked = self.iptables.lock().await?;
        let mut changed = false;
        for writing in 1.. {
            let batches = self.write(ruleset).await?;
            changed |= batches.iter().any(Option::is_some);
            self.right = !changed;
            if self.right {
                break;
            }
            match self.read_back(&batches).await? {
                None => break,
                // Another process may have made changes without the lock.
                Some(_) if writing < WRITINGS_MOST => {}
                Some(error) => {
                    self.families.iter_mut().for_each(|state| state.placed.clear());
                    return Err(error);
                }
            }
        }
        self.left_out = 0;
        self.status.has_work = false;
        Ok(changed)
    }

    /// Writes the batches, and returns the batch of each table.
    async fn write(&mut self, ruleset: Option<&Ruleset>) -> Result<Vec<Option<Batch>>, Error> {
        // Set the mark before the read: processes that ignore the lock may run in
        // parallel.
        self.notice.mark();
        self.right = false;
        let mut batches = Vec::with_capacity(self.families.len());
        let (mut waiting, mut kept) = (BTreeMap::new(), BTreeSet::new());
        for state in &mut self.families {
            let Some(saved) = state.look(&self.iptables).await? else {
                batches.push(None);
                continue;
            };
            let step = saved.step(&state.wanted, &state.spellings);
            // After a failure no chain is known to be right.
            state.placed.clear();
            if let Some(batch) = &step.batch {
                let restored = self.iptables.restore(state.family(), batch.pieces()).await;
                if let Err(refusal) = restored {
                    let error = refused(refusal, state, &step, ruleset);
                    if !state.is_idle() {
                        return Err(error);
                    }
                    state.given_up = true;
                    tracing::info!(reason = %error, "ip6tables-cannot-be-used");
                    batches.push(None);
                    continue;
                }
                state.given_up = false;
                let (written, swept) = (batch.written.len(), batch.swept());
                tracing::debug!(family = %state.family(), written, swept, "batch-applied");
            }
            if ruleset.is_some() {
                state.written.clone_from(&step.placed);
            }
            state.placed = step.placed;
            waiting.extend(step.waiting);
            kept.extend(step.kept);
            batches.push(step.batch);
        }
        self.wait(ruleset, waiting);
        self.status.kept = kept;
        Ok(batches)
    }

    /// Records the containers that cannot have a chain yet.
    fn wait(&mut self, ruleset: Option<&Ruleset>, mut waiting: BTreeMap<ContainerHandle, String>) {
        if self.families.iter().all(|state| state.family() == Family::V4) {
            let containers = ruleset.into_iter().flat_map(|ruleset| &ruleset.containers);
            let v6 = containers.filter(|(_, planned)| planned.address.is_some_and(|a| a.is_ipv6()));
            let reason = "its address is IPv6, and ip6tables cannot be used";
            waiting.extend(v6.map(|(handle, _)| (handle.clone(), reason.to_owned())));
        }
        for (handle, reason) in &waiting {
            if self.status.waiting.get(handle) != Some(reason) {
                tracing::info!(container = %handle, reason, "container-waits");
            }
        }
        self.status.waiting = waiting;
    }

    /// Why the batches are not in force, or `None`.
    async fn read_back(&mut self, batches: &[Option<Batch>]) -> Result<Option<Error>, Error> {
        self.notice.mark();
        let mut right = true;
        for (state, batch) in self.families.iter_mut().zip(batches) {
            let Some(saved) = state.look(&self.iptables).await? else { continue };
            let mut again = saved.step(&state.wanted, &state.spellings).batch;
            if let (Some(batch), Some(differs)) = (batch, &again)
                && batch.unseen(differs).is_some()
            {
                state.learn(&self.iptables, &saved, (batch, differs)).await?;
                again = saved.step(&state.wanted, &state.spellings).batch;
            }
            let pair = batch.as_ref().zip(again.as_ref());
            if let Some(chain) = pair.and_then(|(batch, again)| batch.unseen(again)) {
                let program = self.iptables.writer(state.family());
                let state = format!("does not hold what was written into the chain {chain}");
                return Ok(Some(Error::NotSeen { program, state }));
            }
            // Other processes made changes meanwhile.
            right &= again.is_none();
        }
        self.right = right;
        Ok(None)
    }

    /// The rules of each family, in chains without packets.
    async fn trials(&self, ruleset: &Ruleset) -> Result<Vec<(Family, Trial)>, Error> {
        let mut trials = Vec::with_capacity(self.families.len());
        for state in &self.families {
            let family = state.family();
            let Some(saved) = state.look(&self.iptables).await? else { continue };
            let permits = all_permits(ruleset, family, TRIAL_LOG);
            trials.push((family, saved.trial(&render(ruleset, family), &permits)));
        }
        Ok(trials)
    }
}

#[async_trait]
impl Plane for IptablesPlane {
    async fn recover(&mut self) -> Result<(), Error> {
        let _locked = self.iptables.lock().await?;
        for state in &mut self.families {
            let Some(saved) = state.look(&self.iptables).await? else { continue };
            state.wanted = saved.as_wanted();
            state.placed = saved.step(&state.wanted, &state.spellings).placed;
        }
        self.count();
        Ok(())
    }

    async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        self.want(ruleset);
        self.commit(Some(ruleset)).await
    }

    async fn restore(&mut self) -> Result<bool, Error> {
        let known = self.status.holds_rules;
        if known {
            self.commit(None).await?;
        }
        Ok(known)
    }

    async fn check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let _locked = self.iptables.lock().await?;
        for (family, trial) in self.trials(ruleset).await? {
            // The same input deletes the chain again.
            let tried = self.iptables.restore(family, iter::once(trial.with_cleanup())).await;
            tried.map_err(Refusal::into_error)?;
        }
        Ok(())
    }

    async fn dry_check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let _locked = self.iptables.lock().await?;
        for (family, trial) in self.trials(ruleset).await? {
            let tested = self.iptables.test(family, iter::once(trial.text())).await;
            tested.map_err(Refusal::into_error)?;
        }
        Ok(())
    }

    async fn dry_run(&mut self, ruleset: &Ruleset) -> Result<Vec<Transaction>, Error> {
        self.want(ruleset);
        let _locked = self.iptables.lock().await?;
        let (mut transactions, mut waiting) = (Vec::new(), BTreeMap::new());
        for state in &self.families {
            let family = state.family();
            let Some(saved) = state.look(&self.iptables).await? else { continue };
            let step = saved.step(&state.wanted, &state.spellings);
            if let Some(batch) = &step.batch {
                if let Err(refusal) = self.iptables.test(family, batch.pieces()).await {
                    let error = refused(refusal, state, &step, Some(ruleset));
                    if !state.is_idle() {
                        return Err(error);
                    }
                    tracing::info!(reason = %error, "ip6tables-cannot-be-used");
                    continue;
                }
                let command = format!("{family}-restore --noflush");
                transactions.push(Transaction { command, text: batch.text() });
            }
            waiting.extend(step.waiting);
        }
        self.wait(Some(ruleset), waiting);
        Ok(transactions)
    }

    async fn drifted(&mut self, thoroughly: bool) -> Result<Option<Drift>, Error> {
        if !thoroughly && self.right && !self.notice.maybe_changed() {
            self.left_out += 1;
            if self.left_out < LEFT_OUT_MOST {
                return Ok(None);
            }
        }
        let _locked = self.iptables.lock().await?;
        self.notice.mark();
        self.right = false;
        let (mut drifted, mut work) = (None::<Drift>, false);
        for state in &self.families {
            let Some(saved) = state.look(&self.iptables).await? else { continue };
            let step = saved.step(&state.wanted, &state.spellings);
            if let Some(drift) = state.drifted(&saved, &step) {
                drifted.get_or_insert_default().extend(drift);
            }
            work |= step.batch.is_some();
        }
        self.status.has_work = work;
        self.right = !work;
        self.left_out = 0;
        Ok(drifted)
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        let guarded = self.families.iter().any(|state| state.placed.contains(STRAY));
        metrics::number(metrics::IPV6_UNGOVERNED, u64::from(!guarded && forwards_ipv6()));
        let recording = self.families.iter().filter(|state| state.placed.contains(RECORD));
        let recording: Vec<Family> = recording.map(FamilyState::family).collect();
        let idle = !guarded && recording.is_empty() && self.counted.is_some();
        if idle || self.counted.is_some_and(|next| Instant::now() < next) {
            return None;
        }
        let began = Instant::now();
        let mut counted = BTreeMap::new();
        if guarded && let Ok(packets) = self.iptables.counted(Family::V6, STRAY).await {
            counted.insert(UNATTRIBUTED.to_owned(), packets);
        }
        // Before the first write, the chain of an earlier process.
        let recording = if self.counted.is_none() { Family::ALL.to_vec() } else { recording };
        for family in recording {
            if let Some(packets) = self.iptables.returned(family, RECORD).await {
                counted.insert(format!("{RECORDABLE}{family}"), packets);
            }
        }
        self.counted = Some(Instant::now() + COUNT.max(20 * began.elapsed()));
        (!counted.is_empty()).then_some(counted)
    }
}

/// Maps a refusal to a rule or container, if iptables names the line.
fn refused(refusal: Refusal, state: &FamilyState, step: &Step, ruleset: Option<&Ruleset>) -> Error {
    let (line, reason) = match refusal {
        Refusal::Failed(error) => return error,
        Refusal::Refused { line, reason } => (line, reason),
    };
    let unit = || {
        let batch = step.batch.as_ref()?;
        let (handle, part) = batch.blame(line?, &state.wanted)?;
        culprit(ruleset?, state.family(), handle, part)
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
    let Assignment::Bound(belongs) = &ruleset.containers.get(handle)?.assignment else {
        return None;
    };
    let (group, rule) = source(ruleset.policies.get(belongs)?, family, place)?;
    Some(Unit::Rule(group, rule))
}

/// The source of the permit at this index in a chain.
fn source(policy: &Policy, family: Family, place: usize) -> Option<(GroupGuid, usize)> {
    let permits = policy.segments.iter().flat_map(|segment| &segment.permits);
    let of_family = |permit: &&model::effective::Permit| {
        permit.destination.first().is_ipv4() == (family == Family::V4)
    };
    let permit = permits.filter(of_family).nth(place)?;
    let (_, source) = policy.rules.permits.iter().find(|(written, _)| written == permit)?;
    Some((source.group.clone(), source.rule))
}
