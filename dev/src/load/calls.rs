//! The calls of the load on a Locket, ours or the genuine one.

use prost::bytes::Buf;
use proto::models::locket_client::LocketClient;
use proto::models::{
    FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode,
};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::empty;

/// Answers of FetchAll may be large: a Go client's 4 MiB are no limit here.
const LARGEST_ANSWER: usize = 256 << 20;

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
    locket: LocketClient<Channel>,
    plain: Grpc<Channel>,
}

impl Caller {
    pub(super) fn new(channel: Channel) -> Self {
        let plain = Grpc::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        Self { locket: LocketClient::new(channel), plain }
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
        Ok(self.locket.lock(request).await?.into_inner().fencing_token)
    }

    pub(super) async fn fetch(
        &mut self,
        presences: &Presences,
        worker: usize,
        number: u64,
    ) -> Result<(), Status> {
        let key = presences.key(worker, number);
        self.locket.fetch(FetchRequest { key }).await.map(drop)
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
        self.locket.release(ReleaseRequest { resource: Some(resource) }).await.map(drop)
    }

    /// How many bytes the presences are. They are counted and not decoded: what
    /// the load burns on a shared machine the server lacks.
    pub(super) async fn fetch_all(&mut self) -> Result<usize, Status> {
        let request =
            FetchAllRequest { type_code: TypeCode::Presence.into(), ..FetchAllRequest::default() };
        self.unary("/models.Locket/FetchAll", request, Count).await
    }

    pub(super) async fn empty(&mut self) -> Result<(), Status> {
        self.unary(empty::PATH, (), ProstCodec::<(), ()>::default()).await
    }

    async fn unary<C>(
        &mut self,
        path: &'static str,
        message: C::Encode,
        codec: C,
    ) -> Result<C::Decode, Status>
    where
        C: Codec,
        C::Encode: Send + Sync + 'static,
        C::Decode: Send + Sync + 'static,
    {
        let ready = self.plain.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        Ok(self.plain.unary(Request::new(message), path, codec).await?.into_inner())
    }
}

/// Reads an answer as the number of its bytes.
#[derive(Debug, Clone, Copy)]
struct Count;

impl Codec for Count {
    type Encode = FetchAllRequest;
    type Decode = usize;
    type Encoder = ProstEncoder<FetchAllRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Count {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = answer.remaining();
        answer.advance(bytes);
        Ok(Some(bytes))
    }
}
