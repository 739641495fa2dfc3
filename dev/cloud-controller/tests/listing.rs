//! Lists: filters, pages, sort orders, and the groups of a space.

use cloud_controller::json::Json;

use crate::support::{Controller, Session};

const GROUPS: &str = "/v3/security_groups";

async fn make(admin: &Session<'_>, name: &str, more: &str) -> String {
    let reply = admin.post(GROUPS, &format!(r#"{{"name":"{name}"{more}}}"#)).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.guid()
}

#[tokio::test]
async fn filters_combine() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (_, space) = admin.place("o", "s").await;
    let bound = |lifecycle: &str| {
        format!(r#","relationships":{{"{lifecycle}_spaces":{{"data":[{{"guid":"{space}"}}]}}}}"#)
    };
    let a = make(&admin, "a,1", r#","globally_enabled":{"running":true}"#).await;
    let b = make(&admin, "b", &bound("running")).await;
    let c = make(&admin, "c", &bound("staging")).await;
    for (query, expected) in [
        ("names=a%252C1,b".to_owned(), vec!["a,1", "b"]),
        ("names=A%252C1".to_owned(), vec![]),
        ("names=".to_owned(), vec![]),
        (format!("guids={c},{a}"), vec!["a,1", "c"]),
        (format!("guids={c},{a}&names=c"), vec!["c"]),
        (format!("running_space_guids={space},x"), vec!["b"]),
        (format!("staging_space_guids={space}"), vec!["c"]),
        ("globally_enabled_running=true&globally_enabled_staging=false".to_owned(), vec!["a,1"]),
        ("globally_enabled_running=false".to_owned(), vec!["b", "c"]),
        ("created_ats[lt]=2020-01-01T00:00:00Z".to_owned(), vec![]),
        (format!("created_ats[gt]=2020-01-01T00:00:00Z&guids={b}"), vec!["b"]),
        ("order_by=-created_at&names=b".to_owned(), vec!["b"]),
    ] {
        let reply = admin.get(&format!("{GROUPS}?{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.text);
        assert_eq!(reply.listed("name"), expected, "{query}");
    }
}

#[tokio::test]
async fn pages_follow_one_another_by_their_links() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    for number in 0..5 {
        make(&admin, &format!("g{number}"), "").await;
    }
    let mut path = format!("{GROUPS}?per_page=3&globally_enabled_staging=false");
    let mut names = Vec::new();
    let mut pages = 0;
    loop {
        let reply = admin.get(&path).await;
        names.extend(reply.listed("name"));
        pages += 1;
        let json = reply.json();
        let total = json.at(&["pagination", "total_results"]).and_then(Json::as_integer);
        assert_eq!(total, Some(5));
        match json.at(&["pagination", "next", "href"]).and_then(Json::as_str) {
            Some(next) => path = next.strip_prefix(&controller.addresses.api).unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!((pages, names), (2, (0..5).map(|n| format!("g{n}")).collect()));
    let beyond = admin.get(&format!("{GROUPS}?page=9")).await;
    assert_eq!(beyond.listed("name"), Vec::<String>::new());
    assert_eq!(beyond.json().at(&["pagination", "next"]), Some(&Json::Null));
    let empty = admin.get(&format!("{GROUPS}?names=none")).await.json();
    assert_eq!(empty.at(&["pagination", "total_pages"]).and_then(Json::as_integer), Some(1));
}

#[tokio::test]
async fn bad_queries_are_422_for_groups_and_400_elsewhere() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (_, space) = admin.place("o", "s").await;
    for path in [
        GROUPS.to_owned(),
        format!("/v3/spaces/{space}/running_security_groups"),
        format!("/v3/spaces/{space}/staging_security_groups"),
    ] {
        let reply = admin.get(&format!("{path}?per_page=5001")).await;
        let got = (reply.status, reply.detail());
        assert_eq!(got, (422, "Per page must be between 1 and 5000".to_owned()), "{path}");
    }
    for path in ["/v3/organizations", "/v3/spaces", "/v3/roles"] {
        let reply = admin.get(&format!("{path}?page=0")).await;
        let detail = "The query parameter is invalid: Page must be a positive integer";
        assert_eq!((reply.status, reply.detail()), (400, detail.to_owned()), "{path}");
    }
    let unknown = admin.get(&format!("/v3/spaces/{space}/running_security_groups?x=1")).await;
    assert_eq!(
        unknown.detail(),
        "Unknown query parameter(s): 'x'. Valid parameters are: 'page', 'per_page', 'order_by', 'created_ats', 'updated_ats', 'guids', 'names'"
    );
}

#[tokio::test]
async fn a_space_has_its_own_groups_and_the_global_ones() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, space) = admin.place("o", "s1").await;
    let other = admin.space(&organization, "s2").await;
    let both = format!(
        r#","relationships":{{"running_spaces":{{"data":[{{"guid":"{other}"}},{{"guid":"{space}"}}]}}}}"#
    );
    make(&admin, "both", &both).await;
    make(&admin, "neither", "").await;
    let running = admin.get(&format!("/v3/spaces/{space}/running_security_groups")).await;
    assert_eq!(running.listed("name"), ["public_networks", "dns", "both"]);
    let json = running.json();
    let shown = json.at(&["resources"]).and_then(Json::as_array).unwrap()[2].clone();
    let shown = shown.at(&["relationships", "running_spaces", "data"]).unwrap().to_text();
    assert_eq!(shown, format!(r#"[{{"guid":"{space}"}}]"#), "only the space asked for");
    let staging = admin.get(&format!("/v3/spaces/{space}/staging_security_groups")).await;
    assert_eq!(staging.listed("name"), ["public_networks", "dns"]);
    let missing = admin.get("/v3/spaces/none/running_security_groups").await;
    assert_eq!((missing.status, missing.detail()), (404, "Space not found".to_owned()));
}

#[tokio::test]
async fn organizations_and_spaces_are_listed_by_name() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let (organization, _) = admin.place("zoo", "b").await;
    admin.space(&organization, "a").await;
    admin.place("ark", "c").await;
    let names = async |path: &str| admin.get(path).await.listed("name");
    assert_eq!(names("/v3/organizations?order_by=name").await, ["ark", "zoo"]);
    assert_eq!(names("/v3/organizations").await, ["zoo", "ark"]);
    let of_zoo = format!("/v3/spaces?order_by=-name&organization_guids={organization}");
    assert_eq!(names(&of_zoo).await, ["b", "a"]);
    let included = admin.get("/v3/spaces?include=organization&names=a,b").await.json();
    let included = included.at(&["included", "organizations"]).and_then(Json::as_array).unwrap();
    assert_eq!(included.len(), 1);
    assert_eq!(included[0].at(&["name"]).and_then(Json::as_str), Some("zoo"));
    let unknown = admin.get("/v3/spaces?include=quota").await;
    assert_eq!(unknown.status, 400);
}
