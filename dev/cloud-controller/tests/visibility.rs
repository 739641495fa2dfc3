//! Visibility and permissions of users who are not administrators.

use reqwest::Method;

use crate::support::{Controller, Session, send};

const GROUPS: &str = "/v3/security_groups";

async fn user<'a>(
    controller: &'a Controller,
    admin: &Session<'_>,
    name: &str,
) -> (String, Session<'a>) {
    let request = controller.uaa(Method::POST, "/Users").bearer_auth(&admin.token);
    let made = send(request.body(format!(r#"{{"userName":"{name}","password":"pw"}}"#))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let form = format!("grant_type=password&username={name}&password=pw");
    (made.at(&["id"]), controller.session(&form).await)
}

async fn give(admin: &Session<'_>, kind: &str, user: &str, place: &str) -> u16 {
    let (of, _) = kind.split_once('_').unwrap();
    let body = format!(
        r#"{{"type":"{kind}","relationships":{{"{of}":{{"data":{{"guid":"{place}"}}}},
            "user":{{"data":{{"guid":"{user}"}}}}}}}}"#
    );
    admin.post("/v3/roles", &body).await.status
}

#[tokio::test]
async fn roles_decide_what_is_seen_and_done() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s1").await;
    let other = admin.space(&organization, "s2").await;
    let bound = |guid: &str| {
        format!(r#""relationships":{{"running_spaces":{{"data":[{{"guid":"{guid}"}}]}}}}"#)
    };
    let mine = admin.post(GROUPS, &format!(r#"{{"name":"mine",{}}}"#, bound(&space))).await.guid();
    let theirs =
        admin.post(GROUPS, &format!(r#"{{"name":"theirs",{}}}"#, bound(&other))).await.guid();
    admin.post(GROUPS, r#"{"name":"nobodys"}"#).await;

    let (id, developer) = user(&controller, &admin, "dora").await;
    let listed = async |who: &Session<'_>| who.get(GROUPS).await.listed("name");
    assert_eq!(listed(&developer).await, ["public_networks", "dns"], "no role: global ones");
    assert_eq!(
        give(&admin, "space_developer", &id, &space).await,
        422,
        "no role in the organization"
    );
    assert_eq!(give(&admin, "organization_user", &id, &organization).await, 201);
    assert_eq!(listed(&developer).await, ["public_networks", "dns"]);
    assert_eq!(give(&admin, "space_developer", &id, &space).await, 201);
    assert_eq!(listed(&developer).await, ["public_networks", "dns", "mine"]);
    assert_eq!(developer.get("/v3/spaces").await.listed("name"), ["s1"]);
    assert_eq!(developer.get(&format!("{GROUPS}/{theirs}")).await.status, 404);
    assert_eq!(
        developer.get(&format!("/v3/spaces/{other}/running_security_groups")).await.status,
        404
    );

    let url = format!("{GROUPS}/{mine}");
    let bind = format!("{url}/relationships/staging_spaces");
    let data = |guid: &str| format!(r#"{{"data":[{{"guid":"{guid}"}}]}}"#);
    for (status, detail) in [
        developer.patch(&url, "{}").await,
        developer.delete(&url).await,
        developer.post(GROUPS, r#"{"name":"x"}"#).await,
        developer.post(&bind, &data(&space)).await,
    ]
    .map(|reply| (reply.status, reply.detail()))
    {
        let not_allowed = "You are not authorized to perform the requested action";
        assert_eq!((status, detail.as_str()), (403, not_allowed));
    }
    assert_eq!(developer.patch(&format!("{GROUPS}/{theirs}"), "{}").await.status, 404);

    assert_eq!(give(&admin, "space_manager", &id, &space).await, 201);
    assert_eq!(developer.post(&bind, &data(&space)).await.status, 200);
    assert_eq!(developer.post(&bind, &data(&other)).await.status, 403);
    let reply = developer.post(&bind, &data("none")).await;
    assert_eq!(reply.status, 422);

    admin.patch(&format!("/v3/organizations/{organization}"), r#"{"suspended":true}"#).await;
    let suspended = developer.delete(&format!("{bind}/{space}")).await;
    let detail = suspended.detail();
    assert_eq!((suspended.status, detail.as_str()), (403, "The organization is suspended"));
    assert_eq!(admin.delete(&format!("{bind}/{space}")).await.status, 204);

    admin.delete(&format!("/v3/spaces/{space}")).await;
    assert_eq!(listed(&developer).await, ["public_networks", "dns"]);
    let gone = admin.get(&url).await.json();
    let left = gone.at(&["relationships", "running_spaces", "data"]).unwrap().to_text();
    assert_eq!(left, "[]", "a deleted space takes its bindings along");
}

#[tokio::test]
async fn an_organization_manager_sees_and_binds_in_all_its_spaces() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s1").await;
    let (_, elsewhere) = admin.place("o2", "s1").await;
    let (id, manager) = user(&controller, &admin, "mo").await;
    let (auditor_id, auditor) = user(&controller, &admin, "otto").await;
    give(&admin, "organization_manager", &id, &organization).await;
    give(&admin, "organization_auditor", &auditor_id, &organization).await;
    let both = format!(
        r#"{{"name":"g","relationships":{{"running_spaces":{{"data":[{{"guid":"{space}"}},{{"guid":"{elsewhere}"}}]}}}}}}"#
    );
    let guid = admin.post(GROUPS, &both).await.guid();
    let seen = manager.get(&format!("{GROUPS}/{guid}")).await.json();
    let seen = seen.at(&["relationships", "running_spaces", "data"]).unwrap().to_text();
    assert_eq!(seen, format!(r#"[{{"guid":"{space}"}}]"#), "only spaces that the caller may see");
    assert_eq!(auditor.get(&format!("{GROUPS}/{guid}")).await.status, 404);
    assert_eq!(auditor.get("/v3/organizations").await.listed("name"), ["o"]);
    let unbind = format!("{GROUPS}/{guid}/relationships/running_spaces/{space}");
    assert_eq!(manager.delete(&unbind).await.status, 204);
}

#[tokio::test]
async fn scopes_bound_what_roles_allow() {
    let controller = Controller::start(
        r#""users":[{"name":"r","password":"p","scopes":["cloud_controller.read"]},
                    {"name":"n","password":"p","scopes":["openid"]},
                    {"name":"g","password":"p","scopes":["cloud_controller.global_auditor"]}]"#,
    )
    .await;
    let login = async |name: &str| {
        controller.session(&format!("grant_type=password&username={name}&password=p")).await
    };
    let reader = login("r").await;
    assert_eq!(reader.get(GROUPS).await.status, 200);
    let write = reader.post(GROUPS, r#"{"name":"x"}"#).await;
    assert_eq!(write.status, 403);
    assert!(write.detail().contains("scopes"));
    assert_eq!(login("n").await.get(GROUPS).await.status, 403);
    let auditor = login("g").await;
    assert_eq!(auditor.get(GROUPS).await.listed("name").len(), 2);
    assert_eq!(auditor.post(GROUPS, r#"{"name":"x"}"#).await.status, 403);
}
