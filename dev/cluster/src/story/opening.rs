//! Chapters a and b: two apps, and an address that is closed and opened again.

use std::net::Ipv4Addr;

use anyhow::bail;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::runner::{Runner, THERE, TIMEOUT};
use crate::probe::{Outcome, Target};

/// A DNS server that the group `dns` allows.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// A private address: no default group allows it.
pub(super) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);

/// Two cells, two apps, two default groups.
pub(super) async fn two_apps(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner
        .chapter("a", "Two cells, appA in space s1 and appB in space s2, default groups bound")?;
    for container in runner.cluster.containers() {
        let (name, cell) = (&container.wanted.name, container.wanted.cell.name());
        let address = container.attachment.address;
        runner.seen(&format!("{name} runs on {cell}, {address}, handle {}", container.handle))?;
    }
    let path = "/v3/security_groups?names=public_networks,dns";
    let answer = runner.call(Method::GET, path, None).await?;
    for name in ["public_networks", "dns"] {
        let bound = resource(&answer.body, name)["globally_enabled"]["running"] == true;
        runner.seen(&format!("{name}: globally_enabled.running {bound}"))?;
        if !bound {
            bail!("not as expected: {name} is to be bound to all running apps");
        }
    }
    for app in ["appA", "appB"] {
        for target in [Target::tcp(THERE, 80), Target::Ping(THERE), Target::udp(RESOLVER, 53)] {
            runner.expect(app, target, Outcome::Open).await?;
        }
        runner.expect(app, Target::tcp(PRIVATE, 80), Outcome::Refused).await?;
    }
    Ok(())
}

/// Unbind the default group, then open one address again.
pub(super) async fn close_and_open(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("b", "Unbind public_networks, then open 1.2.3.4 again")?;
    let there = Target::tcp(THERE, 80);
    let public = runner.group("public_networks").await?;
    let off = json!({ "globally_enabled": { "running": false } });
    let path = format!("/v3/security_groups/{public}");
    let answer = runner.call(Method::PATCH, &path, Some(&off)).await?;
    let closed = Outcome::Refused;
    runner.turns("unbind public_networks: closed", "appA", there, closed, answer.at).await?;
    let ping = Target::Ping(THERE);
    runner.turns("unbind public_networks: closed", "appB", ping, closed, answer.at).await?;
    runner.nobody_was_restarted()?;

    runner.remark("A group for one address, bound to all running apps:")?;
    let rules = json!([{ "protocol": "all", "destination": THERE }]);
    let group = json!({ "name": "my-asg", "rules": rules });
    runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    let listed = runner.call(Method::GET, "/v3/security_groups", None).await?;
    let mine = resource(&listed.body, "my-asg");
    runner.seen(&format!("my-asg: {} {}", mine["guid"], mine["rules"]))?;
    let Some(guid) = mine["guid"].as_str() else {
        bail!("not as expected: my-asg is not in GET /v3/security_groups");
    };
    let on = json!({ "globally_enabled": { "running": true } });
    let path = format!("/v3/security_groups/{guid}");
    let answer = runner.call(Method::PATCH, &path, Some(&on)).await?;
    runner.turns("bind my-asg: open", "appA", there, Outcome::Open, answer.at).await?;
    runner.turns("bind my-asg: open", "appB", ping, Outcome::Open, answer.at).await?;
    runner.nobody_was_restarted()?;
    for cell in runner.cluster.network().cells().collect::<Vec<_>>() {
        let line = line_with(runner, cell, &THERE.to_string()).await?;
        runner.seen(&line)?;
    }
    Ok(())
}

/// The line of a cell's table that contains a text.
async fn line_with(
    runner: &Runner<'_>,
    cell: crate::topology::Cell,
    text: &str,
) -> anyhow::Result<String> {
    let list = ["list", "table", "inet", "portcullis"];
    let since = Instant::now();
    let mut table = runner.on_cell(cell, "nft", &list).await?;
    loop {
        if let Some(line) = table.lines().find(|line| line.contains(text)) {
            return Ok(line.trim().to_owned());
        }
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: {text} is not in the table of {}", cell.name());
        }
        sleep(std::time::Duration::from_millis(50)).await;
        table = runner.cluster.on_cell(cell, "nft", &list).await?;
    }
}

fn resource<'a>(page: &'a Value, name: &str) -> &'a Value {
    let resources = page["resources"].as_array().map_or(&[][..], Vec::as_slice);
    resources.iter().find(|group| group["name"] == name).unwrap_or(&Value::Null)
}
