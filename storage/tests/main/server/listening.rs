//! Notifications.

use storage::{
    server::{Dialect, Notice},
    testing::TestServer,
};
use tokio::time::timeout;

use super::{connect, open};
use crate::PATIENCE;

const TELL: &str = "SELECT pg_notify('news', ?)";

#[tokio::test]
async fn notifications_arrive_and_a_lost_connection_is_reported() {
    let postgres = TestServer::start(Dialect::Postgres);
    let server = connect(&postgres.database()).await;
    let mut listener = server.listen("news").unwrap();
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), Notice::Listening);
    for text in ["one", "two"] {
        server.execute_returning(TELL, &[text.into()]).await.unwrap();
    }
    for text in ["one", "two"] {
        let heard = timeout(PATIENCE, listener.next()).await.unwrap();
        assert_eq!(heard, Notice::Told(text.to_owned()));
    }
    postgres.kill();
    postgres.restart();
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), Notice::Listening);
    server.execute_returning(TELL, &["three".into()]).await.unwrap();
    let heard = timeout(PATIENCE, listener.next()).await.unwrap();
    assert_eq!(heard, Notice::Told("three".to_owned()));
}

#[tokio::test]
async fn mysql_has_no_listener() {
    assert!(open(Dialect::MySql).await.listen("news").is_none());
}
