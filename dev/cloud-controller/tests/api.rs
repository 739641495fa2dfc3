//! Security groups over HTTP: responses and errors of each endpoint.

use cloud_controller::json::Json;
use reqwest::Method;

use crate::support::{Controller, Reply, send};

const GROUPS: &str = "/v3/security_groups";

/// Status, code and title of the only error.
fn error(reply: &Reply) -> (u16, i64, String, String) {
    let json = reply.json();
    let errors = json.at(&["errors"]).and_then(Json::as_array).unwrap();
    assert_eq!(errors.len(), 1, "{}", reply.text);
    let text = |key: &str| errors[0].at(&[key]).and_then(Json::as_str).unwrap().to_owned();
    let code = errors[0].at(&["code"]).and_then(Json::as_integer).unwrap();
    (reply.status, code, text("title"), text("detail"))
}

fn refused(reply: &Reply, detail: &str) {
    let expected = (422, 10008, "CF-UnprocessableEntity".to_owned(), detail.to_owned());
    assert_eq!(error(reply), expected);
}

#[tokio::test]
async fn a_group_lives_from_create_to_delete() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (_, space) = admin.place("o", "s").await;
    let rules = r#"[{"ports":"443","protocol":"tcp","destination":"10.0.0.1/24","log":true}]"#;
    let body = format!(
        r#"{{"name":"g","rules":{rules},"globally_enabled":{{"staging":true}},
            "relationships":{{"running_spaces":{{"data":[{{"guid":"{space}"}}]}}}}}}"#
    );
    let made = admin.post(GROUPS, &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let guid = made.guid();
    let url = format!("{GROUPS}/{guid}");
    let base = &controller.addresses.api;
    let time = made.at(&["created_at"]);
    let expected = format!(
        r#"{{"guid":"{guid}","created_at":"{time}","updated_at":"{time}","name":"g","rules":{rules},"globally_enabled":{{"running":false,"staging":true}},"relationships":{{"running_spaces":{{"data":[{{"guid":"{space}"}}]}},"staging_spaces":{{"data":[]}}}},"links":{{"self":{{"href":"{base}{url}"}}}}}}"#
    );
    assert_eq!(made.text, expected);
    assert_eq!(time.len(), "2026-11-23T05:22:39Z".len(), "{time}");
    assert_eq!(admin.get(&url).await.text, expected);

    let patch = r#"{"globally_enabled":{"running":true},"rules":[]}"#;
    let patched = admin.patch(&url, patch).await;
    assert_eq!(patched.status, 200);
    let json = patched.json();
    assert_eq!(json.at(&["rules"]).unwrap().to_text(), "[]");
    assert_eq!(
        json.at(&["globally_enabled"]).unwrap().to_text(),
        r#"{"running":true,"staging":true}"#
    );
    assert_eq!(patched.at(&["name"]), "g");

    let deleted = admin.delete(&url).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (202, ""));
    let location = deleted.location.unwrap();
    let job = location.strip_prefix(base.as_str()).unwrap();
    let job = admin.get(job).await;
    assert_eq!(job.at(&["operation"]), "security_group.delete");
    assert_eq!(job.at(&["state"]), "COMPLETE");
    assert_eq!(job.at(&["links", "self", "href"]), location);
    let gone =
        (404, 10010, "CF-ResourceNotFound".to_owned(), "Security group not found".to_owned());
    assert_eq!(error(&admin.get(&url).await), gone);
    assert_eq!(error(&admin.patch(&url, "{}").await), gone);
    assert_eq!(error(&admin.delete(&url).await), gone);
}

#[tokio::test]
async fn binding_is_additive_and_answers_with_all() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, first) = admin.place("o", "s1").await;
    let second = admin.space(&organization, "s2").await;
    let guid = admin.post(GROUPS, r#"{"name":"g"}"#).await.guid();
    let bind = format!("{GROUPS}/{guid}/relationships/staging_spaces");
    let data = |guid: &str| format!(r#"{{"data":[{{"guid":"{guid}"}}]}}"#);
    admin.post(&bind, &data(&first)).await;
    for _ in 0..2 {
        let bound = admin.post(&bind, &data(&second)).await;
        assert_eq!(bound.status, 200);
        let expected = format!(
            r#"{{"data":[{{"guid":"{first}"}},{{"guid":"{second}"}}],"links":{{"self":{{"href":"{}{bind}"}}}}}}"#,
            controller.addresses.api
        );
        assert_eq!(bound.text, expected);
    }
    let unknown = r#"{"data":[{"guid":"no-1"},{"guid":"no-2"}]}"#;
    refused(
        &admin.post(&bind, unknown).await,
        r#"Spaces with guids ["no-1", "no-2"] do not exist, or you do not have access to them."#,
    );
    let unbound = admin.delete(&format!("{bind}/{first}")).await;
    assert_eq!((unbound.status, unbound.text.as_str()), (204, ""));
    for space in [first.as_str(), "no-space"] {
        refused(
            &admin.delete(&format!("{bind}/{space}")).await,
            &format!(
                "Unable to unbind security group from space with guid '{space}'. Ensure the space is bound to this security group."
            ),
        );
    }
    let none = admin.post(&format!("{GROUPS}/none/relationships/running_spaces"), unknown).await;
    assert_eq!(error(&none).1, 10010);
}

#[tokio::test]
async fn refusals_have_the_texts_that_clients_match_on() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let post = async |body: &str| admin.post(GROUPS, body).await;
    assert_eq!(post(r#"{"name":"g"}"#).await.status, 201);
    refused(&post(r#"{"name":"g"}"#).await, "Security group with name 'g' already exists.");
    assert_eq!(post(r#"{"name":"G"}"#).await.status, 201, "names differ in case");
    refused(&post(r#"{"name":"a\u001bb"}"#).await, "name format");
    refused(
        &post(r#"{"name":"x","relationships":{"staging_spaces":{"data":[{"guid":"g1"},{"guid":"g2"}]}}}"#).await,
        r#"Spaces with guids ["g1", "g2"] do not exist."#,
    );
    refused(&post("").await, "Name can't be blank, Name must be a string");
    refused(
        &post("[1]").await,
        "Unknown field(s): '_json', Name can't be blank, Name must be a string",
    );
    refused(
        &post(r#"{"name":"h","rules":[{"protocol":"tcp","destination":"10.0.0.1"}]}"#).await,
        "Rules[0]: ports are required for protocols of type TCP and UDP, Rules[0]: ports must be a valid single port, comma separated list of ports, or range or ports, formatted as a string",
    );
    for broken in ["{", "{\"name\":}", "{\"name\":\"\u{1}\"}", "x"] {
        let reply = post(broken).await;
        assert_eq!(
            error(&reply),
            (
                400,
                1001,
                "CF-MessageParseError".to_owned(),
                "Request invalid due to parse error: invalid request body".to_owned()
            ),
            "{broken}"
        );
    }
    assert_eq!(admin.get(&format!("{GROUPS}?names=h")).await.listed("name"), Vec::<String>::new());
}

#[tokio::test]
async fn paths_and_tokens_that_are_none() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let unknown = (404, 10000, "CF-NotFound".to_owned(), "Unknown request".to_owned());
    for (method, path) in [
        (Method::GET, "/v3/nope"),
        (Method::PUT, "/v3/security_groups"),
        (Method::POST, "/v3/security_groups/x"),
        (Method::GET, "/v2/security_groups"),
    ] {
        assert_eq!(error(&admin.send(method, path, None).await), unknown, "{path}");
    }
    let none = send(controller.api(Method::GET, GROUPS)).await;
    assert_eq!(error(&none).1, 10002);
    assert_eq!((none.status, none.detail()), (401, "Authentication error".to_owned()));
    for token in ["rubbish", "a.b.c"] {
        let bad = send(controller.api(Method::GET, GROUPS).bearer_auth(token)).await;
        assert_eq!(
            error(&bad),
            (401, 1000, "CF-InvalidAuthToken".to_owned(), "Invalid Auth Token".to_owned())
        );
    }
    assert!(none.request_id.is_some_and(|name| name.len() == 36));
    let named = controller.api(Method::GET, GROUPS).header("x-vcap-request-id", "mine");
    assert!(send(named).await.request_id.is_some_and(|name| name.starts_with("mine::")));
}

#[tokio::test]
async fn long_rules_fit_and_longer_ones_are_refused_by_name() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let rule = |length: usize| {
        let text = "x".repeat(length);
        format!(
            r#"{{"name":"g","rules":[{{"protocol":"all","destination":"1.1.1.1","description":"{text}"}}]}}"#
        )
    };
    refused(
        &admin.post(GROUPS, &rule(16_777_215)).await,
        "rules length must not exceed 16777215 characters",
    );
    assert_eq!(admin.post(GROUPS, &rule(3_000_000)).await.status, 201);
}

#[tokio::test]
async fn discovery_names_the_host_that_the_client_used() {
    let controller = Controller::start("").await;
    let port = controller.addresses.uaa.rsplit_once(':').unwrap().1;
    let root = controller.api(Method::GET, "/").header("host", "api.example.com:99");
    let root = send(root).await;
    assert_eq!(root.at(&["links", "cloud_controller_v3", "href"]), "http://api.example.com:99/v3");
    assert_eq!(root.at(&["links", "login", "href"]), format!("http://api.example.com:{port}"));
    let version = root.at(&["links", "cloud_controller_v3", "meta", "version"]);
    assert_eq!(version, "3.228.0");
    let v3 = send(controller.api(Method::GET, "/v3")).await;
    let groups = format!("{}/v3/security_groups", controller.addresses.api);
    assert_eq!(v3.at(&["links", "security_groups", "href"]), groups);
    assert_eq!(send(controller.api(Method::GET, "/v3/info")).await.status, 200);
    let v2 = send(controller.api(Method::GET, "/v2/info")).await;
    assert_eq!(v2.at(&["support"]), "CF API v2 is disabled");
}

#[tokio::test]
async fn a_fresh_controller_has_the_groups_of_a_deployment() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let all = admin.get(GROUPS).await;
    assert_eq!(all.listed("name"), ["public_networks", "dns"]);
    let json = all.json();
    let groups = json.at(&["resources"]).and_then(Json::as_array).unwrap();
    let lengths: Vec<usize> = groups
        .iter()
        .map(|group| group.at(&["rules"]).and_then(Json::as_array).unwrap().len())
        .collect();
    assert_eq!(lengths, [5, 2]);
    for group in groups {
        let both = group.at(&["globally_enabled"]).unwrap().to_text();
        assert_eq!(both, r#"{"running":true,"staging":true}"#);
    }
    assert_eq!(controller.last_update().await, "1970-01-01T00:00:00.000000000+00:00");
}
