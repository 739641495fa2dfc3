//! Many changes, one after another: time of each from the Cloud Controller's response to the
//! first packet with the new verdict.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::json;
use tokio::time::sleep;

use super::opening::PRIVATE;
use crate::fixtures::Stage;
use crate::launch::Cluster;
use crate::probe::{self, Outcome, Target};
use crate::terminal::say;

/// Timeout of a change.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause before a change, so that changes come at any time of the poll interval.
const PAUSE_MS: u64 = 500;
/// Width of a row of the printed distribution, in milliseconds.
const ROW_MS: u128 = 25;
/// Length of the longest bar.
const BAR: usize = 60;

/// Binds and unbinds a group, `count` times in all, prints the distribution of the times, and
/// writes them to a file, as a JSON array of milliseconds.
pub(crate) async fn measure(
    cluster: &Cluster,
    stage: &Stage,
    count: u32,
    times: Option<&Path>,
) -> anyhow::Result<()> {
    let target = Target::tcp(PRIVATE, 443);
    let rules = json!([{ "protocol": "tcp", "destination": PRIVATE, "ports": "443" }]);
    let group = json!({ "name": "toggled", "rules": rules });
    let created = stage.cloud.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    let guid = created.body["guid"].as_str().context("the new group has no guid")?;
    let path = format!("/v3/security_groups/{guid}");
    let container = cluster.container("appA")?;
    let mut all = Vec::new();
    for number in 1..=count {
        sleep(Duration::from_millis(fastrand::u64(..PAUSE_MS))).await;
        let bind = number % 2 == 1;
        let body = json!({ "globally_enabled": { "running": bind } });
        let answer = stage.cloud.call(Method::PATCH, &path, Some(&body)).await?;
        let wanted = if bind { Outcome::Open } else { Outcome::Refused };
        let seen = probe::until(container.resident(), target, wanted, answer.at, TIMEOUT).await?;
        let took = seen.map_err(|seen| {
            anyhow::anyhow!("change {number}: appA to {target} is to be {wanted}, and is {seen}")
        })?;
        all.push(took);
        if number % 20 == 0 {
            say(&format!("{number} of {count} changes\n"))?;
        }
    }
    if let Some(path) = times {
        let milliseconds: Vec<f64> = all.iter().map(|took| took.as_secs_f64() * 1e3).collect();
        std::fs::write(path, json!(milliseconds).to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    all.sort_unstable();
    let Some(text) = distribution(&all) else { bail!("no change was made") };
    say(&text)
}

/// Quantiles and a bar for each row of the distribution. `None`: no times.
fn distribution(sorted: &[Duration]) -> Option<String> {
    let (first, last) = (sorted.first()?, sorted.last()?);
    let at = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)];
    let mut text = format!(
        "{} changes, from the Cloud Controller's response to the first packet: p50 {} ms, p90 {} \
         ms, p99 {} ms, max {} ms\n",
        sorted.len(),
        at(50).as_millis(),
        at(90).as_millis(),
        at(99).as_millis(),
        last.as_millis()
    );
    let row = |took: &Duration| took.as_millis() / ROW_MS;
    let count = |number| sorted.iter().filter(|took| row(took) == number).count();
    let rows: Vec<(u128, usize)> =
        (row(first)..=row(last)).map(|number| (number, count(number))).collect();
    let most = rows.iter().map(|(_, count)| *count).max()?;
    for (number, count) in rows {
        let bar = "#".repeat((count * BAR).div_ceil(most));
        let line = format!("{:>6} ms {count:>4} {bar}", number * ROW_MS);
        writeln!(text, "{}", line.trim_end()).ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_has_a_row_for_each_interval() {
        let times = [10, 20, 30, 90].map(Duration::from_millis);
        let text = distribution(&times).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("p50 30 ms, p90 90 ms, p99 90 ms, max 90 ms"), "{text}");
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].starts_with("     0 ms    2 ####"), "{text}");
        assert_eq!(lines[3], "    50 ms    0");
        assert_eq!(distribution(&[]), None);
    }
}
