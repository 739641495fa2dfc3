//! The keys of the originals' `loggregator` section (docs/compatibility/locket.md#configuration).

use crate::config::{Configure, Reader};
use crate::tls;

/// Agent address when no port is configured.
const ANY_AGENT: &str = "localhost:3458";
const LOCAL_HOST: &str = "127.0.0.1";
/// Envelopes in a batch.
const BATCH: u32 = 100;

/// Keys that name the job; the originals read them and use none.
const IGNORED: [&str; 4] = [
    "loggregator_job_deployment",
    "loggregator_job_name",
    "loggregator_job_index",
    "loggregator_job_ip",
];

/// Values of the section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `loggregator_use_v2_api`: Locket ignores this key, other components use it.
    pub use_v2_api: bool,
    /// `loggregator_api_host` and `loggregator_api_port`.
    pub address: String,
    /// `loggregator_ca_path`, `loggregator_cert_path`, `loggregator_key_path`;
    /// `None` when none of them is given.
    pub files: Option<tls::Files>,
    /// `loggregator_job_origin`: the tag `origin` of every envelope.
    pub origin: String,
    /// `loggregator_source_id`: source id of gauges.
    pub source_id: String,
    /// `loggregator_instance_id`: instance id of gauges.
    pub instance_id: String,
    /// `loggregator_batch_max_size`: envelopes in a batch, at least 1.
    pub batch: usize,
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(&IGNORED);
        let use_v2_api = keys.or("loggregator_use_v2_api", false);
        let host = keys.or("loggregator_api_host", LOCAL_HOST.to_owned());
        let port = keys.or::<u16>("loggregator_api_port", 0);
        let files = tls::Files::optional(
            keys,
            ["loggregator_ca_path", "loggregator_cert_path", "loggregator_key_path"],
        );
        let origin = keys.or("loggregator_job_origin", String::new());
        let source_id = keys.or("loggregator_source_id", String::new());
        let instance_id = keys.or("loggregator_instance_id", String::new());
        let batch = keys.or("loggregator_batch_max_size", BATCH);
        let (host, port) = (host?, port?);
        Some(Self {
            use_v2_api: use_v2_api?,
            address: if port == 0 { ANY_AGENT.to_owned() } else { format!("{host}:{port}") },
            files: files?,
            origin: origin?,
            source_id: source_id?,
            instance_id: instance_id?,
            // The originals see 0 when the key is absent.
            batch: match batch? {
                0 => BATCH as usize,
                some => some as usize,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn an_empty_section_disables_the_agent() {
        let Config { use_v2_api, address, files, origin, source_id, instance_id, batch } =
            parse::<Config>("{}").unwrap().config;
        assert!(!use_v2_api);
        assert_eq!((address.as_str(), batch), ("localhost:3458", 100));
        assert_eq!(files, None);
        assert_eq!((origin, source_id, instance_id), Default::default());
    }

    #[test]
    fn the_loggregator_section_of_the_bosh_job_is_parsed() {
        let json = r#"{
            "loggregator_use_v2_api": true, "loggregator_api_port": 3459,
            "loggregator_ca_path": "ca", "loggregator_cert_path": "cert",
            "loggregator_key_path": "key", "loggregator_job_origin": "locket",
            "loggregator_source_id": "locket", "loggregator_instance_id": "7",
            "loggregator_job_deployment": "cf", "loggregator_job_name": "diego-api",
            "loggregator_job_index": "7", "loggregator_job_ip": "10.0.0.1",
            "loggregator_batch_max_size": 0
        }"#;
        let loaded = parse::<Config>(json).unwrap();
        assert!(loaded.unknown.is_empty(), "{:?}", loaded.unknown);
        let config = loaded.config;
        assert_eq!((config.address.as_str(), config.batch), ("127.0.0.1:3459", 100));
        let files = tls::Files { ca: "ca".into(), cert: "cert".into(), key: "key".into() };
        assert_eq!(config.files, Some(files));
        assert!(config.use_v2_api);
    }

    #[test]
    fn each_missing_tls_file_is_a_problem() {
        let error = parse::<Config>(r#"{"loggregator_cert_path": "cert"}"#).unwrap_err();
        assert_eq!(error.problems().len(), 2, "{error}");
        assert!(error.to_string().contains("loggregator_key_path: missing"), "{error}");
    }
}
