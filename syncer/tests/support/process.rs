//! A syncer as a whole process, with certificates.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use runtime::tls::{Alpn, Files, ServerTls};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    certificates::{Authority, authority, issue},
    cloud::Cloud,
    locket::LockServer,
    store::PolicyStoreTwin,
    until,
};

/// All servers that a syncer uses, with certificates.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) cloud: Cloud,
    pub(crate) locks: LockServer,
    pub(crate) store: PolicyStoreTwin,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_locket(true).await
    }

    /// `ours`: with the Portcullis extensions of Locket.
    pub(crate) async fn with_locket(ours: bool) -> Self {
        runtime::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = authority("ours");
        let tls =
            |name| ServerTls::load(&issue(&authority, folder.path(), name), Alpn::H2).unwrap();
        let locks = LockServer::with_tls(ours, Some(tls("locks"))).await;
        locks.with(|state| state.tokens = ours);
        let store = PolicyStoreTwin::with_tls(Some(tls("store"))).await;
        Self { cloud: Cloud::start().await, locks, store, authority, folder }
    }

    pub(crate) fn config(&self, uuid: &str) -> Value {
        let Files { ca, cert, key } = issue(&self.authority, self.folder.path(), uuid);
        let (scheme_and_host, port) = self.cloud.url.rsplit_once(':').unwrap();
        json!({
            "uuid": uuid, "log_level": "info", "asg_poll_interval_seconds": 1,
            "uaa_client": "network-policy", "uaa_client_secret": "hush",
            "uaa_url": scheme_and_host, "uaa_port": port.parse::<u16>().unwrap(),
            "uaa_ca": ca,
            "cc_url": self.cloud.url, "cc_internal_url": self.cloud.url,
            "cc_internal_ca_cert": ca, "cc_internal_client_cert": cert,
            "cc_internal_client_key": key,
            "locket_address": self.locks.address,
            "locket_ca_cert_file": ca, "locket_client_cert_file": cert,
            "locket_client_key_file": key,
            "policy_store_address": self.store.address,
            "policy_store_ca_cert_file": ca, "policy_store_client_cert_file": cert,
            "policy_store_client_key_file": key,
            "debug_server_port": 0,
        })
    }

    pub(crate) fn run(&self, uuid: &str) -> Syncer {
        Syncer::start(self.folder.path(), uuid, &self.config(uuid))
    }
}

/// A running process; killed on drop.
pub(crate) struct Syncer {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Syncer {
    pub(crate) fn start(folder: &Path, name: &str, config: &Value) -> Self {
        let path = folder.join(format!("{name}.json"));
        fs::write(&path, config.to_string()).unwrap();
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_syncer"))
            .arg(format!("-config-file={}", path.display()))
            .stdout(File::create(&log).unwrap())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// The data of each line with this message.
    pub(crate) fn told(&self, action: &str) -> Vec<Value> {
        let message = format!("cfnetworking.policy-server-asg-syncer.{action}");
        let text = fs::read_to_string(&self.log).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["message"] == message.as_str())
            .map(|mut l| l["data"].take())
            .collect()
    }

    pub(crate) async fn until_told(&self, action: &str) -> Value {
        until(action, || !self.told(action).is_empty()).await;
        self.told(action).remove(0)
    }

    pub(crate) async fn url(&self) -> String {
        let told = self.until_told("debug-server-bound").await;
        format!("http://{}", told["address"].as_str().unwrap())
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Peak memory, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
