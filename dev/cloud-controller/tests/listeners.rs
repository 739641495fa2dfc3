//! Listeners, certificates, and restarts of the Cloud Controller.

use certificates::Authority;
use cloud_controller::app::Addresses;
use cloud_controller::json::Json;
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Controller, foreign_identity, send};

#[tokio::test]
async fn a_state_file_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.json");
    let config = format!(r#""state_file":"{}""#, file.display());
    let first = Controller::start(&config).await;
    let admin = first.admin().await;
    let (_, space) = admin.place("o", "s").await;
    let rules = r#"[{"protocol":"tcp","ports":"1","destination":"1.1.1.1"}]"#;
    let made =
        admin.post("/v3/security_groups", &format!(r#"{{"name":"g","rules":{rules}}}"#)).await;
    let bind = format!("/v3/security_groups/{}/relationships/running_spaces", made.guid());
    admin.post(&bind, &format!(r#"{{"data":[{{"guid":"{space}"}}]}}"#)).await;
    let token = admin.token.clone();
    let stamp = first.last_update().await;
    first.stop().await;

    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds passwords");
    let second = Controller::start(&config).await;
    assert_eq!(second.last_update().await, stamp);
    let request = second.api(Method::GET, "/v3/security_groups?names=g").bearer_auth(&token);
    let group = send(request).await;
    assert_eq!(group.status, 200, "the signing key is kept, too");
    let group = group.json().at(&["resources"]).and_then(Json::as_array).unwrap()[0].clone();
    assert_eq!(group.at(&["rules"]).unwrap().to_text(), rules);
    let bound = group.at(&["relationships", "running_spaces", "data"]).unwrap().to_text();
    assert_eq!(bound, format!(r#"[{{"guid":"{space}"}}]"#));
    let admin = second.admin().await;
    let names = admin.get("/v3/security_groups").await.listed("name");
    assert_eq!(names, ["public_networks", "dns", "g"], "not seeded twice");
    second.stop().await;
}

#[tokio::test]
async fn the_internal_listener_wants_a_certificate_of_its_authority() {
    let controller = Controller::start("").await;
    let url = format!("{}/internal/v4/asg_latest_update", controller.addresses.internal);
    let ca = std::fs::read(&controller.addresses.certificates.ca).unwrap();
    let builder = || {
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        reqwest::Client::builder().tls_certs_only([ca])
    };
    let none = builder().build().unwrap();
    assert!(none.get(&url).send().await.is_err());
    let foreign = builder().identity(foreign_identity()).build().unwrap();
    assert!(foreign.get(&url).send().await.is_err());
    assert_eq!(controller.last_update().await, "1970-01-01T00:00:00.000000000+00:00");
    for path in ["/internal/v4/asg_latest_update", "/internal/v4/apps/x", "/internal/v4/"] {
        let public = send(controller.api(Method::GET, path)).await;
        assert_eq!((public.status, public.text.as_str()), (403, "Forbidden"), "{path}");
    }
}

#[tokio::test]
async fn with_a_certificate_the_public_listeners_speak_https() {
    runtime::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let files = Authority::create(directory.path()).unwrap().issue("api", &["127.0.0.1"]).unwrap();
    let controller = Controller::start(&format!(
        r#""tls":{{"cert_file":"{}","key_file":"{}"}}"#,
        files.cert.display(),
        files.key.display()
    ))
    .await;
    let Addresses { api, uaa, .. } = &controller.addresses;
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&files.ca).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let root = send(client.get(api)).await;
    assert_eq!(root.at(&["links", "login", "href"]), *uaa);
    assert!(uaa.starts_with("https://"));
    assert_eq!(send(client.get(format!("{uaa}/login"))).await.status, 200);
    controller.stop().await;
}

#[tokio::test]
async fn responses_are_wrong_while_the_trouble_file_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trouble");
    let controller = Controller::start(&format!(r#""trouble_file":"{}""#, file.display())).await;
    let admin = controller.admin().await;
    let path = "/v3/security_groups";
    let whole = admin.get(path).await;
    let get = || controller.api(Method::GET, path).bearer_auth(&admin.token);
    let reply = async |word: &str| {
        std::fs::write(&file, word).unwrap();
        send(get()).await
    };
    assert_eq!(reply("503\n").await.status, 503);
    let limited = get().send().await.unwrap();
    assert_eq!(limited.headers()["retry-after"], "1");
    assert_eq!(reply("empty").await.text, "{}");
    assert_eq!(reply("html").await.text, "<html>Please wait</html>");
    assert_eq!(reply("half").await.text, whole.text[..whole.text.len() / 2]);
    let fewer = reply("fewer").await;
    assert_eq!(fewer.listed("name"), [""; 0]);
    let total = |reply: &Json| reply.at(&["pagination", "total_results"]).unwrap().to_text();
    assert_eq!(total(&fewer.json()), total(&whole.json()));
    std::fs::write(&file, "cut").unwrap();
    let cut = async { get().send().await?.text().await };
    let cut = cut.await;
    assert!(cut.is_err(), "{cut:?}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(admin.get(path).await.text, whole.text);
}

#[tokio::test]
async fn a_body_of_unknown_length_has_a_limit() {
    let controller = Controller::start("").await;
    let admin = controller.admin().await;
    let address = controller.addresses.api.strip_prefix("http://").unwrap();
    // White space is an empty object.
    let post = async |length: usize| {
        let request = format!(
            "POST /v3/security_groups HTTP/1.1\r\nhost: cc\r\nauthorization: bearer {}\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{length:x}\r\n{}\r\n0\r\n\r\n",
            admin.token,
            " ".repeat(length)
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _refused_before_its_end = stream.write_all(request.as_bytes()).await;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        String::from_utf8(status.to_vec()).unwrap()
    };
    assert_eq!(post(1 << 20).await, "HTTP/1.1 422");
    assert_eq!(post((1 << 20) + 1).await, "HTTP/1.1 400");
}
