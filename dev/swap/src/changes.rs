//! Changes of the security groups at the Cloud Controller, one after another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cluster::cloud::Cloud;
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::packets::{ALWAYS, CHANGING};
use crate::versions::{self, Change, Versions};

/// Number of spaces, each with a changing group of its own.
pub(crate) const SPACES: usize = 2;

/// A space and its group.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) guid: String,
    group: String,
    /// The highest port number that may be open.
    pub(crate) newest: Arc<AtomicUsize>,
    versions: Mutex<Versions>,
}

/// The groups, and the history of their changes.
#[derive(Debug)]
pub(crate) struct Groups {
    cloud: Cloud,
    width: usize,
    pub(crate) spaces: Vec<Space>,
}

impl Groups {
    /// Creates the spaces and the groups, with version 0 of the changing ones.
    pub(crate) async fn create(cloud: Cloud, width: usize) -> anyhow::Result<Self> {
        let organization = cloud.create_organization("o1").await?;
        let rules = json!([{ "protocol": "all", "destination": ALWAYS.to_string() }]);
        let body = json!({
            "name": "always", "rules": rules, "globally_enabled": { "running": true },
        });
        create(&cloud, &body).await?;
        let mut spaces = Vec::new();
        for number in 0..SPACES {
            let guid = cloud.create_space(&format!("s{number}"), &organization).await?;
            let sent = Instant::now();
            let body = json!({
                "name": format!("changing-{number}"),
                "rules": versions::rules(0, width, &CHANGING.to_string()),
                "relationships": { "running_spaces": { "data": [{ "guid": guid }] } },
            });
            let group = create(&cloud, &body).await?;
            let change = Change { sent, confirmed: Some(Instant::now()) };
            let versions = Mutex::new(Versions { changes: vec![change] });
            let newest = Arc::new(AtomicUsize::new(width - 1));
            spaces.push(Space { guid, group, newest, versions });
        }
        Ok(Self { cloud, width, spaces })
    }

    /// The history of each space's group.
    pub(crate) fn histories(&self) -> Vec<Versions> {
        self.spaces.iter().map(|space| space.versions().clone()).collect()
    }

    /// Changes every group at each interval.
    pub(crate) async fn change(
        self: Arc<Self>,
        interval: Duration,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        while shutdown.run_until_cancelled(sleep(interval)).await.is_some() {
            for space in &self.spaces {
                self.change_one(space).await?;
            }
        }
        Ok(())
    }

    async fn change_one(&self, space: &Space) -> anyhow::Result<()> {
        let version = space.versions().changes.len();
        space.versions().changes.push(Change { sent: Instant::now(), confirmed: None });
        space.newest.store(version + self.width - 1, Ordering::Relaxed);
        let rules = versions::rules(version, self.width, &CHANGING.to_string());
        let path = format!("/v3/security_groups/{}", space.group);
        self.cloud.call(Method::PATCH, &path, Some(&json!({ "rules": rules }))).await?;
        space.versions().changes[version].confirmed = Some(Instant::now());
        Ok(())
    }
}

impl Space {
    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn create(cloud: &Cloud, body: &Value) -> anyhow::Result<String> {
    let answer = cloud.call(Method::POST, "/v3/security_groups", Some(body)).await?;
    let guid = answer.body["guid"].as_str().map(str::to_owned);
    guid.context("a new group has no guid")
}
