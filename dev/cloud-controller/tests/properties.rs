//! Properties that hold for any untrusted input.

use cloud_controller::json::{Json, Object};
use cloud_controller::state::State;
use cloud_controller::state::access::{Authority, Caller};
use cloud_controller::state::{Lifecycle, Moment};
use cloud_controller::validate::rules::{self, Flags};
use cloud_controller::validate::{group, query, resources};
use jiff::Timestamp;
use proptest::prelude::*;

fn json() -> impl Strategy<Value = Json> {
    let text = prop_oneof![
        "[a-z0-9.:/,%\\[\\] -]{0,24}",
        "(tcp|udp|icmp|icmpv6|all)",
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?",
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        (-300i64..300).prop_map(Json::from),
        text.prop_map(Json::String),
    ];
    let key = prop_oneof![
        "(protocol|destination|ports|type|code|log|description)",
        "(name|rules|relationships|globally_enabled|data|guid|running|running_spaces|space|user|type)",
        any::<String>(),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let entries = proptest::collection::vec((key.clone(), inner.clone()), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Json::Array),
            entries.prop_map(|entries| {
                let mut object = Object::new();
                for (key, value) in entries {
                    object.set(key, value);
                }
                Json::Object(object)
            }),
        ]
    })
}

fn flags() -> impl Strategy<Value = Flags> {
    (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(ipv6, comma_destinations, strict)| Flags { ipv6, comma_destinations, strict })
}

fn rule(protocol: &str, destination: &str) -> Json {
    let mut rule = Object::new();
    rule.set("protocol", protocol);
    rule.set("destination", destination);
    if protocol != "all" {
        rule.set("ports", "1");
    }
    Json::Array(vec![rule.into()])
}

proptest! {
    /// No body makes the controller panic; an accepted one is stored as sent, and a
    /// written JSON text reads back the same.
    #[test]
    fn any_body_is_accepted_or_refused(body in json(), flags in flags()) {
        prop_assert_eq!(&Json::parse(body.to_text().as_bytes()).unwrap(), &body);
        let Some(object) = body.as_object() else { return Ok(()) };
        let admin = Caller { id: String::new(), name: String::new(), authority: Authority::Admin };
        let now = Timestamp::UNIX_EPOCH;
        let moment = |guid: &str| Moment { now, guid: guid.to_owned() };
        let mut state = State::fresh(now, || "seed".to_owned());
        if let Ok(made) = state.create_group(&admin, object, flags, &moment("g")) {
            prop_assert_eq!(Some(made.name.as_str()), object.get("name").and_then(Json::as_str));
            if let Some(rules) = object.get("rules") {
                prop_assert_eq!(&made.rules, rules);
            }
        }
        let stamp = state.last_update();
        let updated = state.update_group(&admin, "seed", object, flags, &moment("")).is_ok();
        prop_assert_eq!(updated, state.last_update() > stamp);
        let _any = state.bind_group(&admin, "seed", Lifecycle::Staging, object, &moment(""));
        let _any = (group::bind(object), resources::role(object), resources::space(object));
        let _any = (resources::organization(object), resources::user(object));
    }

    /// The second layer accepts every destination that the first has accepted, unless
    /// there is none; the strict option refuses more, never less.
    #[test]
    fn the_layers_agree_about_destinations(
        destination in prop_oneof![
            "[0-9a-f.:/,%\\[\\] -]{1,20}",
            "[0-9]{1,3}(\\.[0-9]{1,3}){3}([-/,][0-9]{1,3}(\\.[0-9]{1,3}){0,3})?",
            "[0-9a-f]{1,4}(:[0-9a-f]{0,4}){1,8}(/[0-9]{1,3})?",
        ],
        protocol in "(all|tcp)",
        flags in flags(),
    ) {
        let rules = rule(&protocol, &destination);
        let loose = Flags { strict: false, ..flags };
        let strict = Flags { strict: true, ..flags };
        prop_assert_eq!(rules::message_errors(&rules, loose), rules::message_errors(&rules, strict));
        if rules::message_errors(&rules, loose).is_empty() {
            prop_assert_eq!(rules::model_errors(&rules, loose), Vec::<String>::new());
        }
    }

    /// Every address that the standard library accepts is accepted.
    #[test]
    fn plain_addresses_are_accepted(v4 in any::<[u8; 4]>(), v6 in any::<[u16; 8]>(), last in 0u8..=128) {
        let flags = Flags { ipv6: true, comma_destinations: true, strict: true };
        let (v4, v6) = (std::net::Ipv4Addr::from(v4), std::net::Ipv6Addr::from(v6));
        let prefix = last.min(32);
        for text in [
            v4.to_string(),
            v6.to_string(),
            format!("{v4}/{prefix}"),
            format!("{v6}/{last}"),
            format!("{v4}-255.255.255.255"),
            format!("::-{v6}"),
            format!("{v4},{v6}"),
        ] {
            let rules = rule("all", &text);
            let errors = (rules::message_errors(&rules, flags), rules::model_errors(&rules, flags));
            prop_assert_eq!(errors, (vec![], vec![]), "{}", text);
        }
    }

    /// No query causes a panic, and the links of an accepted one parse to the same
    /// query.
    #[test]
    fn any_query_is_accepted_or_refused(
        parameters in proptest::collection::vec(
            (
                prop_oneof![
                    "(page|per_page|order_by|names|guids|created_ats\\[lt\\]|globally_enabled_running)",
                    any::<String>(),
                ],
                prop_oneof![
                    "[0-9]{1,4}", "(true|false|-created_at|2026-01-01T00:00:00Z)", "[a-z%,2C ]{0,9}",
                    any::<String>(),
                ],
            ),
            0..5,
        ),
    ) {
        let Ok(first) = query::read(&parameters, &query::SECURITY_GROUPS) else { return Ok(()) };
        let mut again = first.filter_parameters();
        again.push(("page".to_owned(), first.page.to_string()));
        again.push(("per_page".to_owned(), first.per_page.to_string()));
        again.extend(first.order_by.map(|order| ("order_by".to_owned(), order.to_parameter())));
        prop_assert_eq!(query::read(&again, &query::SECURITY_GROUPS), Ok(first));
    }
}
