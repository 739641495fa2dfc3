//! The last good groups on disk, as the messages that the store would send: the Hello
//! for the known spaces, and one complete state.

use std::{sync::Arc, time::Duration};

use model::ids::SpaceGuid;
use prost::Message as _;
use proto::policy_v1::{StoredGroup, WatchResponse, watch_request::Hello};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::WatchSession;
use crate::{plan::Known, state::StateDirectory};

const FILE: &str = "groups";
/// Minimum interval of writes. The first of several changes is written at once, so that
/// the state in force is almost always on disk.
const GATHER: Duration = Duration::from_millis(50);
/// Retry delay after a failed write.
const RETRY: Duration = Duration::from_secs(5);

/// Loads the saved state; `None`, with a log line, when it is unusable.
#[must_use]
pub fn load(state: &StateDirectory) -> Option<Arc<Known>> {
    let content = state.load(FILE)?;
    match decode(&content) {
        Ok(known) => {
            let (groups, spaces) = (known.groups.len(), known.spaces.len());
            let generation = known.generation.0;
            tracing::info!(groups, spaces, generation, "last-good-groups-loaded");
            Some(known)
        }
        Err(error) => {
            tracing::error!(error = %error, file = FILE, "state-unreadable");
            None
        }
    }
}

/// Saves each new state until shutdown, and the last one at the end.
///
/// # Errors
/// Never; failures are reported and retried.
pub async fn save_latest(
    state: StateDirectory,
    mut groups: watch::Receiver<Option<Arc<Known>>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut saved = groups.borrow().clone();
    loop {
        if is_same(&groups.borrow(), &saved) {
            tokio::select! {
                changed = groups.changed() => if changed.is_err() {
                    shutdown.cancelled().await;
                },
                () = shutdown.cancelled() => {}
            }
        }
        // The receiver does not say that a value is new once its sender is gone.
        let known = groups.borrow_and_update().clone();
        let is_written = is_same(&known, &saved) || save(&state, known.clone()).await;
        if is_written {
            saved = known;
        }
        if shutdown.is_cancelled() && (!is_written || is_same(&groups.borrow(), &saved)) {
            return Ok(());
        }
        let pause = if is_written { GATHER } else { RETRY };
        let _stopped = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// Whether both are the same state in memory.
fn is_same(one: &Option<Arc<Known>>, other: &Option<Arc<Known>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Saves a state, if there is one. Returns whether the state is on disk; failures are
/// reported.
pub async fn save(state: &StateDirectory, known: Option<Arc<Known>>) -> bool {
    let Some(known) = known else { return true };
    state.save(FILE, move || encode(&known)).await
}

fn encode(known: &Known) -> Vec<u8> {
    let Known { revision: _, arrived: _, trace: _, generation, stamp, spaces, groups } = known;
    let hello = Hello {
        cell_id: String::new(),
        space_guids: spaces.iter().map(|space| space.as_str().to_owned()).collect(),
        ..Hello::default()
    };
    let whole = WatchResponse {
        generation: generation.0,
        stamp: stamp.0,
        reset: true,
        upserted: groups.values().map(|group| StoredGroup::from(&group.stored)).collect(),
        complete: true,
        ..WatchResponse::default()
    };
    let mut content = hello.encode_length_delimited_to_vec();
    content.extend(whole.encode_length_delimited_to_vec());
    content
}

fn decode(mut content: &[u8]) -> Result<Arc<Known>, String> {
    let text = |error: prost::DecodeError| error.to_string();
    let Hello { space_guids, .. } = Hello::decode_length_delimited(&mut content).map_err(text)?;
    let whole = WatchResponse::decode_length_delimited(&mut content).map_err(text)?;
    let spaces: Result<Vec<SpaceGuid>, _> =
        space_guids.iter().map(|space| SpaceGuid::parse(space)).collect();
    let update = WatchSession::hello(spaces.map_err(|error| error.to_string())?).receive(whole);
    match (update.known, update.problems.first()) {
        (Some(mut known), None) => {
            Arc::make_mut(&mut known).revision = 1;
            Ok(known)
        }
        (_, Some(problem)) => Err(problem.clone()),
        (None, None) => Err("the state is not whole".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use model::generation::Generation;
    use proto::policy_v1::{Rule, SecurityGroup};

    use super::{super::publish, *};

    fn known(space: &str) -> Arc<Known> {
        let spaces = [SpaceGuid::parse(space).unwrap()].into();
        Arc::new(Known { generation: Generation(1), spaces, ..Known::default() })
    }

    #[tokio::test]
    async fn the_last_state_is_saved_when_its_sender_ends_first() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let (sender, groups) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let saving = save_latest(state.clone(), groups, shutdown.clone());
        let end = async {
            publish(&sender, known("s1"));
            while !directory.path().join(FILE).exists() {
                tokio::task::yield_now().await;
            }
            publish(&sender, known("s2"));
            drop(sender);
            shutdown.cancel();
        };
        let (outcome, ()) = tokio::join!(saving, end);
        outcome.unwrap();
        assert_eq!(load(&state).unwrap().spaces, known("s2").spaces);
    }

    #[test]
    fn groups_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        assert!(load(&state).is_none());
        let rule =
            Rule { protocol: "all".into(), destination: "10.0.0.1".into(), ..Rule::default() };
        let group = SecurityGroup { guid: "g".into(), rules: vec![rule], ..Default::default() };
        let known = WatchSession::hello([SpaceGuid::parse("s1").unwrap()])
            .receive(WatchResponse {
                generation: 7,
                stamp: 77,
                upserted: vec![StoredGroup { id: 3, group: group.encode_to_vec().into() }],
                complete: true,
                ..Default::default()
            })
            .known
            .unwrap();
        state.write(FILE, &encode(&known)).unwrap();
        let back = load(&state).unwrap();
        assert_eq!((&back.spaces, back.generation), (&known.spaces, known.generation));
        assert_eq!((back.stamp.0, known.stamp), (77, back.stamp));
        assert_eq!(back.groups, known.groups);
    }

    fn ninth() -> Arc<Known> {
        Arc::new(Known { generation: Generation(9), ..Known::default() })
    }

    /// A change that arrives together with the shutdown is not lost.
    #[tokio::test]
    async fn the_newest_state_is_saved_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let (sender, groups) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let saving = save_latest(state.clone(), groups, shutdown.clone());
        let telling = async {
            sender.send_replace(Some(ninth()));
            tokio::task::yield_now().await;
            shutdown.cancel();
        };
        let (saved, ()) = tokio::join!(saving, telling);
        saved.unwrap();
        assert_eq!(load(&state).unwrap().generation, Generation(9));
    }

    /// As soon as the disk accepts it, also without further changes.
    #[tokio::test(start_paused = true)]
    async fn a_state_that_could_not_be_written_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let in_the_way = directory.path().join(format!("{FILE}.new"));
        std::fs::create_dir(&in_the_way).unwrap();
        let (sender, groups) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let saving = save_latest(state.clone(), groups, shutdown.clone());
        let telling = async {
            sender.send_replace(Some(ninth()));
            tokio::time::sleep(RETRY / 2).await;
            assert!(load(&state).is_none());
            std::fs::remove_dir(&in_the_way).unwrap();
            tokio::time::sleep(RETRY).await;
            assert_eq!(load(&state).unwrap().generation, Generation(9));
            shutdown.cancel();
        };
        let (saved, ()) = tokio::join!(saving, telling);
        saved.unwrap();
    }

    #[test]
    fn a_truncated_file_is_rejected() {
        let content = encode(&Known::default());
        for length in 0..content.len() {
            decode(&content[..length]).unwrap_err();
        }
    }
}

#[cfg(test)]
#[path = "saved_fuzz_tests.rs"]
mod fuzz_tests;
