//! The messages of `loggregator.v2` that are sent here, field by field as
//! github.com/cloudfoundry/loggregator-api has them (v2/envelope.proto).

use std::collections::BTreeMap;

/// What goes over the stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnvelopeBatch {
    /// In the order in which they were made.
    #[prost(message, repeated, tag = "1")]
    pub batch: Vec<Envelope>,
}

/// One event, with who it is about.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "1")]
    pub timestamp: i64,
    /// The component, or the guid of an app.
    #[prost(string, tag = "2")]
    pub source_id: String,
    /// Which instance of it.
    #[prost(string, tag = "8")]
    pub instance_id: String,
    /// Whatever else is known; `origin` always.
    #[prost(btree_map = "string, string", tag = "9")]
    pub tags: BTreeMap<String, String>,
    /// What happened.
    #[prost(oneof = "Message", tags = "4, 6")]
    pub message: Option<Message>,
}

/// The kinds of event that are sent here.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Message {
    /// A line of a log.
    #[prost(message, tag = "4")]
    Log(Log),
    /// Values of this moment.
    #[prost(message, tag = "6")]
    Gauge(Gauge),
}

/// A line of a log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Log {
    /// The text, without a line end.
    #[prost(bytes = "vec", tag = "1")]
    pub payload: Vec<u8>,
    /// [`Stream`] as a number.
    #[prost(enumeration = "Stream", tag = "2")]
    pub r#type: i32,
}

/// Which stream of an app a line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stream {
    /// Standard output.
    Out = 0,
    /// Standard error.
    Err = 1,
}

/// Values of this moment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gauge {
    /// By their names.
    #[prost(btree_map = "string, message", tag = "1")]
    pub metrics: BTreeMap<String, GaugeValue>,
}

/// One value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GaugeValue {
    /// What it counts, such as `nanos`.
    #[prost(string, tag = "1")]
    pub unit: String,
    /// The number.
    #[prost(double, tag = "2")]
    pub value: f64,
}

/// What an agent answers when a stream ends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchSenderResponse {}
