//! Changes of the security groups at the Cloud Controller, one after another.
//!
//! Version `v` of a changing group allows the ports number `v` to `v + WIDTH - 1`
//! ([`swap::versions`]): at any time some ports must be open, and others closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use cluster::cloud::Cloud;
use http::Method;
use serde_json::{Value, json};
use swap::packets::{ALWAYS, CHANGING};
use swap::versions;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::history::{Event, Group, Outcome, Version};
use crate::record::Record;

/// How many ports a version allows.
pub(crate) const WIDTH: usize = 40;
/// Number of spaces, each with a changing group of its own.
const SPACES: u32 = 3;
/// The name of the group with a rule that the Cloud Controller accepts and no agent can enforce
/// (docs/compatibility/cloud-controller.md).
pub(crate) const BAD: &str = "bad";
/// A destination that only the Cloud Controller's parser accepts.
const BAD_DESTINATION: &str = "10.9.9.0/255.255.255.0";
/// Interval of changes: five a second.
const INTERVAL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(3);
/// Longer than any fault of the Cloud Controller, and two in turn.
const LONGEST_OUTAGE: Duration = Duration::from_secs(180);
/// Pause after a change with an unknown result, in which it takes effect or is lost.
const LATE: Duration = Duration::from_secs(1);

/// A space and its group.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) guid: String,
    group: String,
    number: Group,
    next: Mutex<Version>,
    /// The newest port number that may be open.
    pub(crate) newest: Arc<AtomicUsize>,
}

/// The groups, and the client that changes them.
#[derive(Debug)]
pub(crate) struct Groups {
    cloud: Cloud,
    record: Record,
    pub(crate) spaces: Vec<Space>,
}

/// The number of the group with that name.
pub(crate) fn number_of_group(name: &str) -> Option<Group> {
    name.strip_prefix("changing-")?.parse().ok()
}

/// The version with that range of ports.
pub(crate) fn version_of_rules(ports: &str) -> Option<Version> {
    let (first, _last) = ports.split_once('-')?;
    let first: u32 = first.parse().ok()?;
    first.checked_sub(versions::port(0).into())
}

impl Groups {
    /// Creates the spaces and the groups, with version 0 of the changing ones.
    pub(crate) async fn create(cloud: Cloud, record: &Record) -> anyhow::Result<Self> {
        let organization = cloud.create_organization("o1").await?;
        let allowed = json!({ "protocol": "all", "destination": ALWAYS.to_string() });
        let broken = json!({ "protocol": "all", "destination": BAD_DESTINATION });
        let body = json!({
            "name": BAD, "rules": [broken, allowed], "globally_enabled": { "running": true },
        });
        create(&cloud, &body).await?;
        let mut spaces = Vec::new();
        for number in 0..SPACES {
            let guid = cloud.create_space(&format!("s{number}"), &organization).await?;
            let sent = record.now();
            let body = json!({
                "name": format!("changing-{number}"),
                "rules": versions::rules(0, WIDTH, &CHANGING.to_string()),
                "relationships": { "running_spaces": { "data": [{ "guid": guid }] } },
            });
            let group = create(&cloud, &body).await?;
            let outcome = Outcome::Confirmed;
            let ports = ports(0);
            record.note(Event::Change { group: number, version: 0, ports, sent, outcome });
            let newest = Arc::new(AtomicUsize::new(WIDTH - 1));
            spaces.push(Space { guid, group, number, next: Mutex::new(1), newest });
        }
        Ok(Self { cloud, record: record.clone(), spaces })
    }

    /// The newest version of every group.
    pub(crate) async fn newest(&self) -> Vec<(Group, Version)> {
        let mut newest = Vec::new();
        for space in &self.spaces {
            newest.push((space.number, *space.next.lock().await - 1));
        }
        newest
    }

    /// Changes the groups in turn.
    pub(crate) async fn change(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        for turn in 0_usize.. {
            if shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
                break;
            }
            self.change_one(&self.spaces[turn % self.spaces.len()]).await?;
        }
        Ok(())
    }

    /// Changes every group once more, until the Cloud Controller confirms it.
    pub(crate) async fn finish(&self) -> anyhow::Result<()> {
        for space in &self.spaces {
            while self.change_one(space).await? != Outcome::Confirmed {}
        }
        Ok(())
    }

    /// Waits until the Cloud Controller answers again.
    async fn until_alive(&self, path: &str) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let answer = timeout(PATIENCE, self.cloud.call(Method::GET, path, None)).await;
            match answer.context("no answer in time").flatten() {
                Ok(_alive) => return Ok(()),
                Err(error) if since.elapsed() > LONGEST_OUTAGE => {
                    return Err(error.context("the Cloud Controller is away for too long"));
                }
                Err(_) => sleep(INTERVAL).await,
            }
        }
    }

    async fn change_one(&self, space: &Space) -> anyhow::Result<Outcome> {
        let mut next = space.next.lock().await;
        let version = *next;
        let place = usize::try_from(version)?;
        space.newest.store(place + WIDTH - 1, Ordering::Relaxed);
        let rules = versions::rules(place, WIDTH, &CHANGING.to_string());
        let path = format!("/v3/security_groups/{}", space.group);
        let body = json!({ "rules": rules });
        let sent = self.record.now();
        let answer = timeout(PATIENCE, self.cloud.call(Method::PATCH, &path, Some(&body))).await;
        let outcome = match answer {
            Ok(Ok(_confirmed)) => Outcome::Confirmed,
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        };
        let (group, ports) = (space.number, ports(version));
        self.record.note(Event::Change { group, version, ports, sent, outcome });
        *next += 1;
        if outcome == Outcome::Unknown {
            self.until_alive(&path).await?;
            sleep(LATE).await;
        }
        Ok(outcome)
    }
}

fn ports(version: Version) -> (u32, u32) {
    let width = u32::try_from(WIDTH).expect("a small number");
    (version, version + width - 1)
}

async fn create(cloud: &Cloud, body: &Value) -> anyhow::Result<String> {
    let answer = cloud.call(Method::POST, "/v3/security_groups", Some(body)).await?;
    let guid = answer.body["guid"].as_str().map(str::to_owned);
    guid.context("a new group has no guid")
}
