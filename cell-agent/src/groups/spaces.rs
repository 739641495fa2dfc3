//! The spaces to request: those of the containers, and for [`LINGER`] those that had a
//! container, so that an app that is restarted while the store is down finds its rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::ids::SpaceGuid;
use tokio::time::Instant;

use crate::containers::Snapshot;

/// How long a space without containers is still requested.
const LINGER: Duration = Duration::from_secs(3600);

/// The spaces, with the time of each one's last container.
#[derive(Debug)]
pub(super) struct Spaces {
    used: BTreeMap<SpaceGuid, Instant>,
}

impl Spaces {
    /// Treats each space as if it had a container until now.
    pub(super) fn new(spaces: BTreeSet<SpaceGuid>, now: Instant) -> Self {
        Self { used: spaces.into_iter().map(|space| (space, now)).collect() }
    }

    /// The spaces to request now.
    pub(super) fn of(&mut self, snapshot: &Snapshot, now: Instant) -> BTreeSet<SpaceGuid> {
        for container in snapshot.containers.values() {
            if let Ok(belongs) = &container.belongs {
                self.used.insert(belongs.space.clone(), now);
            }
        }
        self.used.retain(|_, at| now - *at < LINGER);
        self.used.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_space_lingers_after_its_last_container() {
        let space = SpaceGuid::parse("s1").unwrap();
        let mut spaces = Spaces::new(BTreeSet::from([space.clone()]), Instant::now());
        let with = Snapshot::parse(
            br#"{"c":{"ip":"10.0.0.1","metadata":{"policy_group_id":"p","space_id":"s2","container_workload":"app"}}}"#,
        )
        .unwrap();
        assert_eq!(spaces.of(&with, Instant::now()).len(), 2);
        tokio::time::advance(LINGER / 2).await;
        assert_eq!(spaces.of(&with, Instant::now()).len(), 2);
        tokio::time::advance(LINGER / 2).await;
        let left = spaces.of(&Snapshot::default(), Instant::now());
        assert_eq!(left, BTreeSet::from([SpaceGuid::parse("s2").unwrap()]));
    }
}
