//! Law 9 with the real loop: a Cloud Controller over HTTP that changes at random times
//! with all kinds of stamps, and a store that must converge. `law_nine` tests the exact
//! bounds, in simulated time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use syncer::poll::{Settings, schedule::Intervals};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    cloud::{client, group},
    leader::{Leader, SETTINGS},
    serve_http,
    store::PolicyStoreTwin,
};

const POLL: Duration = Duration::from_millis(50);
const FULL: Duration = Duration::from_secs(2);
/// Tolerance beyond the bound, for a busy machine.
const SLACK: Duration = Duration::from_secs(3);
const CHANGES: u64 = 40;

/// Effect of a change on the stamp.
#[derive(Debug, Clone, Copy)]
enum Touch {
    /// Whole seconds of a wrong clock.
    Second,
    Micro,
    Not,
    /// Before the last one.
    Back,
    /// The stamp is absent, until the next change.
    Gone,
}

const TOUCHES: [Touch; 5] = [Touch::Second, Touch::Micro, Touch::Not, Touch::Back, Touch::Gone];

#[derive(Debug)]
struct Content {
    revision: u64,
    stamp: Timestamp,
    gone: bool,
    skew: i64,
}

impl Content {
    fn change(&mut self, touch: Touch) {
        self.revision += 1;
        self.gone = matches!(touch, Touch::Gone);
        let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap();
        let clock = now + Duration::from_secs(u64::try_from(self.skew).unwrap());
        self.stamp = match touch {
            Touch::Second => Timestamp::from_second(clock.as_second()).unwrap(),
            Touch::Micro => clock,
            Touch::Back => self.stamp - Duration::from_secs(1),
            Touch::Not | Touch::Gone => self.stamp,
        };
    }

    /// One group contains the revision; every tenth revision removes a group.
    fn groups(&self) -> Vec<Value> {
        let shown =
            group("revision", &format!("10.0.{}.{}", self.revision / 250, self.revision % 250));
        let others = (0..10).filter(|number| *number != self.revision % 10);
        let others = others.map(|number| group(&format!("other-{number}"), "10.1.1.1"));
        std::iter::once(shown).chain(others).collect()
    }
}

type Shared = Arc<Mutex<Content>>;

async fn last_update(State(content): State<Shared>) -> (http::StatusCode, Json<Value>) {
    let content = content.lock().unwrap();
    match content.gone {
        true => (http::StatusCode::NOT_FOUND, Json(json!("Unknown request"))),
        false => (http::StatusCode::OK, Json(json!({ "last_update": content.stamp.to_string() }))),
    }
}

/// The response shows a moment in the middle of the call.
async fn list(State(content): State<Shared>) -> Json<Value> {
    sleep(Duration::from_millis(fastrand::u64(..15))).await;
    let groups = content.lock().unwrap().groups();
    sleep(Duration::from_millis(fastrand::u64(..15))).await;
    Json(json!({ "pagination": { "next": null }, "resources": groups }))
}

async fn serve(content: Shared) -> (String, JoinSet<()>) {
    let token = || async { Json(json!({ "access_token": "t", "expires_in": 1 })) };
    let router = Router::new()
        .route("/oauth/token", post(token))
        .route("/internal/v4/asg_latest_update", get(last_update))
        .route("/v3/security_groups", get(list))
        .with_state(content);
    serve_http(router).await
}

/// Returns the time from the last change until the store had the final content.
async fn story(seed: u64) -> Duration {
    let mut chance = fastrand::Rng::with_seed(seed);
    let skew = chance.i64(0..100_000);
    let stamp = Timestamp::UNIX_EPOCH;
    let content = Arc::new(Mutex::new(Content { revision: 0, stamp, gone: false, skew }));
    let (url, _server) = serve(Arc::clone(&content)).await;
    let store = PolicyStoreTwin::start().await;
    let intervals = Intervals { poll: POLL, full: FULL, unstamped: FULL / 2, ..SETTINGS.intervals };
    let settings = Settings { intervals, ..SETTINGS };
    let cloud = client(&url, Duration::from_secs(5));
    let _leader = Leader::with(settings, cloud, store.client("me"), 1);
    for _ in 0..CHANGES {
        sleep(Duration::from_millis(chance.u64(0..80))).await;
        content.lock().unwrap().change(TOUCHES[chance.usize(..TOUCHES.len())]);
    }
    let last = Instant::now();
    let wanted = content.lock().unwrap().groups();
    let equal = || store.with(|state| stored(state.groups.values()) == listed(&wanted));
    while !equal() {
        assert!(last.elapsed() < FULL + SLACK, "seed {seed}: not within {:?}", last.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    let took = last.elapsed();
    // The content stays the same after another read, which comes later than FULL if reading is
    // slow (`FULL_SHARE`).
    let writes = store.writes().len();
    while store.writes().len() <= writes {
        assert!(equal(), "seed {seed}: it was taken back");
        assert!(last.elapsed() < 10 * FULL + SLACK, "seed {seed}: no other reading");
        sleep(Duration::from_millis(5)).await;
    }
    took
}

/// Guid and destination of each.
fn stored<'g>(
    groups: impl Iterator<Item = &'g model::group::SecurityGroup>,
) -> Vec<(String, String)> {
    groups.map(|group| (group.guid.to_string(), group.rules[0].destination.clone())).collect()
}

fn listed(groups: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |group: &Value| (text(&group["guid"]), text(&group["rules"][0]["destination"]));
    let mut pairs: Vec<_> = groups.iter().map(pair).collect();
    pairs.sort();
    pairs
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_ends_equal_whatever_the_stamps_do() {
    let mut stories = JoinSet::new();
    for _ in 0..6 {
        stories.spawn(story(fastrand::u64(..)));
    }
    while let Some(story) = stories.join_next().await {
        println!("equal {:?} after the last change", story.unwrap());
    }
}
