//! The UAA over HTTP.

use cloud_controller::json::Json;
use cloud_controller::uaa::token::unverified_claims;
use reqwest::Method;

use crate::support::{Controller, Reply, send};

const FORM: &str = "application/x-www-form-urlencoded";

fn claims(reply: &Reply) -> Json {
    unverified_claims(&reply.at(&["access_token"])).unwrap()
}

fn list(json: &Json, key: &str) -> Vec<String> {
    let items = json.at(&[key]).and_then(Json::as_array).unwrap();
    items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_user_logs_in_and_refreshes() {
    let controller = Controller::start("").await;
    let reply = controller.token("grant_type=password&username=admin&password=admin").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.at(&["token_type"]), "bearer", "the CLI strips exactly this prefix");
    let first = claims(&reply);
    for key in ["user_name", "user_id", "origin", "client_id", "jti", "iss", "sub", "grant_type"] {
        assert!(first.at(&[key]).and_then(Json::as_str).is_some(), "{key}");
    }
    let number = |json: &Json, key: &str| json.at(&[key]).and_then(Json::as_integer).unwrap();
    assert_eq!(number(&first, "exp") - number(&first, "iat"), 1200);
    assert!(list(&first, "scope").contains(&"cloud_controller.admin".to_owned()));
    assert!(list(&first, "aud").contains(&"cloud_controller".to_owned()));
    assert_eq!(first.at(&["revocable"]), Some(&Json::Bool(false)));

    let token = reply.at(&["refresh_token"]);
    let again = controller.token(&format!("grant_type=refresh_token&refresh_token={token}")).await;
    assert_eq!(again.status, 200, "{}", again.text);
    assert_eq!(again.at(&["token_type"]), "bearer");
    assert_eq!(claims(&again).at(&["user_id"]), first.at(&["user_id"]));
    again.at(&["refresh_token"]);

    let access = reply.at(&["access_token"]);
    for wrong in ["rubbish", access.as_str()] {
        let form = format!("grant_type=refresh_token&refresh_token={wrong}");
        let refused = controller.token(&form).await;
        assert_eq!((refused.status, refused.at(&["error"])), (401, "invalid_token".to_owned()));
    }
    let request = controller.api(Method::GET, "/v3/security_groups").bearer_auth(token);
    assert_eq!(send(request).await.status, 401, "a refresh token is no access token");
}

#[tokio::test]
async fn the_syncer_gets_its_token_by_basic_authentication_and_the_cli_by_form() {
    let controller = Controller::start("").await;
    let basic = controller
        .uaa(Method::POST, "/oauth/token")
        .basic_auth("network-policy", Some("network-policy-secret"))
        .header("content-type", FORM)
        .body("client_id=network-policy&grant_type=client_credentials");
    let form = controller.uaa(Method::POST, "/oauth/token").header("content-type", FORM).body(
        "client_id=network-policy&client_secret=network-policy-secret&grant_type=client_credentials",
    );
    for reply in [send(basic).await, send(form).await] {
        assert_eq!(reply.status, 200, "{}", reply.text);
        let claims = claims(&reply);
        assert_eq!(list(&claims, "scope"), ["uaa.resource", "cloud_controller.admin_read_only"]);
        assert_eq!(claims.at(&["user_name"]), None);
        let token = reply.at(&["access_token"]);
        let groups = controller.api(Method::GET, "/v3/security_groups?per_page=5000&page=1");
        let groups = send(groups.header("authorization", format!("bearer {token}"))).await;
        assert_eq!(groups.listed("name"), ["public_networks", "dns"]);
        let write = controller.api(Method::POST, "/v3/security_groups").bearer_auth(token);
        assert_eq!(send(write.body(r#"{"name":"x"}"#)).await.status, 403);
    }
}

#[tokio::test]
async fn wrong_requests_are_told_apart() {
    let controller = Controller::start("").await;
    for (form, status, error) in [
        ("grant_type=password&username=admin&password=no", 401, "unauthorized"),
        ("grant_type=password&username=nobody&password=", 401, "unauthorized"),
        ("username=admin&password=admin", 400, "invalid_request"),
        ("grant_type=magic", 400, "unsupported_grant_type"),
        ("grant_type=client_credentials", 401, "invalid_client"),
    ] {
        let reply = controller.token(form).await;
        assert_eq!((reply.status, reply.at(&["error"]).as_str()), (status, error), "{form}");
    }
    let stranger = controller.uaa(Method::POST, "/oauth/token").basic_auth("nobody", Some("x"));
    assert_eq!(send(stranger.body("grant_type=client_credentials")).await.status, 401);
}

#[tokio::test]
async fn tokens_can_be_checked_with_the_published_key_and_by_asking() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let keys = send(controller.uaa(Method::GET, "/token_keys")).await.json();
    let key = keys.at(&["keys"]).and_then(Json::as_array).unwrap()[0].clone();
    let part = |name: &str| key.at(&[name]).and_then(Json::as_str).unwrap().to_owned();
    let header = jsonwebtoken::decode_header(&admin.token).unwrap();
    assert_eq!(header.kid, Some(part("kid")));
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_audience(&["cloud_controller"]);
    for public in [
        jsonwebtoken::DecodingKey::from_rsa_components(&part("n"), &part("e")).unwrap(),
        jsonwebtoken::DecodingKey::from_rsa_pem(part("value").as_bytes()).unwrap(),
    ] {
        jsonwebtoken::decode::<Json>(&admin.token, &public, &validation).unwrap();
    }
    let check = async |secret: &str, token: &str| {
        let request = controller.uaa(Method::POST, "/check_token");
        let request = request.basic_auth("network-policy", Some(secret));
        send(request.header("content-type", FORM).body(format!("token={token}"))).await
    };
    let checked = check("network-policy-secret", &admin.token).await;
    assert_eq!((checked.status, checked.at(&["user_name"])), (200, "admin".to_owned()));
    assert!(list(&checked.json(), "scope").contains(&"network.admin".to_owned()));
    assert_eq!(check("network-policy-secret", "x").await.at(&["error"]), "invalid_token");
    assert_eq!(check("wrong", &admin.token).await.status, 401);
    let openid = send(controller.uaa(Method::GET, "/.well-known/openid-configuration")).await;
    assert_eq!(openid.at(&["jwks_uri"]), format!("{}/token_keys", controller.addresses.uaa));
    let issuer = unverified_claims(&admin.token).unwrap();
    assert_eq!(issuer.at(&["iss"]).and_then(Json::as_str), Some(openid.at(&["issuer"]).as_str()));
}

#[tokio::test]
async fn tokens_run_out() {
    let controller = Controller::start(r#""access_token_seconds":0"#).await;
    let admin = controller.admin().await;
    let reply = admin.get("/v3/security_groups").await;
    assert_eq!((reply.status, reply.detail()), (401, "Invalid Auth Token".to_owned()));
}

#[tokio::test]
async fn prompts_are_pairs_of_type_and_label() {
    let controller = Controller::start("").await;
    let login = send(controller.uaa(Method::GET, "/login")).await.json();
    for (name, kind) in [("username", "text"), ("password", "password")] {
        let prompt = login.at(&["prompts", name]).and_then(Json::as_array).unwrap();
        assert_eq!((prompt.len(), prompt[0].as_str()), (2, Some(kind)));
    }
}
