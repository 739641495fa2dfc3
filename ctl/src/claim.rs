//! `lock claim`, `lock release` and `presence claim`, as cfdot's commands of these names.

use anyhow::{Context as _, ensure};
use proto::models::{
    FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode, locket_client::LocketClient,
};

use crate::{cli::Claim, confirm::confirm, connect::Connection, field::Field, report::Report};

/// A claimed lock or presence.
#[derive(Debug)]
pub(crate) struct Claimed {
    what: Claim,
    /// 0 for Locket, which has no tokens.
    token: u64,
}

pub(crate) const CLAIMED: &[Field<Claimed>] = &[
    Field::text("key", |of| of.what.claimed.clone()),
    Field::text("owner", |of| of.what.owner.clone()),
    Field::integer("fencing_token", |of| (of.token > 0).then_some(of.token)),
    Field::integer("ttl_seconds", |of| Some(of.what.ttl.as_secs())),
    Field::text("value", |of| of.what.value.clone()),
];

/// Claims a lock or presence until its time to live ends: nothing refreshes it.
pub(crate) async fn claim(
    connection: &Connection,
    what: Claim,
    code: TypeCode,
) -> anyhow::Result<Report> {
    let Claim { claimed: key, owner, value, ttl, yes } = &what;
    ensure!(ttl.subsec_nanos() == 0, "--ttl {ttl:?}: not whole seconds");
    let kind = if code == TypeCode::Lock { "lock" } else { "presence" };
    confirm(&format!("Claim the {kind} {key} for {owner} for {} s?", ttl.as_secs()), *yes)?;
    let resource = Resource {
        key: key.clone(),
        owner: owner.clone(),
        value: value.clone(),
        type_code: code.into(),
        ..Resource::default()
    };
    let ttl_in_seconds = i64::try_from(ttl.as_secs()).context("--ttl is too long")?;
    let request = LockRequest { resource: Some(resource), ttl_in_seconds };
    let mut client = LocketClient::new(connection.to_lock_server()?);
    let answer = connection.ask("claim", client.lock(request)).await?.into_inner();
    Ok(Report::record(CLAIMED, Claimed { what, token: answer.fencing_token }))
}

pub(crate) const RELEASED: &[Field<Resource>] =
    &[Field::text("key", |of| of.key.clone()), Field::text("owner", |of| of.owner.clone())];

/// Releases a lock of this owner, or of its present owner.
pub(crate) async fn release(
    connection: &Connection,
    key: String,
    owner: Option<String>,
    yes: bool,
) -> anyhow::Result<Report> {
    let mut client = LocketClient::new(connection.to_lock_server()?);
    let owner = match owner {
        Some(owner) => owner,
        None => {
            let call = client.fetch(FetchRequest { key: key.clone() });
            let found = connection.ask("fetch lock", call).await?.into_inner();
            found.resource.unwrap_or_default().owner
        }
    };
    confirm(&format!("Release the lock {key} of {owner}? Another instance can take it."), yes)?;
    let resource = Resource { key, owner, type_code: TypeCode::Lock.into(), ..Resource::default() };
    let request = ReleaseRequest { resource: Some(resource.clone()) };
    connection.ask("release", client.release(request)).await?;
    Ok(Report::record(RELEASED, resource))
}
