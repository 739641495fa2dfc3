//! A group's part of an HTTP answer, compressed once for everybody.
//!
//! A fragment is a piece of a deflate stream that ends at a byte and refers to
//! nothing before it, so that fragments may follow each other in any order. With
//! the checksum of each, the checksum of the whole is worked out without looking
//! at the text again: an answer is then one ordinary gzip member, which also
//! readers understand that know nothing of several.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};

/// See the module.
#[derive(Debug)]
pub struct Fragment {
    deflated: Bytes,
    /// Of the text, and how long it is.
    checksum: Crc,
}

thread_local! {
    /// A compressor has a quarter of a megabyte of state, most of it to be
    /// cleared when it is made.
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
        Self { deflated: deflated.into(), checksum }
    }

    /// The piece of the deflate stream.
    #[must_use]
    pub fn deflated(&self) -> &Bytes {
        &self.deflated
    }

    /// The checksum of the text.
    #[must_use]
    pub fn checksum(&self) -> &Crc {
        &self.checksum
    }

    /// Appends the text.
    pub fn inflate(&self, to: &mut Vec<u8>) {
        let end = to.len() + self.checksum.amount() as usize;
        // One byte more than needed, so that the last marker is taken too.
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
        // Room that is left means that nothing waits to be written.
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

    /// Fragments end at a byte with an empty block, and do not depend on what
    /// the same thread compressed before.
    #[test]
    fn fragments_stand_alone() {
        let text = br#"{"guid":"g1","name":"one"}"#;
        let first = Fragment::new(text);
        assert!(first.deflated().ends_with(&[0, 0, 0xff, 0xff]));
        assert_eq!(first.deflated(), Fragment::new(text).deflated());
    }
}
