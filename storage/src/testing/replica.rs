//! Streaming replication between private PostgreSQL servers.

use std::fs;

use super::{Dialect, LOOKS, TestServer, pause, program, unprivileged};

impl TestServer {
    /// Starts a replica of this PostgreSQL server, with asynchronous replication.
    pub fn replica(&self) -> Self {
        let mut replica = Self::prepare(Dialect::Postgres);
        replica.copy(self);
        replica.settle(None, &[]);
        replica.start_on_a_free_port();
        self.wait_for_replica();
        replica
    }

    /// Makes this ended server a replica of another one; its own data is lost.
    pub fn follow(&self, primary: &Self) {
        fs::remove_dir_all(self.data()).expect("the data of an ended server can be removed");
        self.copy(primary);
        self.restart();
        primary.wait_for_replica();
    }

    /// From now on, a commit waits until the replica has it on its disk. A new replica does not
    /// have this setting.
    pub fn replicate_synchronously(&self) {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.sql("SELECT pg_reload_conf()");
    }

    /// This replica does not receive commits any more.
    pub fn stop_following(&self) {
        self.sql("ALTER SYSTEM SET primary_conninfo = ''");
        self.sql("SELECT pg_reload_conf()");
    }

    /// Makes this replica a primary.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()"), "t", "{}", self.log());
    }

    fn copy(&self, primary: &Self) {
        let mut command = unprivileged(&program(Dialect::Postgres, "pg_basebackup"));
        let connection =
            format!("host=127.0.0.1 port={} user=tester password=secret", primary.port);
        command
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-d", &connection])
            .arg("-D")
            .arg(self.data());
        let output = command.current_dir(self.directory.path()).output();
        let output = output.expect("pg_basebackup runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn wait_for_replica(&self) {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        for _ in 0..LOOKS.0 {
            if self.sql(streaming) == "1" {
                return;
            }
            pause();
        }
        panic!("the replica does not follow its primary: {}", self.log());
    }
}
