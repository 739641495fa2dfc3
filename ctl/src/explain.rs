//! "Why does this connection pass, or not?"

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use proto::cell_v1::{
    EffectiveRule, ExplainRequest, ExplainResponse, cell_client::CellClient,
    explain_response::Verdict,
};
use serde_json::{Value, json};

use crate::{
    cell::rule_fields,
    cli::{Connection, Protocol},
    connect::explained,
    report::Report,
};

/// Asks the agent of this machine.
pub(crate) async fn explain(
    connection: &Connection,
    handle: String,
    protocol: Protocol,
    destination: &str,
) -> anyhow::Result<Report> {
    let request = request(handle, protocol, destination)?;
    let answer = CellClient::new(connection.to_cell()).explain(request).await;
    Ok(report(&answer.map_err(|status| explained("explain", &status))?.into_inner()))
}

fn request(
    handle: String,
    protocol: Protocol,
    destination: &str,
) -> anyhow::Result<ExplainRequest> {
    let request = ExplainRequest { handle, ..Default::default() };
    match protocol {
        Protocol::Tcp | Protocol::Udp => {
            let name = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
            let to: SocketAddr = destination.parse().with_context(|| {
                format!("{destination:?} is not ADDRESS:PORT, such as 1.2.3.4:80")
            })?;
            Ok(ExplainRequest {
                protocol: name.to_owned(),
                destination: to.ip().to_string(),
                port: to.port().into(),
                ..request
            })
        }
        Protocol::Icmp => {
            let (address, icmp_type, icmp_code) = icmp(destination).with_context(|| {
                format!("{destination:?} is not ADDRESS or ADDRESS/TYPE/CODE, such as 1.2.3.4/8/0")
            })?;
            Ok(ExplainRequest {
                protocol: "icmp".to_owned(),
                destination: address.to_string(),
                icmp_type: icmp_type.into(),
                icmp_code: icmp_code.into(),
                ..request
            })
        }
    }
}

fn icmp(destination: &str) -> Option<(IpAddr, u8, u8)> {
    let mut parts = destination.split('/');
    let address = parts.next()?.parse().ok()?;
    match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => Some((address, 8, 0)),
        (Some(icmp_type), Some(code), None) => {
            Some((address, icmp_type.parse().ok()?, code.parse().ok()?))
        }
        _ => None,
    }
}

fn report(answer: &ExplainResponse) -> Report {
    let verdict = match answer.verdict() {
        Verdict::Unspecified => "unknown",
        Verdict::Allowed => "allowed",
        Verdict::AllowedAndLogged => "allowed and logged",
        Verdict::Denied => "denied",
        Verdict::NotDecided => "not decided by security groups",
    };
    let near: Vec<Value> = answer
        .near_misses
        .iter()
        .map(|miss| format!("{}: {}", shown(miss.rule.as_ref()), miss.reason).into())
        .collect();
    Report::record(json!({
        "verdict": verdict,
        "reason": answer.reason,
        "rule": answer.decisive.as_ref().map(|rule| shown(Some(rule))),
        "near_misses": near,
    }))
}

/// `tcp 10.0.0.0/8 80 (group web, rule 3)`.
fn shown(rule: Option<&EffectiveRule>) -> String {
    let rule = rule.cloned().unwrap_or_default();
    let source = rule.source.unwrap_or_default();
    let fields = rule_fields(&rule.rule.unwrap_or_default());
    let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let words = [text("protocol"), text("destination"), text("ports")];
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("{} (group {}, rule {})", words.join(" "), source.group_name, source.rule_index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(protocol: Protocol, destination: &str) -> Result<(String, u32, u32, u32), String> {
        request("c1".to_owned(), protocol, destination)
            .map(|r| (r.destination, r.port, r.icmp_type, r.icmp_code))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn destinations_are_read_by_protocol() {
        assert_eq!(read(Protocol::Tcp, "1.2.3.4:80"), Ok(("1.2.3.4".into(), 80, 0, 0)));
        assert_eq!(read(Protocol::Udp, "[::1]:53"), Ok(("::1".into(), 53, 0, 0)));
        assert_eq!(read(Protocol::Icmp, "1.2.3.4"), Ok(("1.2.3.4".into(), 0, 8, 0)));
        assert_eq!(read(Protocol::Icmp, "1.2.3.4/3/1"), Ok(("1.2.3.4".into(), 0, 3, 1)));
    }

    #[test]
    fn a_bad_destination_is_named_with_an_example() {
        for (protocol, text) in
            [(Protocol::Tcp, "1.2.3.4"), (Protocol::Icmp, "1.2.3.4/8"), (Protocol::Icmp, "x/8/0")]
        {
            let problem = read(protocol, text).unwrap_err();
            assert!(problem.contains(text) && problem.contains("such as"), "{problem}");
        }
    }
}
