//! The initial state of every cluster: an organization, two spaces, an app in each.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::cloud::Cloud;
use super::container::{Wanted, Workload};
use super::launch::Cluster;
use super::operator::Held;
use super::terminal::progress;
use super::topology::Cell;

/// Timeout of the first lock and the first sync.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The GUIDs of the initial objects, and a client to create more.
#[derive(Debug)]
pub(crate) struct Stage {
    /// A client, logged in as administrator.
    pub(crate) cloud: Cloud,
    /// The organization `o1`.
    pub(crate) organization: String,
    /// The space `s1`.
    pub s1: String,
    /// The space `s2`.
    pub s2: String,
    /// The cell of `appA`.
    pub(crate) cell_a: Cell,
    /// The cell of `appB`.
    pub(crate) cell_b: Cell,
    /// The leading syncer.
    pub(crate) leader: Held,
}

impl Stage {
    /// Waits until groups are synced, then adds the apps: `appA` in `s1`, `appB` in
    /// `s2`, and so on alternately, over all cells in turn.
    pub(crate) async fn set(cluster: &mut Cluster) -> anyhow::Result<Self> {
        let ports = cluster.options().ports.clone();
        let api = format!("https://127.0.0.1:{}", ports.api);
        let uaa = format!("https://127.0.0.1:{}", ports.uaa);
        let cloud = Cloud::log_in(&api, &uaa, &cluster.layout().ca()).await?;
        let organization = cloud.create_organization("o1").await?;
        let s1 = cloud.create_space("s1", &organization).await?;
        let s2 = cloud.create_space("s2", &organization).await?;
        progress("the first sync")?;
        let leader = wait_for_sync(cluster).await?;
        let mut cells = cluster.network().cells();
        let cell_a = cells.next().context("a cluster has a cell")?;
        let cell_b = cells.next().unwrap_or(cell_a);
        drop(cells);
        let stage = Self { cloud, organization, s1, s2, cell_a, cell_b, leader };
        let cells: Vec<Cell> = cluster.network().cells().collect();
        progress(&format!("{} apps", cluster.options().apps))?;
        for number in 0..usize::from(cluster.options().apps) {
            let space = if number % 2 == 0 { &stage.s1 } else { &stage.s2 };
            let cell = cells[number % cells.len()];
            cluster
                .add_container(stage.wanted(&app_name(number), cell, space, Workload::App))
                .await?;
        }
        Ok(stage)
    }

    /// The GUID of a space by name or GUID.
    pub(crate) fn space<'a>(&'a self, space: &'a str) -> &'a str {
        match space {
            "s1" => &self.s1,
            "s2" => &self.s2,
            guid => guid,
        }
    }

    /// Parameters of a container in the organization.
    pub(crate) fn wanted(&self, name: &str, cell: Cell, space: &str, workload: Workload) -> Wanted {
        let (organization, space) = (self.organization.clone(), space.to_owned());
        Wanted { name: name.to_owned(), cell, organization, space, workload }
    }
}

/// `appA` to `appZ`, then `app26` and so on.
fn app_name(number: usize) -> String {
    let letter = u8::try_from(number).ok().filter(|number| *number < 26);
    letter.map_or_else(|| format!("app{number}"), |n| format!("app{}", char::from(b'A' + n)))
}

/// Waits until a syncer leads, and the policy store has a first set of groups.
async fn wait_for_sync(cluster: &Cluster) -> anyhow::Result<Held> {
    let since = Instant::now();
    loop {
        if let (Some(leader), true) = (cluster.leader().await?, is_synced(cluster).await?) {
            return Ok(leader);
        }
        if since.elapsed() > TIMEOUT {
            bail!("no syncer has synced the Cloud Controller's groups within {TIMEOUT:?}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn is_synced(cluster: &Cluster) -> anyhow::Result<bool> {
    let text = cluster.ctl(&["status", "--json"]).await?;
    let status: Value = serde_json::from_str(&text).context("portcullisctl's JSON")?;
    Ok(!status["synced_at"].is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_have_names_of_their_own() {
        assert_eq!([0, 1, 25, 26, 300].map(app_name), ["appA", "appB", "appZ", "app26", "app300"]);
    }
}
