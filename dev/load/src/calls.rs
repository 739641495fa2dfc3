//! The calls of the load tools on a Locket, ours or the genuine one.

use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use proto::models::{
    FetchAllRequest, FetchAllResponse, FetchRequest, LockRequest, LockResponse, ReleaseRequest,
    Resource, TypeCode,
};
use tonic::Status;

use super::empty;
use super::wire::Connection;

/// Length of the gRPC prefix of a message: a flag and the length.
const PREFIX: usize = 5;

/// The presences of one run, or the locks. Their keys have a prefix that is unique to
/// the run; each worker numbers its own.
#[derive(Debug)]
pub(super) struct Presences {
    prefix: String,
    value: String,
    ttl_seconds: u32,
    kind: TypeCode,
}

impl Presences {
    /// Presences with values of this length in bytes.
    pub(super) fn new(value_size: u32, ttl_seconds: u32) -> Self {
        let prefix = format!("load-{}", uuid::Uuid::new_v4().simple());
        let value = "v".repeat(value_size as usize);
        Self { prefix, value, ttl_seconds, kind: TypeCode::Presence }
    }

    /// Locks instead of presences.
    pub(super) fn locks(value_size: u32, ttl_seconds: u32) -> Self {
        Self { kind: TypeCode::Lock, ..Self::new(value_size, ttl_seconds) }
    }

    fn key(&self, worker: usize, number: u64) -> String {
        format!("{}-{worker}-{number}", self.prefix)
    }

    fn presence(&self, worker: usize, number: u64) -> Resource {
        Resource {
            key: self.key(worker, number),
            owner: self.prefix.clone(),
            value: self.value.clone(),
            type_code: self.kind.into(),
            ..Resource::default()
        }
    }

    /// Length in bytes of a response with this number of presences.
    #[expect(deprecated, reason = "answers have it")]
    pub(super) fn answer_len(&self, count: u32) -> usize {
        let typed = |number| Resource { r#type: "presence".to_owned(), ..self.presence(0, number) };
        let resources = (0..u64::from(count)).map(typed).collect();
        PREFIX + FetchAllResponse { resources }.encoded_len()
    }

    /// The request that acquires or refreshes a presence.
    pub(super) fn lock(&self, worker: usize, number: u64) -> Bytes {
        let resource = self.presence(worker, number);
        framed(&LockRequest { resource: Some(resource), ttl_in_seconds: self.ttl_seconds.into() })
    }

    /// The request that reads a presence.
    pub(super) fn fetch(&self, worker: usize, number: u64) -> Bytes {
        framed(&FetchRequest { key: self.key(worker, number) })
    }

    /// The request that releases a presence.
    pub(super) fn release(&self, worker: usize, number: u64) -> Bytes {
        let resource = Resource {
            key: self.key(worker, number),
            owner: self.prefix.clone(),
            ..Resource::default()
        };
        framed(&ReleaseRequest { resource: Some(resource) })
    }
}

/// A message in its gRPC frame.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("requests are small"));
    message.encode(&mut framed).expect("there is room");
    framed.freeze()
}

/// One worker's handle of a connection.
#[derive(Debug)]
pub(super) struct Caller {
    connection: Connection,
}

impl Caller {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Acquires or refreshes a presence; returns its fencing token, 0 from a genuine
    /// server.
    pub(super) async fn lock(&mut self, request: Bytes) -> Result<u64, Status> {
        let mut answer = BytesMut::new();
        self.connection.call("/models.Locket/Lock", request, |data| answer.put(data)).await?;
        let message = answer.get(PREFIX..).unwrap_or_default();
        let answer = LockResponse::decode(message);
        Ok(answer.map_err(|error| Status::internal(error.to_string()))?.fencing_token)
    }

    pub(super) async fn fetch(&mut self, request: Bytes) -> Result<(), Status> {
        self.connection.call("/models.Locket/Fetch", request, drop).await
    }

    pub(super) async fn release(&mut self, request: Bytes) -> Result<(), Status> {
        self.connection.call("/models.Locket/Release", request, drop).await
    }

    /// Reads all presences; returns their length in bytes. The bytes are counted as
    /// they arrive, and neither collected nor decoded.
    pub(super) async fn fetch_all(&mut self) -> Result<usize, Status> {
        let request =
            FetchAllRequest { type_code: TypeCode::Presence.into(), ..FetchAllRequest::default() };
        let (request, mut bytes) = (framed(&request), 0);
        let count = |data: Bytes| bytes += data.len();
        self.connection.call("/models.Locket/FetchAll", request, count).await?;
        Ok(bytes.saturating_sub(PREFIX))
    }

    pub(super) async fn empty(&mut self) -> Result<(), Status> {
        self.connection.call(empty::PATH, framed(&()), drop).await
    }
}
