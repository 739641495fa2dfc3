//! Fills a development Cloud Controller through its API.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use model::group::SecurityGroup;
use model::ids::SpaceGuid;
use model::rule::RuleSpec;
use reqwest::Method;
use runtime::https::{Servers, TlsClient};
use runtime::tls::ClientTls;
use serde_json::{Value, json};

use super::server::Cloud;
use super::store::data::Data;

/// The Cloud Controller's API with an administrator's token.
pub(super) struct Api {
    client: TlsClient,
    url: String,
    token: String,
}

impl Api {
    pub(super) async fn login(cloud: &Cloud) -> anyhow::Result<Self> {
        let tls = ClientTls::trusting(std::slice::from_ref(&cloud.files.ca))?;
        let client = TlsClient::new(
            tls,
            "portcullis-dev".to_owned(),
            Servers::new(&[&cloud.uaa, &cloud.api]),
            |builder| builder,
        );
        let form = [("grant_type", "password"), ("username", "admin"), ("password", "admin")];
        let request = client.client()?.post(format!("{}/oauth/token", cloud.uaa));
        let answer = request.basic_auth("cf", Some("")).form(&form).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        let token = answer["access_token"].as_str().context("the UAA gives no token")?;
        Ok(Self { client, url: cloud.api.clone(), token: token.to_owned() })
    }

    /// Returns the GUID of the affected object.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<String> {
        let request = self.client.client()?.request(method, format!("{}{path}", self.url));
        let answer = request.bearer_auth(&self.token).json(body).send().await?;
        let status = answer.status();
        let body = answer.text().await?;
        if !status.is_success() {
            bail!("{path}: {status}: {body}");
        }
        let body: Value = serde_json::from_str(&body)?;
        Ok(body["guid"].as_str().with_context(|| format!("{path} made nothing"))?.to_owned())
    }
}

/// The first group, which is there to be changed.
#[derive(Debug)]
pub(super) struct Changing {
    pub(super) path: String,
    pub(super) rules: Vec<Value>,
}

/// What was created.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) changing: Changing,
    /// The Cloud Controller's GUID of each space.
    pub(super) spaces: BTreeMap<SpaceGuid, String>,
}

/// Creates the groups, and the spaces that they are bound to.
pub(super) async fn fill(api: &Api, data: &Data, staging: bool) -> anyhow::Result<Filled> {
    let organization =
        api.call(Method::POST, "/v3/organizations", &json!({ "name": "load" })).await?;
    let mut spaces = BTreeMap::new();
    for wanted in data.groups().iter().flat_map(|group| &group.running.spaces) {
        if !spaces.contains_key(wanted) {
            let within = json!({ "organization": { "data": { "guid": organization } } });
            let body = json!({ "name": wanted.as_str(), "relationships": within });
            spaces.insert(wanted.clone(), api.call(Method::POST, "/v3/spaces", &body).await?);
        }
    }
    let mut changing = None;
    for group in data.groups() {
        let SecurityGroup { guid: _, name, rules, running, staging: _ } = group;
        let bound: Vec<_> =
            running.spaces.iter().map(|space| json!({ "guid": spaces[space] })).collect();
        let rules: Vec<_> = rules.iter().map(rule).collect();
        let staged = if staging { bound.as_slice() } else { &[] };
        let mut body = json!({
            "name": name, "rules": rules,
            "globally_enabled": { "running": running.everywhere, "staging": false },
        });
        if !bound.is_empty() {
            body["relationships"] = json!({
                "running_spaces": { "data": bound }, "staging_spaces": { "data": staged },
            });
        }
        let guid = api.call(Method::POST, "/v3/security_groups", &body).await?;
        let path = format!("/v3/security_groups/{guid}");
        changing.get_or_insert(Changing { path, rules });
    }
    let changing = changing.context("there is no group")?;
    Ok(Filled { changing, spaces })
}

/// A rule as the API writes it.
pub(super) fn rule(rule: &RuleSpec) -> Value {
    let RuleSpec { protocol, destination, ports, description, log, icmp_type: _, icmp_code: _ } =
        rule;
    json!({
        "protocol": protocol, "destination": destination, "ports": ports,
        "description": description, "log": log,
    })
}
