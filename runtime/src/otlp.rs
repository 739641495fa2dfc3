//! Spans of a change, sent to an OpenTelemetry collector over OTLP/gRPC.
//!
//! Off without the configuration section `otlp`: [`record`] is then one atomic load. The batch
//! processor of the SDK has a bounded queue and its own thread, so that a slow or dead collector
//! delays no service; spans that do not fit are dropped.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks,
        SpanProcessor as _,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    client,
    config::{Configure, HostPort, Reader},
    metrics::own::{OTLP_FAILED, OTLP_SENT},
    tls::{self, ClientTls, Role},
};

/// Time between two exports.
const EVERY: Duration = Duration::from_secs(1);

/// Timeout of an export, and of the last one at the end of the process.
const TIMEOUT: Duration = Duration::from_secs(2);

static PROCESSOR: OnceLock<BatchSpanProcessor> = OnceLock::new();

/// The section `otlp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `address` of the collector.
    pub address: HostPort,
    /// `ca_file`, `cert_file` and `key_file`; `None` for a connection without TLS.
    pub files: Option<tls::Files>,
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let address = keys.required("address");
        let files = tls::Files::optional(keys, ["ca_file", "cert_file", "key_file"]);
        Some(Self { address: address?, files: files? })
    }
}

/// Who sends spans, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The section.
    pub config: &'a Config,
    /// Tells the processes of a service apart.
    pub instance: Option<&'a str>,
}

/// Work that took a known time and belongs to a trace.
#[derive(Debug)]
pub struct Span(SpanData);

/// Queues a span for the collector. Without the section `otlp`, `span` is not called.
pub fn record(span: impl FnOnce() -> Span) {
    if let Some(processor) = PROCESSOR.get() {
        processor.on_end(span().0);
    }
}

impl Span {
    /// The first span of a trace, with the ids of both. The work ended now.
    #[must_use]
    pub fn root((trace, id): (u128, u64), name: &'static str, took: Duration) -> Self {
        Self::new(trace, id, 0, name, took)
    }

    /// A span below the span with these ids of trace and span. The work ended now.
    #[must_use]
    pub fn below((trace, parent): (u128, u64), name: &'static str, took: Duration) -> Self {
        Self::new(trace, uuid::Uuid::new_v4().as_u64_pair().1, parent, name, took)
    }

    fn new(trace: u128, id: u64, parent: u64, name: &'static str, took: Duration) -> Self {
        let end = SystemTime::from(jiff::Timestamp::now());
        let (trace, id) = (TraceId::from(trace), SpanId::from(id));
        Self(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: parent != 0,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: end.checked_sub(took).unwrap_or(end),
            end_time: end,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("portcullis").build(),
        })
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.0.attributes.push(KeyValue::new(key, value));
        self
    }

    /// The work failed.
    #[must_use]
    pub fn failed(mut self, error: String) -> Self {
        self.0.status = Status::error(error);
        self
    }
}

/// The connection to the collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    tls: Option<ClientTls>,
}

impl Exporter {
    /// Starts the export; `None` when `source` is absent. Unusable certificates do not prevent the
    /// start: the export begins once they can be used.
    ///
    /// # Errors
    /// The address is malformed.
    pub(crate) fn start(
        name: &'static str,
        version: &'static str,
        source: Option<Source<'_>>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(Source { config: Config { address, files }, instance }) = source else {
            return Ok(None);
        };
        let role = Role { service: "runtime", name: "otlp-client" };
        let tls = files.as_ref().map(|files| ClientTls::follow(role, files));
        let channel = client::channel(address.as_str(), tls.clone(), client::Options::default())
            .context("otlp.address")?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(TIMEOUT)
            .build()
            .context("creating the OTLP exporter")?;
        let batches = BatchConfigBuilder::default().with_scheduled_delay(EVERY).build();
        let exporter =
            Logged { exporter, address: address.as_str().into(), fails: AtomicBool::new(false) };
        let mut processor =
            BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder_empty()
            .with_service_name(name)
            .with_attribute(KeyValue::new("service.version", version));
        let instance = instance.map(|id| KeyValue::new("service.instance.id", id.to_owned()));
        processor.set_resource(&resource.with_attributes(instance).build());
        // A process starts one exporter.
        let _first = PROCESSOR.set(processor);
        Ok(Some(Self { tls }))
    }

    /// Reloads certificates until shutdown.
    pub(crate) async fn watch(&self, shutdown: CancellationToken) {
        if let Some(tls) = self.tls.clone() {
            let _never_fails = tls.watch(shutdown).await;
        }
    }

    /// Sends what is queued. Blocks, at most for [`TIMEOUT`].
    pub(crate) fn flush() {
        if let Some(processor) = PROCESSOR.get() {
            // The failed export has logged the error.
            let _failed = processor.shutdown_with_timeout(TIMEOUT);
        }
    }
}

/// Logs the first of several failed exports, and the end of the failures.
struct Logged<E> {
    exporter: E,
    address: Arc<str>,
    fails: AtomicBool,
}

impl<E> fmt::Debug for Logged<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logged").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Logged<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let outcome = self.exporter.export(batch).await;
        let fails = outcome.is_err();
        let failed = self.fails.swap(fails, Ordering::Relaxed);
        match &outcome {
            Ok(()) => OTLP_SENT.counter().increment(spans),
            Err(_) => OTLP_FAILED.counter().increment(spans),
        }
        match &outcome {
            Err(error) if !failed => {
                tracing::error!(address = &*self.address, error = %error, "otlp-export-failed");
            }
            Ok(()) if failed => tracing::info!(address = &*self.address, "otlp-export-resumed"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn a_span_keeps_its_place_in_the_trace() {
        let took = Duration::from_secs(3);
        let root = Span::root((7, 3), "sync", took).with("generation", 5).0;
        assert_eq!(root.span_context.trace_id(), TraceId::from(7));
        assert_eq!(root.span_context.span_id(), SpanId::from(3));
        assert_eq!(root.parent_span_id, SpanId::INVALID);
        assert_eq!(root.end_time.duration_since(root.start_time).unwrap(), took);
        let child = Span::below((7, 3), "read", took).failed("timeout".into()).0;
        assert_eq!(child.parent_span_id, SpanId::from(3));
        assert_ne!(child.span_context.span_id(), SpanId::from(3));
        assert_eq!(child.status, Status::error("timeout"));
    }

    #[test]
    fn the_files_are_given_together() {
        let config = parse::<Config>(r#"{"address": "[::1]:4317"}"#).unwrap().config;
        assert_eq!((config.address.as_str(), config.files), ("[::1]:4317", None));
        let problems = parse::<Config>(r#"{"address": "h:1", "ca_file": "/ca"}"#).unwrap_err();
        let text = problems.lines().collect::<Vec<_>>().join("\n");
        assert!(text.contains("cert_file: missing, although another file of the three is given"));
        assert!(text.contains("key_file: missing"), "{text}");
    }
}
