//! Access control as a table.

use model::ids::CellId;
use policy_store::access::{Access, Action, CellIdentity, Pattern};
use runtime::tls::Identity;

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn access() -> Access {
    Access {
        writers: vec![pattern("cn=syncer")],
        cells: vec![pattern("ou=cell")],
        operators: vec![pattern("cn=operator")],
        pollers: None,
        cell_identity: CellIdentity::CommonName,
    }
}

fn identity(name: &str, unit: Option<&str>) -> Identity {
    Identity {
        common_name: Some(name.to_owned()),
        organizational_units: unit.map(str::to_owned).into_iter().collect(),
        ..Identity::default()
    }
}

fn watch(cell: &str) -> Action {
    Action::Watch(CellId::parse(cell).unwrap())
}

#[test]
fn each_role_may_what_its_row_says() {
    let actions = [Action::Replace, Action::List, watch("cell-1"), watch("cell-2"), Action::Status];
    let rows = [
        (identity("syncer", None), [true, true, false, false, true]),
        (identity("cell-1", Some("cell")), [false, false, true, false, false]),
        (identity("operator", None), [false, true, false, false, true]),
        // The name of a cell without the unit, a role's name as unit.
        (identity("cell-1", None), [false; 5]),
        (identity("stranger", Some("syncer")), [false; 5]),
        (identity("syncer2", None), [false; 5]),
        (Identity::default(), [false; 5]),
    ];
    for (identity, expected) in rows {
        for (action, may) in actions.iter().zip(expected) {
            let answer = access().check(Some(&identity), action.clone());
            assert_eq!(answer.is_ok(), may, "{identity:?} {action}");
        }
    }
    for action in actions {
        assert!(access().check(None, action.clone()).is_err(), "no certificate: {action}");
    }
}

#[test]
fn a_refusal_names_the_peer_and_the_action() {
    let told = |identity: Option<&Identity>, action| {
        access().check(identity, action).unwrap_err().to_string()
    };
    assert_eq!(
        told(Some(&identity("cell-1", Some("cell"))), watch("cell-2")),
        "the peer cn=cell-1,ou=cell may not watch as cell cell-2"
    );
    assert_eq!(
        told(None, Action::Replace),
        "a peer without a certificate may not replace security groups"
    );
    assert_eq!(
        told(Some(&Identity::default()), Action::Status),
        "a peer whose certificate names nobody may not see the status"
    );
}

#[test]
fn all_conditions_of_a_pattern_hold_for_one_certificate() {
    let cell = Identity {
        dns_names: vec!["a.example".to_owned(), "7.cell.internal".to_owned()],
        uris: vec!["spiffe://cf/cell".to_owned()],
        ..identity("x", Some("cell"))
    };
    for (text, fits) in [
        ("ou=cell", true),
        ("ou=cell,cn=x", true),
        ("ou=cell, dns=*.cell.internal", true),
        ("dns=7.*", true),
        ("dns=*", true),
        ("uri=spiffe://cf/cell", true),
        ("ou=cell,cn=y", false),
        ("dns=*.internal.example", false),
        ("dns=7.cell.internal*7.cell.internal", false),
        ("cn=*xx", false),
        ("cn=X", false),
    ] {
        let access = Access { operators: vec![pattern(text)], ..access() };
        assert_eq!(access.check(Some(&cell), Action::Status).is_ok(), fits, "{text}");
    }
}

#[test]
fn what_is_no_pattern_says_why() {
    for (text, problem) in [
        ("syncer", "\"syncer\" is not of the form cn=NAME"),
        ("", "\"\" is not of the form cn=NAME"),
        ("o=cf", "\"o\" is not one of cn, ou, dns and uri"),
        ("cn=", "\"cn=\" has no value"),
        ("cn=*a*", "\"cn=*a*\" has more than one *"),
        ("cn=a,", "\"\" is not of the form cn=NAME"),
    ] {
        assert_eq!(text.parse::<Pattern>().unwrap_err(), problem);
    }
}

#[test]
fn a_cell_is_who_its_certificate_says() {
    let shared = Identity { dns_names: vec!["cell-7".to_owned()], ..identity("x", Some("cell")) };
    for (cell_identity, may) in [
        (CellIdentity::CommonName, [false, false]),
        (CellIdentity::DnsName, [true, false]),
        (CellIdentity::Unproven, [true, true]),
    ] {
        let access = Access { cell_identity, ..access() };
        let answers = ["cell-7", "cell-8"].map(|id| access.check(Some(&shared), watch(id)).is_ok());
        assert_eq!(answers, may, "{cell_identity:?}");
    }
    // Verified or not, the id has to be a valid cell id.
    let access = Access { cell_identity: CellIdentity::Unproven, ..access() };
    assert!(access.check(Some(&identity("operator", None)), watch("operator")).is_err());
}

/// As the original: every certificate, unless patterns are configured.
#[test]
fn who_may_poll() {
    let (anybody, agent) = (identity("anybody", None), identity("agent", None));
    let may = |pollers: Option<Vec<Pattern>>| {
        let access = Access { pollers, ..access() };
        [None, Some(&anybody), Some(&agent)].map(|who| access.check(who, Action::Poll).is_ok())
    };
    assert_eq!(may(None), [false, true, true]);
    assert_eq!(may(Some(vec![pattern("cn=agent")])), [false, false, true]);
    assert_eq!(may(Some(Vec::new())), [false, false, false]);
}
