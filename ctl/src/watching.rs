//! `watch cells`: what changes about cells, by asking again and again.

use std::{collections::BTreeMap, time::Duration};

use runtime::backoff::Backoff;

use crate::{
    cells::{self, CELLS, Seen},
    connect::Connection,
    escape::escape,
    output::Output,
    refused::is_final,
    report,
};

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Initial and maximum delay after a failure.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// Prints each cell, and then each change, until the user interrupts.
pub(crate) async fn cells(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    let mut known: BTreeMap<String, Seen> = BTreeMap::new();
    let mut failing = false;
    loop {
        match cells::fetch(connection, "").await {
            Err(error) if known.is_empty() || is_final(&error) => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    report::warn(&format!("watch cells: {error:#}; trying again"));
                }
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
            Ok(found) => {
                for seen in found {
                    let line = difference(known.get(seen.id()), &seen);
                    known.insert(seen.id().to_owned(), seen.clone());
                    if let Some(line) = line {
                        let line = format!("{}  {line}", escape(seen.id()));
                        report::event(CELLS, seen, output, &line)?;
                    }
                }
            }
        }
        if std::mem::take(&mut failing) {
            report::warn("watch cells: the policy store answers again");
        }
        backoff.reset();
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What is different, escaped; `None` if nothing is.
fn difference(before: Option<&Seen>, now: &Seen) -> Option<String> {
    let (status, generation) = (now.status(), now.status().enforced_generation);
    let mut parts = Vec::new();
    let old = before.map(|before| (before.status(), before.cell.last_error.as_str()));
    let changed = |get: fn(&proto::policy_v1::status_response::Cell) -> u64| {
        old.as_ref().is_none_or(|(old, _)| get(old) != get(&status))
    };
    if changed(|status| status.connected.into()) {
        parts.push(if status.connected { "connected" } else { "disconnected" }.to_owned());
    }
    if changed(|status| status.enforced_generation) {
        let lag = crate::field::duration(now.cell.lag).map(crate::field::milliseconds);
        let lag = lag.map(|lag| format!(" after {lag} ms")).unwrap_or_default();
        parts.push(format!("enforces generation {generation}{lag}"));
    }
    if changed(|status| status.isolated_rules.into()) {
        parts.push(format!("{} isolated rules", status.isolated_rules));
    }
    if changed(|status| status.containers.into()) {
        parts.push(format!("{} containers", status.containers));
    }
    let error = now.cell.last_error.as_str();
    match old.map_or("", |(_, error)| error) {
        before if before == error => {}
        _ if error.is_empty() => parts.push("no error".to_owned()),
        _ => parts.push(format!("error: {}", escape(error))),
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::{cells_response, status_response};

    use super::*;

    fn seen(connected: bool, enforced_generation: u64, error: &str) -> Seen {
        let status = status_response::Cell {
            cell_id: "cell-1".to_owned(),
            connected,
            enforced_generation,
            ..Default::default()
        };
        let cell = cells_response::Cell {
            status: Some(status),
            last_error: error.to_owned(),
            ..Default::default()
        };
        Seen { cell, generation: 9, now: None }
    }

    #[test]
    fn only_differences_are_told() {
        let one = seen(true, 3, "");
        let all = "connected, enforces generation 3, 0 isolated rules, 0 containers";
        assert_eq!(difference(None, &one).as_deref(), Some(all));
        assert_eq!(difference(Some(&one), &one), None);
        let line = difference(Some(&one), &seen(false, 4, "no\u{1b}"));
        let expected = "disconnected, enforces generation 4, error: no\\u{1b}";
        assert_eq!(line.as_deref(), Some(expected));
        let line = difference(Some(&seen(true, 3, "bad")), &one);
        assert_eq!(line.as_deref(), Some("no error"));
    }
}
