//! Part of an HTTP response for one group, compressed once for all responses.
//!
//! A fragment is a piece of a deflate stream that ends at a byte boundary and refers to
//! nothing before it, so that fragments can be concatenated in any order. The checksum
//! of the whole is combined from the checksums of the fragments without reading the
//! text: a response is then one ordinary gzip member, which also readers without
//! support for several members understand.
//!
//! Clients without gzip support get the text. It is cached beside its compressed form
//! at the first such request, as long as [`Texts`] has room; otherwise it is
//! decompressed each time.

use std::{
    cell::RefCell,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Compressed part of a response; see the module.
#[derive(Debug)]
pub struct Fragment {
    deflated: Bytes,
    /// Checksum and length of the text.
    checksum: Crc,
    text: OnceLock<Kept>,
}

/// A cached text; its room is released on drop.
#[derive(Debug)]
struct Kept {
    text: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Bounded room for cached texts.
#[derive(Debug, Clone)]
pub struct Texts(Arc<Semaphore>);

impl Texts {
    /// Room for this number of bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    fn keep(&self, text: &[u8]) -> Option<Kept> {
        let bytes = u32::try_from(text.len()).ok()?;
        let room = Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()?;
        Some(Kept { text: Bytes::copy_from_slice(text), _room: room })
    }
}

thread_local! {
    /// A compressor has a quarter of a megabyte of state, and creating one clears most of
    /// it: reuse it per thread.
    static COMPRESS: RefCell<Compress> = RefCell::new(Compress::new(Compression::new(6), false));
    static DECOMPRESS: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

impl Fragment {
    /// Compresses a text.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let mut checksum = Crc::new();
        checksum.update(text);
        let deflated = COMPRESS.with_borrow_mut(|compress| {
            compress.reset();
            deflate(compress, text)
        });
        Self { deflated: deflated.into(), checksum, text: OnceLock::new() }
    }

    /// The deflate stream of the fragment.
    #[must_use]
    pub fn deflated(&self) -> &Bytes {
        &self.deflated
    }

    /// The checksum of the text.
    #[must_use]
    pub fn checksum(&self) -> &Crc {
        &self.checksum
    }

    /// Appends the text, and caches it if there is room.
    pub fn append(&self, to: &mut Vec<u8>, texts: &Texts) {
        if let Some(Kept { text, .. }) = self.text.get() {
            return to.extend_from_slice(text);
        }
        let begin = to.len();
        self.inflate(to);
        if let Some(kept) = texts.keep(&to[begin..]) {
            // Another request may have been faster: its copy stays cached.
            let _room_is_given_back = self.text.set(kept);
        }
    }

    fn inflate(&self, to: &mut Vec<u8>) {
        let end = to.len() + self.checksum.amount() as usize;
        // One byte more than needed, so that the last marker is read too.
        to.reserve(self.checksum.amount() as usize + 1);
        DECOMPRESS.with_borrow_mut(|decompress| {
            decompress.reset(false);
            while to.len() < end {
                let read = usize::try_from(decompress.total_in()).expect("less than the memory");
                let status = decompress
                    .decompress_vec(&self.deflated[read..], to, FlushDecompress::Sync)
                    .expect("we compressed it");
                assert_eq!(status, Status::Ok, "the text goes on");
            }
        });
    }
}

fn deflate(compress: &mut Compress, text: &[u8]) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(text.len() / 4 + 64);
    loop {
        let read = usize::try_from(compress.total_in()).expect("less than the memory");
        compress
            .compress_vec(&text[read..], &mut deflated, FlushCompress::Sync)
            .expect("compressing into memory does not fail");
        let is_read = compress.total_in() == text.len() as u64;
        // Remaining output space means that the compressor has no pending output.
        if is_read && deflated.len() < deflated.capacity() {
            deflated.shrink_to_fit();
            return deflated;
        }
        deflated.reserve(text.len() / 4 + 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(fragment: &Fragment) -> Vec<u8> {
        let mut text = b"before ".to_vec();
        fragment.inflate(&mut text);
        text.split_off(7)
    }

    #[test]
    fn a_text_comes_back() {
        let random: Vec<u8> = (0..300_000u32)
            .map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31).to_be_bytes()[0])
            .collect();
        for length in [0, 1, 2, 100, 65_535, 65_536, 300_000] {
            let fragment = Fragment::new(&random[..length]);
            assert_eq!(text_of(&fragment), &random[..length], "{length}");
            let same = vec![b'x'; length];
            assert_eq!(text_of(&Fragment::new(&same)), same, "{length}");
        }
    }

    #[test]
    fn texts_are_kept_as_long_as_there_is_room() {
        let texts = Texts::new(1_000);
        let appended = |fragment: &Fragment| {
            let mut text = b"before ".to_vec();
            fragment.append(&mut text, &texts);
            text.split_off(7)
        };
        let fragments = [b'x', b'y'].map(|byte| Fragment::new(&[byte; 600]));
        for _ in 0..3 {
            assert_eq!(appended(&fragments[0]), [b'x'; 600]);
            assert_eq!(appended(&fragments[1]), [b'y'; 600]);
        }
        assert!(fragments[0].text.get().is_some() && fragments[1].text.get().is_none());
        let [first, second] = fragments;
        drop(first);
        assert_eq!(appended(&second), [b'y'; 600]);
        assert!(second.text.get().is_some(), "the room was given back");
    }

    /// Fragments end at a byte boundary with an empty block, and do not depend on earlier
    /// compressions by the same thread.
    #[test]
    fn fragments_stand_alone() {
        let text = br#"{"guid":"g1","name":"one"}"#;
        let first = Fragment::new(text);
        assert!(first.deflated().ends_with(&[0, 0, 0xff, 0xff]));
        assert_eq!(first.deflated(), Fragment::new(text).deflated());
    }
}
