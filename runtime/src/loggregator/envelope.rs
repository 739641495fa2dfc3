//! The `loggregator.v2` messages that are sent here, with the fields of
//! github.com/cloudfoundry/loggregator-api (v2/envelope.proto).

use std::collections::BTreeMap;

/// Message on the stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnvelopeBatch {
    /// Envelopes in order of creation.
    #[prost(message, repeated, tag = "1")]
    pub batch: Vec<Envelope>,
}

/// One event with its source.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "1")]
    pub timestamp: i64,
    /// The component, or the GUID of an app.
    #[prost(string, tag = "2")]
    pub source_id: String,
    /// The instance of the source.
    #[prost(string, tag = "8")]
    pub instance_id: String,
    /// Further tags; `origin` is always present.
    #[prost(btree_map = "string, string", tag = "9")]
    pub tags: BTreeMap<String, String>,
    /// The event.
    #[prost(oneof = "Message", tags = "4, 6")]
    pub message: Option<Message>,
}

/// The kinds of event sent here.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Message {
    /// A log line.
    #[prost(message, tag = "4")]
    Log(Log),
    /// Current values.
    #[prost(message, tag = "6")]
    Gauge(Gauge),
}

/// A log line.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Log {
    /// The text, without a newline.
    #[prost(bytes = "vec", tag = "1")]
    pub payload: Vec<u8>,
    /// [`Stream`] as a number.
    #[prost(enumeration = "Stream", tag = "2")]
    pub r#type: i32,
}

/// Output stream of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stream {
    /// Standard output.
    Out = 0,
    /// Standard error.
    Err = 1,
}

/// Current values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gauge {
    /// Values by name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub metrics: BTreeMap<String, GaugeValue>,
}

/// One value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GaugeValue {
    /// The unit, such as `nanos`.
    #[prost(string, tag = "1")]
    pub unit: String,
    /// The value.
    #[prost(double, tag = "2")]
    pub value: f64,
}

/// Response of an agent when a stream ends.
#[derive(Clone, PartialEq, prost::Message)]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, reason = "public in the interface of the test agent")
)]
pub struct BatchSenderResponse {}
