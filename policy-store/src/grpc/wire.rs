//! Encodes responses with pre-encoded groups; all responses with a group share its
//! bytes.
//!
//! `tests/wire.rs` tests that generated code decodes the result.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::{
    Message,
    encoding::{self, WireType},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

use crate::{
    feed::parts::Part,
    groups::{page::Page, snapshot::Entry},
};

/// A message with hand-written encoding.
pub trait Wire {
    /// Writes the message's fields.
    fn write(&self, to: &mut impl BufMut);
}

/// `WatchResponse`.
impl Wire for Part {
    fn write(&self, to: &mut impl BufMut) {
        let Self { point, sequence, reset, upserted, removed, complete } = self;
        number(1, point.generation.0, to);
        flag(2, *reset, to);
        for entry in upserted {
            stored(3, entry, to);
        }
        for guid in removed {
            text(4, guid.as_str(), to);
        }
        flag(5, *complete, to);
        number(6, *sequence, to);
        signed(7, point.stamp.0, to);
    }
}

/// `ListResponse`.
impl Wire for Page {
    fn write(&self, to: &mut impl BufMut) {
        let Self { entries, next, generation } = self;
        for entry in entries {
            stored(1, entry, to);
        }
        number(2, next.map_or(0, |id| id.0), to);
        number(3, generation.0, to);
    }
}

// proto3 omits default values.
fn number(field: u32, value: u64, to: &mut impl BufMut) {
    if value != 0 {
        encoding::uint64::encode(field, &value, to);
    }
}

fn signed(field: u32, value: i64, to: &mut impl BufMut) {
    if value != 0 {
        encoding::int64::encode(field, &value, to);
    }
}

fn flag(field: u32, value: bool, to: &mut impl BufMut) {
    if value {
        encoding::bool::encode(field, &value, to);
    }
}

fn text(field: u32, value: &str, to: &mut impl BufMut) {
    message(field, value.as_bytes(), to);
}

fn message(field: u32, bytes: &[u8], to: &mut impl BufMut) {
    encoding::encode_key(field, WireType::LengthDelimited, to);
    encoding::encode_varint(bytes.len() as u64, to);
    to.put_slice(bytes);
}

/// `StoredGroup`.
fn stored(field: u32, entry: &Entry, to: &mut impl BufMut) {
    let Entry { id, encoded, .. } = entry;
    let group = encoding::key_len(2) + encoding::encoded_len_varint(encoded.len() as u64);
    let length = encoding::uint64::encoded_len(1, &id.0) + group + encoded.len();
    encoding::encode_key(field, WireType::LengthDelimited, to);
    encoding::encode_varint(length as u64, to);
    // Never 0, which would be omitted: ids ascend from 1.
    encoding::uint64::encode(1, &id.0, to);
    message(2, encoded, to);
}

/// Encodes the whole message.
pub fn to_bytes(message: &impl Wire) -> Bytes {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    bytes.into()
}

/// Codec with generated decoding of requests and hand-written encoding of responses.
pub(super) struct WireCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WireCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for WireCodec<T, U>
where
    T: Wire + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = WireEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        WireEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

pub(super) struct WireEncoder<T>(PhantomData<T>);

impl<T: Wire> Encoder for WireEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(to);
        Ok(())
    }

    /// Small, since every watcher has such a buffer: it grows on demand, and most watchers
    /// receive little.
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1 << 10, 32 << 10)
    }
}
