//! The record of denied packets of this cell: flows, each with a count.
//!
//! Pure. A flow is all denied packets of one container to one target. The record is
//! bounded: the flow whose last packet is the oldest makes room for a new one, and its
//! packets count as not recorded. A flow without packets for [`Limits::kept`] is dropped.
//! Flows of a deleted container stay, with the container as it last was.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use model::ids::ContainerHandle;
use proto::cell_v1::Container;

use super::packet::Target;

/// Bounds of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows of all containers.
    pub cell: usize,
    /// Flows of one container.
    pub container: usize,
    /// How long a flow without further packets is kept.
    pub kept: Duration,
}

/// The moment of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For durations.
    pub instant: Instant,
    /// For people.
    pub time: SystemTime,
}

/// Denied packets of one container to one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Number of packets.
    pub packets: u64,
    /// Time of the first packet.
    pub first: SystemTime,
    /// Time of the last packet.
    pub last: SystemTime,
    seen: Instant,
    /// Position of the last packet among all recorded packets.
    position: u64,
}

/// The flows of a cell.
#[derive(Debug)]
pub struct Record {
    limits: Limits,
    containers: HashMap<ContainerHandle, Flows>,
    /// The container of each flow, by the position of the flow's last packet.
    order: BTreeMap<u64, ContainerHandle>,
    position: u64,
    recorded: u64,
    forgotten: u64,
}

/// The flows of a container.
#[derive(Debug)]
struct Flows {
    about: Arc<Container>,
    flows: HashMap<Target, Flow>,
    order: BTreeMap<u64, Target>,
}

impl Record {
    /// An empty record. Positions begin after `position`: a process that begins later
    /// than another one has higher positions, so that a cursor of the earlier process
    /// hides no flow.
    #[must_use]
    pub fn new(limits: Limits, position: u64) -> Self {
        Self {
            limits,
            containers: HashMap::new(),
            order: BTreeMap::new(),
            position,
            recorded: 0,
            forgotten: 0,
        }
    }

    /// Adds a packet.
    pub fn add(
        &mut self,
        handle: &ContainerHandle,
        about: &Arc<Container>,
        target: Target,
        now: Moment,
    ) {
        self.make_room(handle, &target);
        self.position += 1;
        self.recorded += 1;
        let position = self.position;
        let flows = self.containers.entry(handle.clone()).or_insert_with(|| Flows {
            about: Arc::clone(about),
            flows: HashMap::new(),
            order: BTreeMap::new(),
        });
        if !Arc::ptr_eq(&flows.about, about) {
            flows.about = Arc::clone(about);
        }
        let Moment { instant: seen, time: last } = now;
        let flow = flows.flows.entry(target).or_insert(Flow {
            packets: 0,
            first: last,
            last,
            seen,
            position,
        });
        flows.order.remove(&flow.position);
        self.order.remove(&flow.position);
        *flow = Flow { packets: flow.packets + 1, first: flow.first, last, seen, position };
        flows.order.insert(position, target);
        self.order.insert(position, handle.clone());
    }

    /// Forgets old flows, if the target is a new flow and the record is full.
    fn make_room(&mut self, handle: &ContainerHandle, target: &Target) {
        let flows = self.containers.get(handle);
        if flows.is_some_and(|flows| flows.flows.contains_key(target)) {
            return;
        }
        let own = flows.filter(|flows| flows.flows.len() >= self.limits.container);
        let oldest = own.and_then(|flows| flows.order.keys().next().copied());
        let any = (self.order.len() >= self.limits.cell)
            .then(|| self.order.keys().next().copied())
            .flatten();
        if let Some(flow) = oldest.or(any).and_then(|position| self.remove(position)) {
            self.forgotten += flow.packets;
        }
    }

    /// Drops flows without recent packets.
    pub fn expire(&mut self, now: Instant) {
        while let Some((position, handle)) = self.order.first_key_value() {
            let position = *position;
            let flows = self.containers.get(handle);
            let flow = flows.and_then(|flows| flows.flows.get(flows.order.get(&position)?));
            if flow.is_some_and(|flow| now.saturating_duration_since(flow.seen) < self.limits.kept)
            {
                return;
            }
            self.remove(position);
        }
    }

    fn remove(&mut self, position: u64) -> Option<Flow> {
        let handle = self.order.remove(&position)?;
        let flows = self.containers.get_mut(&handle)?;
        let target = flows.order.remove(&position)?;
        let flow = flows.flows.remove(&target);
        if flows.flows.is_empty() {
            self.containers.remove(&handle);
        }
        flow
    }

    /// The flows with a packet after `cursor`, the most recent first.
    pub fn after(
        &self,
        cursor: u64,
    ) -> impl Iterator<Item = (&ContainerHandle, &Arc<Container>, Target, Flow)> {
        let order = self.order.range(cursor.saturating_add(1)..).rev();
        order.filter_map(|(position, handle)| {
            let flows = self.containers.get(handle)?;
            let target = *flows.order.get(position)?;
            Some((handle, &flows.about, target, *flows.flows.get(&target)?))
        })
    }

    /// Position of the latest packet.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.position
    }

    /// Number of flows.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.order.len()
    }

    /// Packets in flows, also in dropped ones, but not in those that were forgotten.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded - self.forgotten
    }

    /// How long a flow without further packets is kept.
    #[must_use]
    pub fn kept(&self) -> Duration {
        self.limits.kept
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
