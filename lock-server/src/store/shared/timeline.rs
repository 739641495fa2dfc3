//! Fencing tokens after a failover of PostgreSQL that lost commits.
//!
//! An asynchronous replica that becomes the primary, or a restored backup, may lack the newest
//! tokens, and would issue them again. PostgreSQL gives each promotion a new timeline, so
//! the table `fencing_timeline` names the timeline of the newest tokens. Each new
//! connection compares; on another timeline, all tokens rise by more than can have been lost,
//! before any claim on that connection. A connection stays on one timeline: one to a server in
//! recovery is refused.

/// By how much all tokens rise: more than one key changes its owner within the lag of a replica,
/// and far below the policy store's `max_fencing_token_step`.
macro_rules! rise {
    () => {
        100_000
    };
}

/// Raises all tokens if the timeline is a new one.
pub(super) const RAISE_TOKENS: &str = concat!(
    "DO $portcullis$
DECLARE
    current BIGINT;
    known BIGINT;
    first TEXT;
    raised BIGINT;
BEGIN
    IF to_regclass('fencing_tokens') IS NULL THEN
        RETURN;
    END IF;
    IF pg_is_in_recovery() THEN
        RAISE read_only_sql_transaction USING MESSAGE = 'the server is in recovery';
    END IF;
    current := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint;
    IF to_regclass('fencing_timeline') IS NOT NULL THEN
        SELECT timeline INTO known FROM fencing_timeline;
        IF known = current THEN
            RETURN;
        END IF;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('portcullis.fencing_timeline'));
    CREATE TABLE IF NOT EXISTS fencing_timeline (timeline BIGINT NOT NULL);
    SELECT timeline INTO known FROM fencing_timeline;
    IF known IS NULL THEN
        INSERT INTO fencing_timeline (timeline) VALUES (current);
    ELSIF known <> current THEN
        UPDATE fencing_tokens SET token = token + ",
    rise!(),
    ";
        SELECT pg_get_expr(d.adbin, d.adrelid) INTO first
            FROM pg_attrdef d
            JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
            WHERE d.adrelid = 'fencing_tokens'::regclass AND a.attname = 'token';
        EXECUTE 'SELECT ' || first INTO raised;
        EXECUTE format('ALTER TABLE fencing_tokens ALTER COLUMN token SET DEFAULT %s',
            raised + ",
    rise!(),
    ");
        UPDATE fencing_timeline SET timeline = current;
    END IF;
EXCEPTION
    WHEN undefined_function OR feature_not_supported OR insufficient_privilege THEN
        RAISE WARNING 'fencing tokens do not rise after a failover: %', SQLERRM;
END
$portcullis$"
);

#[cfg(test)]
mod tests {
    use storage::{
        server::{Dialect, Server},
        testing::TestServer,
    };

    use super::{super::statements, RAISE_TOKENS};

    const RISE: u64 = rise!();

    async fn token(server: &Server, path: &str) -> u64 {
        let sql = "INSERT INTO fencing_tokens AS f (path, modified_id) VALUES (?, 'a')
            ON CONFLICT (path) DO UPDATE SET path = f.path RETURNING token";
        let rows = server.query(sql, &[path.into()]).await.unwrap();
        rows[0].get::<i64>(0).unwrap().unsigned_abs()
    }

    #[tokio::test]
    async fn tokens_rise_once_on_another_timeline() {
        let options = TestServer::shared(Dialect::Postgres).database();
        let schema = statements::schema(Dialect::Postgres);
        let server = Server::connect(&options, &schema).await.unwrap();
        assert_eq!(token(&server, "old").await, 1);
        for _ in 0..2 {
            server.execute(RAISE_TOKENS, &[]).await.unwrap();
            assert_eq!(token(&server, "old").await, 1, "the timeline is the same");
        }
        for earlier in [0, 7] {
            let sql = "UPDATE fencing_timeline SET timeline = ?";
            server.execute(sql, &[earlier.into()]).await.unwrap();
            let before = token(&server, "old").await;
            for _ in 0..2 {
                server.execute(RAISE_TOKENS, &[]).await.unwrap();
                assert_eq!(token(&server, "old").await, before + RISE);
            }
            assert_eq!(token(&server, &format!("new-{earlier}")).await, before + RISE);
        }
    }
}
