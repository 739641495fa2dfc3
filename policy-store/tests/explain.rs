//! Explain and Reach over gRPC.

use model::{group::Scope, group::SecurityGroup, rule::RuleSpec};
use proto::policy_v1::{
    Connection, ExplainRequest, ExplainResponse, Lifecycle, ReachRequest, SourcedRule,
};
use tonic::{Code, Status};

use crate::{
    grpc::assert_status,
    support::{
        client::replace,
        sets::{bound, fenced, global, set, space},
        site::{Foundation, Served},
    },
};

fn rule(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
    RuleSpec {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        ..RuleSpec::default()
    }
}

fn tcp(destination: &str, port: u32) -> Connection {
    let (protocol, destination) = ("tcp".to_owned(), destination.to_owned());
    Connection { protocol, destination, port, ..Connection::default() }
}

fn with(group: SecurityGroup, rules: &[RuleSpec]) -> SecurityGroup {
    SecurityGroup { rules: rules.to_vec(), ..group }
}

/// `dns` everywhere; `db` for apps of s1, with a logging rule and one that cannot be enforced;
/// `build` for staging in s1.
async fn served() -> Served {
    let served = Served::start().await;
    let logged = RuleSpec { log: true, ..rule("tcp", "10.0.0.0/24,10.1.0.5", "5432,6000-6010") };
    let staging = Scope { everywhere: false, spaces: [space("s1")].into() };
    let build =
        SecurityGroup { running: Scope::default(), staging, ..bound("build", "build", &[]) };
    let groups = set([
        with(
            global("dns", "dns"),
            &[rule("udp", "10.0.0.53", "53"), rule("icmp", "10.0.0.53", "")],
        ),
        with(
            bound("db", "db", &["s1"]),
            &[rule("tcp", "10.9.0.0/255.255.0.0", "443"), logged, rule("tcp", "fd00::/64", "5432")],
        ),
        with(build, &[rule("all", "10.0.0.0/8", "")]),
    ]);
    replace(&served.writer(), &fenced(&groups, "syncer-a", 1)).await.unwrap();
    served
}

async fn explain(
    client: &Foundation,
    space: &str,
    lifecycle: Lifecycle,
    connection: Connection,
) -> Result<ExplainResponse, Status> {
    let request = ExplainRequest {
        space_guid: space.to_owned(),
        lifecycle: lifecycle.into(),
        connection: Some(connection),
        ..ExplainRequest::default()
    };
    client.clone().explain(request).await.map(tonic::Response::into_inner)
}

fn place(rule: Option<SourcedRule>) -> (String, u32) {
    let rule = rule.unwrap();
    (rule.group_name, rule.rule_index)
}

#[tokio::test]
async fn the_groups_of_a_space_decide() {
    let served = served().await;
    let operator = served.foundation("operator", None);
    let ask = |space, lifecycle, connection| explain(&operator, space, lifecycle, connection);

    let allowed = ask("s1", Lifecycle::Running, tcp("10.1.0.5", 6005)).await.unwrap();
    assert!(allowed.allowed && allowed.logged && allowed.space_known);
    assert_eq!(
        allowed.reason,
        "rule 1 of security group db (db) allows tcp port 6000-6010 to 10.1.0.5"
    );
    assert_eq!(place(allowed.decisive), ("db".to_owned(), 1));
    assert_eq!(allowed.generation, 1);

    let v6 = ask("s1", Lifecycle::Running, tcp("fd00::9", 5432)).await.unwrap();
    assert_eq!((v6.allowed, place(v6.decisive)), (true, ("db".to_owned(), 2)));

    let staging = ask("s1", Lifecycle::Staging, tcp("10.1.0.5", 1)).await.unwrap();
    assert_eq!(place(staging.decisive), ("build".to_owned(), 0));

    let near = ask("s1", Lifecycle::Running, tcp("10.0.0.7", 5433)).await.unwrap();
    assert!(!near.allowed);
    assert_eq!(near.reason, "none of the 4 rules of the space matches");
    assert_eq!(place(near.near_misses[0].rule.clone()), ("db".to_owned(), 1));
    assert_eq!(near.near_misses[0].reason, "port 5433 is not 5432");

    let meant = ask("s1", Lifecycle::Running, tcp("10.9.1.1", 443)).await.unwrap();
    assert!(!meant.allowed);
    assert!(
        meant.reason.starts_with("rule 0 of security group db (db) would allow it"),
        "{meant:?}"
    );
    assert_eq!(place(meant.not_enforced[0].rule.clone()), ("db".to_owned(), 0));

    let unknown = ask("s9", Lifecycle::Running, tcp("10.0.0.53", 53)).await.unwrap();
    assert!(!unknown.allowed && !unknown.space_known);
    assert_eq!(unknown.near_misses[0].reason, "tcp is not udp");
    served.stop().await;
}

#[tokio::test]
async fn every_group_that_allows_is_listed_with_its_spaces() {
    let served = served().await;
    let operator = served.foundation("operator", None);
    let reach = async |connection| {
        let request = ReachRequest { connection: Some(connection) };
        operator.clone().reach(request).await.unwrap().into_inner()
    };
    let found = reach(tcp("10.0.0.9", 5432)).await;
    let names: Vec<_> = found.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["build", "db"]);
    let [build, db] = found.groups.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (build.staging_default, build.staging_space_guids.as_slice()),
        (false, &["s1".to_owned()][..])
    );
    assert_eq!(db.running_space_guids, ["s1"]);
    assert_eq!(db.rules.iter().map(|rule| rule.rule_index).collect::<Vec<_>>(), [1]);

    let echo = Connection { protocol: "icmp".to_owned(), icmp_type: 0, ..tcp("10.0.0.53", 0) };
    let found = reach(echo).await;
    assert_eq!(found.groups.len(), 2, "build and dns");
    assert!(found.groups.iter().any(|group| group.running_default && group.name == "dns"));
    assert!(reach(tcp("192.0.2.1", 1)).await.groups.is_empty());
    served.stop().await;
}

#[tokio::test]
async fn bad_questions_name_the_field_and_cells_may_not_ask() {
    let served = served().await;
    let operator = served.foundation("operator", None);
    for (space, connection, message) in [
        ("", tcp("10.0.0.1", 1), "one of space_guid, app_guid and handle must be set"),
        ("s1", tcp("db.example.com", 1), "connection.destination: \"db.example.com\""),
        ("s1", tcp("10.0.0.1", 70_000), "connection.port: 70000"),
        (
            "s1",
            Connection { protocol: "sctp".to_owned(), ..tcp("10.0.0.1", 1) },
            "connection.protocol: \"sctp\"",
        ),
    ] {
        let error = explain(&operator, space, Lifecycle::Running, connection).await.unwrap_err();
        assert_status(&error, Code::InvalidArgument, message);
    }
    let error = operator.clone().reach(ReachRequest { connection: None }).await.unwrap_err();
    assert_status(&error, Code::InvalidArgument, "connection: is missing");
    let cell = served.foundation("cell-1", Some("cell"));
    let error = explain(&cell, "s1", Lifecycle::Running, tcp("10.0.0.1", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    served.stop().await;
}
