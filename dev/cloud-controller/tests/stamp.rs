//! The stamp of the last update: the requests that change it, and strict monotonicity.

use cloud_controller::json::{Json, Object};
use cloud_controller::state::access::{Authority, Caller};
use cloud_controller::state::{Lifecycle, Moment, State};
use cloud_controller::validate::rules::Flags;
use jiff::Timestamp;
use proptest::prelude::*;

use crate::support::Controller;

const GROUPS: &str = "/v3/security_groups";

#[tokio::test]
async fn every_accepted_change_of_a_group_moves_it_and_nothing_else_does() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s").await;
    let zero = "1970-01-01T00:00:00.000000000+00:00";
    assert_eq!(controller.last_update().await, zero, "organizations and spaces do not count");
    let made = admin.post(GROUPS, r#"{"name":"g"}"#).await;
    let url = format!("{GROUPS}/{}", made.guid());
    let bind = format!("{url}/relationships/running_spaces");
    let data = format!(r#"{{"data":[{{"guid":"{space}"}}]}}"#);
    let mut last = controller.last_update().await;
    assert!(last.as_str() > zero && last.len() == zero.len() && last.ends_with("000+00:00"));
    for (what, moves) in [
        ("no-op patch", true),
        ("bind", true),
        ("bind again", true),
        ("unbind", true),
        ("unbind again", false),
        ("bad patch", false),
        ("duplicate", false),
        ("read", false),
        ("bind once more", true),
        ("delete the space", false),
        ("delete the organization", false),
        ("delete", true),
        ("delete again", false),
    ] {
        let reply = match what {
            "no-op patch" => admin.patch(&url, "{}").await,
            "bind" | "bind again" | "bind once more" => admin.post(&bind, &data).await,
            "unbind" | "unbind again" => admin.delete(&format!("{bind}/{space}")).await,
            "bad patch" => admin.patch(&url, r#"{"rules":[{}]}"#).await,
            "duplicate" => admin.post(GROUPS, r#"{"name":"dns"}"#).await,
            "read" => admin.get(GROUPS).await,
            "delete the space" => admin.delete(&format!("/v3/spaces/{space}")).await,
            "delete the organization" => {
                admin.delete(&format!("/v3/organizations/{organization}")).await
            }
            _ => admin.delete(&url).await,
        };
        let now = controller.last_update().await;
        assert_eq!(now > last, moves, "{what}: {} {last} {now}", reply.text);
        assert!(now >= last, "{what}");
        last = now;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8, bool),
    Update(u8, bool),
    Bind(u8, bool),
    Unbind(u8),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let step = prop_oneof![
        (0u8..4, any::<bool>()).prop_map(|(n, good)| Step::Create(n, good)),
        (0u8..4, any::<bool>()).prop_map(|(n, good)| Step::Update(n, good)),
        (0u8..4, any::<bool>()).prop_map(|(n, good)| Step::Bind(n, good)),
        (0u8..4).prop_map(Step::Unbind),
        (0u8..4).prop_map(Step::Delete),
    ];
    proptest::collection::vec((-3i64..3, step), 1..40)
}

fn object(text: &str) -> Object {
    Json::parse(text.as_bytes()).unwrap().as_object().unwrap().clone()
}

proptest! {
    /// Also while the clock stands still or goes back.
    #[test]
    fn it_rises_with_accepted_changes_and_only_with_them(steps in steps()) {
        let admin = Caller { id: String::new(), name: String::new(), authority: Authority::Admin };
        let flags = Flags { ipv6: false, comma_destinations: true, strict: false };
        let mut clock = 1_000_000i64;
        let at = |microseconds, guid: String| {
            Moment { now: Timestamp::from_microsecond(microseconds).unwrap(), guid }
        };
        let mut state = State::default();
        let start = at(clock, "o".to_owned());
        state.create_organization(&admin, &object(r#"{"name":"o"}"#), &start).unwrap();
        let space = object(r#"{"name":"s","relationships":{"organization":{"data":{"guid":"o"}}}}"#);
        state.create_space(&admin, &space, &at(clock, "s".to_owned())).unwrap();
        prop_assert_eq!(state.last_update(), 0);
        for (tick, step) in steps {
            clock += tick;
            let before = (state.last_update(), format!("{:?}", state.groups().collect::<Vec<_>>()));
            let rules = |good| if good { "[]" } else { "[{}]" };
            let running = Lifecycle::Running;
            let accepted = match step {
                Step::Create(n, good) => {
                    let body = object(&format!(r#"{{"name":"{n}","rules":{}}}"#, rules(good)));
                    state.create_group(&admin, &body, flags, &at(clock, format!("g{n}"))).is_ok()
                }
                Step::Update(n, good) => {
                    let body = object(&format!(r#"{{"rules":{}}}"#, rules(good)));
                    let moment = at(clock, String::new());
                    state.update_group(&admin, &format!("g{n}"), &body, flags, &moment).is_ok()
                }
                Step::Bind(n, good) => {
                    let guid = if good { "s" } else { "none" };
                    let body = object(&format!(r#"{{"data":[{{"guid":"{guid}"}}]}}"#));
                    let moment = at(clock, String::new());
                    state.bind_group(&admin, &format!("g{n}"), running, &body, &moment).is_ok()
                }
                Step::Unbind(n) => {
                    let moment = at(clock, String::new());
                    state.unbind_group(&admin, &format!("g{n}"), running, "s", &moment).is_ok()
                }
                Step::Delete(n) => {
                    let moment = at(clock, format!("job-{clock}"));
                    state.delete_group(&admin, &format!("g{n}"), &moment).is_ok()
                }
            };
            if accepted {
                prop_assert!(state.last_update() > before.0);
            } else {
                let after = format!("{:?}", state.groups().collect::<Vec<_>>());
                prop_assert_eq!((state.last_update(), after), before);
            }
        }
    }
}
