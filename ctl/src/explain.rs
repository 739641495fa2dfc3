//! The command `explain`: why a connection is allowed or denied.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use proto::cell_v1::{
    Container, EffectiveRule, ExplainRequest, ExplainResponse, RuleSource, cell_client::CellClient,
    explain_response::Verdict,
};

use crate::{
    cell::Written,
    cli::Protocol,
    connect::Connection,
    field::{Field, Tone},
    report::Report,
};

/// Asks the agent of this VM. Also returns the exit status for the verdict.
pub(crate) async fn explain(
    connection: &Connection,
    handle: String,
    protocol: Protocol,
    destination: &str,
) -> anyhow::Result<(Report, u8)> {
    let request = request(handle, protocol, destination)?;
    let mut client = CellClient::new(connection.to_cell());
    let answer = connection.ask("explain", client.explain(request)).await?.into_inner();
    let code = exit_code(&answer);
    Ok((Report::brief(EXPLAINED, answer), code))
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

fn verdict(answer: &ExplainResponse) -> &'static str {
    phrase(answer.verdict())
}

/// The verdict in one word or phrase.
pub(crate) fn phrase(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unspecified => "unknown",
        Verdict::Allowed => "allowed",
        Verdict::AllowedAndLogged => "allowed and logged",
        Verdict::Denied => "denied",
        Verdict::NotDecided => "not decided by security groups",
    }
}

/// The exit status with `--exit-code`.
fn exit_code(answer: &ExplainResponse) -> u8 {
    match answer.verdict() {
        Verdict::Allowed | Verdict::AllowedAndLogged => 0,
        Verdict::Denied => 3,
        Verdict::NotDecided => 4,
        Verdict::Unspecified => 5,
    }
}

pub(crate) const EXPLAINED: &[Field<ExplainResponse>] = &[
    Field::toned(
        Field::text("verdict", |answer| verdict(answer).to_owned()),
        |answer| match answer.verdict() {
            Verdict::Allowed | Verdict::AllowedAndLogged => Tone::Good,
            Verdict::Denied => Tone::Bad,
            Verdict::NotDecided | Verdict::Unspecified => Tone::Warning,
        },
    ),
    Field::text("reason", |answer| answer.reason.clone()),
    Field::text("rule", |answer| decisive(answer).map(|rule| rule.line()).unwrap_or_default()),
    Field::texts("not_enforced", |answer| {
        let isolated = answer.isolated.iter().cloned();
        let isolated = isolated.map(|rule| Written::new(rule.rule, rule.source, rule.reason));
        isolated.map(|rule| format!("{}: {}", rule.line(), rule.problem)).collect()
    }),
    Field::texts("near_misses", |answer| {
        let misses = answer.near_misses.iter();
        misses
            .map(|miss| format!("{}: {}", written(miss.rule.clone()).line(), miss.reason))
            .collect()
    }),
    Field::text("container", |answer| of_container(answer, |container| &container.handle)),
    Field::text("app", |answer| of_container(answer, |container| &container.app_guid)),
    Field::text("space", |answer| of_container(answer, |container| &container.space_guid)),
    Field::only_json(Field::text("group", |answer| of_source(answer, |source| source.group_name))),
    Field::only_json(Field::text("group_guid", |answer| {
        of_source(answer, |source| source.group_guid)
    })),
    Field::only_json(Field::integer("rule_index", |answer| {
        decisive(answer).map(|rule| rule.source.rule_index.into())
    })),
];

fn written(rule: Option<EffectiveRule>) -> Written {
    let EffectiveRule { rule, source } = rule.unwrap_or_default();
    Written::new(rule, source, String::new())
}

fn decisive(answer: &ExplainResponse) -> Option<Written> {
    answer.decisive.clone().map(|rule| written(Some(rule)))
}

fn of_source(answer: &ExplainResponse, get: fn(RuleSource) -> String) -> String {
    decisive(answer).map(|rule| get(rule.source)).unwrap_or_default()
}

fn of_container(answer: &ExplainResponse, get: fn(&Container) -> &String) -> String {
    answer.container.as_ref().map(|container| get(container).clone()).unwrap_or_default()
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
    fn the_verdict_comes_first_and_has_an_exit_code() {
        let keys: Vec<_> = EXPLAINED.iter().map(|field| field.documented().0).collect();
        assert_eq!(keys[..3], ["verdict", "reason", "rule"]);
        let codes = [Verdict::Allowed, Verdict::AllowedAndLogged, Verdict::Denied]
            .into_iter()
            .chain([Verdict::NotDecided, Verdict::Unspecified])
            .map(|verdict| {
                exit_code(&ExplainResponse { verdict: verdict.into(), ..Default::default() })
            });
        assert_eq!(codes.collect::<Vec<_>>(), [0, 0, 3, 4, 5]);
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
