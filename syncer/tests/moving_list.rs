//! A Cloud Controller whose groups change after each page of the list.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use serde_json::{Value, json};
use syncer::poll::Settings;
use tokio::task::JoinSet;

use crate::support::{
    cloud::{client, group},
    leader::{Leader, SETTINGS},
    serve_http,
    store::PolicyStoreTwin,
    until,
};

const PAGE: usize = 4;
const STABLE: usize = 9;

/// Groups in the order of the list.
#[derive(Debug)]
struct Content {
    groups: Vec<(String, String)>,
    changes: u64,
    still: bool,
    chance: fastrand::Rng,
}

impl Content {
    fn new(seed: u64) -> Self {
        let stable = (0..STABLE).map(|number| format!("stable-{number}"));
        let guids = stable.chain(["doomed".to_owned()]);
        let groups = guids.map(|guid| (guid, "10.0.0.1".to_owned())).collect();
        Self { groups, changes: 0, still: true, chance: fastrand::Rng::with_seed(seed) }
    }

    /// Deletes a group, or inserts one at any place.
    fn change(&mut self) {
        self.changes += 1;
        let passing = self.groups.iter().position(|(guid, _)| guid.starts_with("passing"));
        match passing {
            Some(place) if self.chance.bool() => {
                self.groups.remove(place);
            }
            _ => {
                let place = self.chance.usize(..=self.groups.len());
                let guid = format!("passing-{}", self.changes);
                self.groups.insert(place, (guid, "10.0.0.2".to_owned()));
            }
        }
    }

    fn pairs(&self) -> BTreeMap<String, String> {
        self.groups.iter().cloned().collect()
    }
}

type Shared = Arc<Mutex<Content>>;

async fn last_update(State(content): State<Shared>) -> Json<Value> {
    let changes = content.lock().unwrap().changes;
    Json(json!({ "last_update": format!("2026-11-23T01:53:08.{changes:06}5Z") }))
}

async fn list(
    State(content): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Json<Value> {
    let mut content = content.lock().unwrap();
    let guids = query.get("guids").map(|guids| guids.split(',').collect::<Vec<_>>());
    let wanted = |guid: &str| guids.as_ref().is_none_or(|guids| guids.contains(&guid));
    let groups: Vec<_> = content.groups.iter().filter(|(guid, _)| wanted(guid)).collect();
    let page: usize = query.get("page").map_or(1, |page| page.parse().unwrap());
    let resources = groups.iter().skip((page - 1) * PAGE).take(PAGE);
    let resources: Vec<_> = resources.map(|(guid, to)| group(guid, to)).collect();
    let pages = groups.len().div_ceil(PAGE).max(1);
    let next = (page < pages).then(|| json!({ "href": "https://elsewhere.example.org" }));
    let answer = json!({
        "pagination": { "next": next, "total_results": groups.len(), "total_pages": pages },
        "resources": resources,
    });
    if !content.still {
        content.change();
    }
    Json(answer)
}

async fn serve(content: Shared) -> (String, JoinSet<()>) {
    let token = || async { Json(json!({ "access_token": "t", "expires_in": 1_000 })) };
    let router = Router::new()
        .route("/oauth/token", post(token))
        .route("/internal/v4/asg_latest_update", get(last_update))
        .route("/v3/security_groups", get(list))
        .with_state(content);
    serve_http(router).await
}

fn stored(store: &PolicyStoreTwin) -> BTreeMap<String, String> {
    store.with(|state| {
        let pair = |group: &model::group::SecurityGroup| {
            (group.guid.to_string(), group.rules[0].destination.clone())
        };
        state.groups.values().map(pair).collect()
    })
}

/// Law 9.
#[tokio::test]
async fn changes_without_a_pause_arrive_and_no_group_is_lost() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let content = Arc::new(Mutex::new(Content::new(seed)));
    let (url, _server) = serve(Arc::clone(&content)).await;
    let store = PolicyStoreTwin::start().await;
    let settings = Settings { max_staleness: Duration::from_millis(200), ..SETTINGS };
    let cloud = client(&url, Duration::from_secs(5));
    let leader = Leader::with(settings, cloud, store.client("me"), 1);
    let change = |work: &dyn Fn(&mut Content)| work(&mut content.lock().unwrap());
    until("the first groups", || stored(&store).len() == STABLE + 1).await;

    change(&|content| content.still = false);
    for round in 0..10 {
        let to = format!("10.1.0.{round}");
        change(&|content| {
            let (_, rule) = content.groups.iter_mut().find(|(guid, _)| guid == "stable-3").unwrap();
            rule.clone_from(&to);
            content.changes += 1;
        });
        until("the change", || stored(&store)["stable-3"] == to).await;
    }
    change(&|content| content.groups.retain(|(guid, _)| guid != "doomed"));
    until("the removal", || !stored(&store).contains_key("doomed")).await;
    for write in store.writes() {
        let guids: BTreeSet<_> = write.guids.iter().map(String::as_str).collect();
        let lost = (0..STABLE).map(|number| format!("stable-{number}"));
        let lost: Vec<_> = lost.filter(|guid| !guids.contains(guid.as_str())).collect();
        assert!(lost.is_empty(), "{lost:?} are not in {guids:?}");
    }
    assert!(leader.health.is_ready());

    change(&|content| content.still = true);
    let pairs = content.lock().unwrap().pairs();
    until("all groups", || stored(&store) == pairs).await;
}
