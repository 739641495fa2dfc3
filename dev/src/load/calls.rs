//! The calls of the load on a Locket, ours or the genuine one.

use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use proto::models::{
    FetchAllRequest, FetchRequest, LockRequest, LockResponse, ReleaseRequest, Resource, TypeCode,
};
use tonic::Status;

use super::empty;
use super::wire::Connection;

/// The bytes before a message: a flag and its length.
const PREFIX: usize = 5;

/// The presences of one run. Their keys begin with something that no other run
/// has; each worker numbers its own.
#[derive(Debug)]
pub(super) struct Presences {
    prefix: String,
    value: String,
    ttl_seconds: u32,
}

impl Presences {
    /// With values of so many bytes.
    pub(super) fn new(value_size: u32, ttl_seconds: u32) -> Self {
        let prefix = format!("load-{}", uuid::Uuid::new_v4().simple());
        Self { prefix, value: "v".repeat(value_size as usize), ttl_seconds }
    }

    fn key(&self, worker: usize, number: u64) -> String {
        format!("{}-{worker}-{number}", self.prefix)
    }

    fn resource(&self, worker: usize, number: u64) -> Resource {
        Resource {
            key: self.key(worker, number),
            owner: self.prefix.clone(),
            value: self.value.clone(),
            type_code: TypeCode::Presence.into(),
            ..Resource::default()
        }
    }
}

/// One worker's end of a connection.
#[derive(Debug)]
pub(super) struct Caller {
    connection: Connection,
}

impl Caller {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Takes or keeps a presence; its fencing token, 0 from a genuine server.
    pub(super) async fn lock(
        &mut self,
        presences: &Presences,
        worker: usize,
        number: u64,
    ) -> Result<u64, Status> {
        let request = LockRequest {
            resource: Some(presences.resource(worker, number)),
            ttl_in_seconds: presences.ttl_seconds.into(),
        };
        let mut answer = BytesMut::new();
        self.call("/models.Locket/Lock", &request, |data| answer.put(data)).await?;
        let message = answer.get(PREFIX..).unwrap_or_default();
        let answer = LockResponse::decode(message);
        Ok(answer.map_err(|error| Status::internal(error.to_string()))?.fencing_token)
    }

    pub(super) async fn fetch(
        &mut self,
        presences: &Presences,
        worker: usize,
        number: u64,
    ) -> Result<(), Status> {
        let request = FetchRequest { key: presences.key(worker, number) };
        self.call("/models.Locket/Fetch", &request, drop).await
    }

    pub(super) async fn release(
        &mut self,
        presences: &Presences,
        worker: usize,
        number: u64,
    ) -> Result<(), Status> {
        let resource = Resource {
            key: presences.key(worker, number),
            owner: presences.prefix.clone(),
            ..Resource::default()
        };
        let request = ReleaseRequest { resource: Some(resource) };
        self.call("/models.Locket/Release", &request, drop).await
    }

    /// How many bytes the presences are. They are counted as they come in, and
    /// neither gathered nor decoded.
    pub(super) async fn fetch_all(&mut self) -> Result<usize, Status> {
        let request =
            FetchAllRequest { type_code: TypeCode::Presence.into(), ..FetchAllRequest::default() };
        let mut bytes = 0;
        self.call("/models.Locket/FetchAll", &request, |data| bytes += data.len()).await?;
        Ok(bytes.saturating_sub(PREFIX))
    }

    pub(super) async fn empty(&mut self) -> Result<(), Status> {
        self.call(empty::PATH, &(), drop).await
    }

    /// One unary call; `take` gets what comes of the answer.
    async fn call(
        &mut self,
        path: &'static str,
        message: &impl Message,
        take: impl FnMut(Bytes),
    ) -> Result<(), Status> {
        let length = message.encoded_len();
        let mut framed = BytesMut::with_capacity(PREFIX + length);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(length).expect("requests are small"));
        message.encode(&mut framed).expect("there is room");
        self.connection.call(path, framed.freeze(), take).await
    }
}
