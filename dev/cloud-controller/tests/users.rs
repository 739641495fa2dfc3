//! Users in `cf space-users`, `cf org-users`, `cf unset-space-role` and `cf
//! delete-user`, and renamed organizations and spaces.

use cloud_controller::json::Json;
use reqwest::Method;

use crate::support::{Controller, Reply, Session, send};

async fn user(controller: &Controller, admin: &Session<'_>, name: &str) -> String {
    let request = controller.uaa(Method::POST, "/Users").bearer_auth(&admin.token);
    let made = send(request.body(format!(r#"{{"userName":"{name}","password":"pw"}}"#))).await;
    let guid = made.at(&["id"]);
    let reply = admin.post("/v3/users", &format!(r#"{{"guid":"{guid}"}}"#)).await;
    assert_eq!((reply.status, reply.at(&["username"])), (201, name.to_owned()));
    guid
}

async fn give(admin: &Session<'_>, kind: &str, user: &str, place: &str) {
    let (of, _) = kind.split_once('_').unwrap();
    let reply = admin
        .post(
            "/v3/roles",
            &format!(
                r#"{{"type":"{kind}","relationships":{{"{of}":{{"data":{{"guid":"{place}"}}}},
                    "user":{{"data":{user}}}}}}}"#
            ),
        )
        .await;
    assert_eq!(reply.status, 201, "{}", reply.text);
}

/// What the CLI prints for each user of a list of roles: the presentation name, and `(client)`
/// behind it for one without an origin.
fn printed(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let users = json.at(&["included", "users"]).and_then(Json::as_array).unwrap();
    let roles = json.at(&["resources"]).and_then(Json::as_array).unwrap();
    let of_role = |role: &Json| {
        let guid = role.at(&["relationships", "user", "data", "guid"]).and_then(Json::as_str);
        let user = users.iter().find(|user| user.at(&["guid"]).and_then(Json::as_str) == guid);
        let user = user.expect("the user of each role is included");
        let name = user.at(&["presentation_name"]).and_then(Json::as_str).unwrap();
        match user.at(&["origin"]).and_then(Json::as_str) {
            Some(_origin) => name.to_owned(),
            None => format!("{name} (client)"),
        }
    };
    roles.iter().map(of_role).collect()
}

#[tokio::test]
async fn roles_include_the_names_of_their_users() {
    let controller = Controller::start(
        r#""clients":[{"id":"deployer","secret":"s","authorities":["cloud_controller.admin"]}]"#,
    )
    .await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s").await;
    let dora = user(&controller, &admin, "dora").await;
    give(&admin, "organization_user", r#"{"username":"dora"}"#, &organization).await;
    give(&admin, "space_developer", r#"{"username":"dora"}"#, &space).await;
    give(&admin, "organization_user", r#"{"guid":"deployer"}"#, &organization).await;
    give(&admin, "space_manager", r#"{"guid":"deployer"}"#, &space).await;

    // cf space-users, cf org-users
    let of_space = admin.get(&format!("/v3/roles?space_guids={space}&include=user")).await;
    assert_eq!(printed(&of_space), ["dora", "deployer (client)"]);
    let of_org = format!("/v3/roles?organization_guids={organization}&include=user");
    assert_eq!(printed(&admin.get(&of_org).await), ["dora", "deployer (client)"]);
    let without = admin.get(&format!("/v3/roles?space_guids={space}")).await.json();
    assert_eq!(without.at(&["included"]), None);
    let with_places = format!("/v3/roles?space_guids={space}&include=space,organization");
    let places = admin.get(&with_places).await.json();
    let spaces = places.at(&["included", "spaces"]).and_then(Json::as_array).unwrap();
    assert_eq!(spaces.len(), 1, "each place once");

    // cf unset-space-role
    let found = admin.get("/v3/users?usernames=dora&origins=uaa").await;
    assert_eq!(found.listed("guid"), [dora.as_str()]);
    let query = format!("types=space_developer&user_guids={dora}&space_guids={space}");
    let roles = admin.get(&format!("/v3/roles?{query}")).await.listed("guid");
    assert_eq!(roles.len(), 1);
    assert_eq!(admin.delete(&format!("/v3/roles/{}", roles[0])).await.status, 202);
    let of_space = admin.get(&format!("/v3/roles?space_guids={space}&include=user")).await;
    assert_eq!(printed(&of_space), ["deployer (client)"]);
}

#[tokio::test]
async fn users_are_listed_and_found_by_name() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (dora, dirk) =
        (user(&controller, &admin, "dora").await, user(&controller, &admin, "dirk").await);
    let usernames = async |who: &Session<'_>, query: &str| {
        let reply = who.get(&format!("/v3/users{query}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.listed("username")
    };
    assert_eq!(usernames(&admin, "").await, ["admin", "dora", "dirk"]);
    assert_eq!(usernames(&admin, &format!("?guids={dirk},{dora}")).await, ["dora", "dirk"]);
    assert_eq!(usernames(&admin, "?partial_usernames=dir").await, ["dirk"]);
    assert_eq!(usernames(&admin, "?origins=ldap").await, Vec::<String>::new());
    assert_eq!(usernames(&admin, "?per_page=1&page=2").await, ["dora"]);
    let own = controller.session("grant_type=password&username=dora&password=pw").await;
    assert_eq!(usernames(&own, "").await, ["dora"]);
    let refused = admin.get("/v3/users?foo=1").await;
    assert_eq!((refused.status, refused.detail().contains("'foo'")), (400, true));
}

/// `cf rename-org`, `cf rename-space`: the old name is free, the new one is found.
#[tokio::test]
async fn renamed_places_are_found_by_their_new_name() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s").await;
    let renamed = async |path: String, name: &str| {
        let reply = admin.patch(&path, &format!(r#"{{"name":"{name}"}}"#)).await;
        assert_eq!((reply.status, reply.at(&["name"])), (200, name.to_owned()), "{}", reply.text);
    };
    renamed(format!("/v3/organizations/{organization}"), "o2").await;
    renamed(format!("/v3/spaces/{space}"), "s2").await;
    let found = async |path: &str| admin.get(path).await.listed("guid");
    assert_eq!(found("/v3/organizations?names=o2").await, [organization.as_str()]);
    assert_eq!(found("/v3/organizations?names=o").await, Vec::<String>::new());
    assert_eq!(found("/v3/spaces?names=s2").await, [space.as_str()]);
    admin.place("o", "s").await;
}

/// `cf unbind-security-group` of a group that applies globally and is not bound to the
/// space: the CLI matches the end of the error text. If the group is bound as well, it
/// stays global.
#[tokio::test]
async fn a_global_group_is_unbound_from_a_space_only() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (_, space) = admin.place("o", "s").await;
    let path = "/v3/security_groups";
    let body = r#"{"name":"g","globally_enabled":{"running":true}}"#;
    let group = admin.post(path, body).await.guid();
    let binding = format!("{path}/{group}/relationships/running_spaces");
    let unbind = format!("{binding}/{space}");
    let refused = admin.delete(&unbind).await;
    assert_eq!(refused.status, 422);
    let text = format!(
        "Unable to unbind security group from space with guid '{space}'. \
         Ensure the space is bound to this security group."
    );
    assert_eq!(refused.detail(), text);
    let bound = admin.post(&binding, &format!(r#"{{"data":[{{"guid":"{space}"}}]}}"#)).await;
    assert_eq!(bound.status, 200, "{}", bound.text);
    assert_eq!(admin.delete(&unbind).await.status, 204);
    let json = admin.get(&format!("{path}/{group}")).await.json();
    assert_eq!(json.at(&["globally_enabled", "running"]).and_then(Json::as_bool), Some(true));
}

/// `cf security-groups` with several pages: each group is listed once, and one request
/// finds the spaces of all groups.
#[tokio::test]
async fn many_groups_and_their_spaces_are_all_found() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, first) = admin.place("o", "s0").await;
    let mut spaces = vec![first];
    for number in 1..3 {
        spaces.push(admin.space(&organization, &format!("s{number}")).await);
    }
    for number in 0..120 {
        let space = &spaces[number % spaces.len()];
        let body = format!(
            r#"{{"name":"g{number}","relationships":{{"running_spaces":{{"data":[{{"guid":"{space}"}}]}}}}}}"#
        );
        assert_eq!(admin.post("/v3/security_groups", &body).await.status, 201);
    }
    let mut path = Some("/v3/security_groups".to_owned());
    let (mut names, mut pages) = (Vec::new(), 0);
    while let Some(page) = path {
        let reply = admin.get(&page).await;
        names.extend(reply.listed("name"));
        pages += 1;
        let next = reply
            .json()
            .at(&["pagination", "next", "href"])
            .and_then(Json::as_str)
            .map(|href| href.splitn(4, '/').nth(3).map(|rest| format!("/{rest}")).unwrap());
        path = next;
    }
    assert_eq!((names.len(), pages), (122, 3), "50 to a page, public_networks and dns besides");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 122);
    let guids = [spaces.clone(), spaces.clone()].concat().join(",");
    let found = admin.get(&format!("/v3/spaces?guids={guids}&include=organization")).await;
    assert_eq!(found.listed("name"), ["s0", "s1", "s2"]);
}
