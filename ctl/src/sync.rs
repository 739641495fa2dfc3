//! `sync`: makes the leading syncer read the groups now.

use anyhow::{Context as _, bail, ensure};
use runtime::https::{Servers, builder};
use serde::Deserialize;

use crate::{
    connect::Connection,
    field::Field,
    removal,
    report::{Report, warn},
};

/// Response of a syncer that does not lead.
const CONFLICT: u16 = 409;

/// The changes that the syncer applied.
#[derive(Debug, Default, Deserialize)]
struct Applied {
    #[serde(default)]
    added: u64,
    #[serde(default)]
    changed: u64,
    #[serde(default)]
    removed: u64,
    generation: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct Answer {
    #[serde(default)]
    applied: Option<Applied>,
    #[serde(default)]
    error: String,
}

/// The syncer that answered.
#[derive(Debug)]
pub(crate) struct Synced {
    syncer: String,
    applied: Applied,
    /// Groups of an accepted removal.
    accepted: Option<u64>,
}

pub(crate) const SYNCED: &[Field<Synced>] = &[
    Field::text("syncer", |of| of.syncer.clone()),
    Field::integer("generation", |of| of.applied.generation),
    Field::only_json(Field::integer("accepted_removal", |of| of.accepted)),
    Field::integer("added", |of| Some(of.applied.added)),
    Field::integer("changed", |of| Some(of.applied.changed)),
    Field::integer("removed", |of| Some(of.applied.removed)),
];

/// Asks each syncer until one leads.
pub(crate) async fn sync(
    connection: &Connection,
    urls: &[String],
    accept_removal: Option<u64>,
) -> anyhow::Result<Report> {
    let mut accepted = None;
    if let Some(removed) = accept_removal {
        let removal = removal::accept(connection, removed).await?;
        warn(&format!("accepted: {}", removal::sentence(&removal)));
        accepted = Some(removal.removed);
    }
    let urls: Vec<&str> = urls.iter().chain(&connection.syncer_admin).map(String::as_str).collect();
    if urls.is_empty() && accepted.is_some() {
        let synced = Synced { syncer: String::new(), applied: Applied::default(), accepted };
        return Ok(Report::record(SYNCED, synced));
    }
    ensure!(
        !urls.is_empty(),
        "sync: set --syncer-admin to the admin URL of each syncer, such as http://127.0.0.1:17019"
    );
    let mut refusals = Vec::new();
    for url in urls {
        match ask(connection, url).await {
            Ok(Some(applied)) => {
                let synced = Synced { syncer: url.to_owned(), applied, accepted };
                return Ok(Report::record(SYNCED, synced));
            }
            Ok(None) => refusals.push(format!("{url} does not lead")),
            Err(error) => refusals.push(format!("{url}: {error:#}")),
        }
    }
    bail!("sync: no syncer did it: {}", refusals.join("; "))
}

/// `None` if the syncer does not lead.
async fn ask(connection: &Connection, url: &str) -> anyhow::Result<Option<Applied>> {
    let client = builder("portcullisctl", &Servers::new(&[url])).timeout(connection.timeout());
    let target = format!("{}/sync-now", url.trim_end_matches('/'));
    let response = client.build()?.post(target).send().await.context("no answer")?;
    let status = response.status();
    if status.as_u16() == CONFLICT {
        return Ok(None);
    }
    let text = response.text().await.context("reading the answer")?;
    let answer: Answer = serde_json::from_str(&text)
        .with_context(|| format!("HTTP {status}: the answer is not that of a syncer"))?;
    match answer.applied {
        Some(applied) => Ok(Some(applied)),
        None => bail!("HTTP {status}: {}", answer.error),
    }
}
