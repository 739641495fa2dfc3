//! Response body with security groups, assembled while it is sent.
//!
//! The whole body never exists in memory: a frame holds the bytes since the last frame,
//! and the bytes of the groups belong to the snapshot.

use std::{mem, sync::Arc, vec};

use bytes::Bytes;
use flate2::Crc;

use crate::groups::{fragment::Texts, snapshot::Entry};

/// Minimum size of a frame, except the last: about one TLS record.
const FRAME: usize = 16 << 10;

/// Content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not compressed.
    Identity,
    /// As one gzip member.
    Gzip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    First,
    Later,
    End,
}

/// Frames of one response.
#[derive(Debug)]
pub struct Frames {
    coding: Coding,
    next: u64,
    entries: vec::IntoIter<Arc<Entry>>,
    texts: Texts,
    place: Place,
    frame: Vec<u8>,
    /// A piece that becomes a frame of its own after `frame`.
    large: Option<Bytes>,
    /// Checksum of the text so far.
    checksum: Crc,
}

impl Frames {
    /// A response with these groups and the first id of the next page (0 after the last).
    /// Texts are cached in `texts`.
    #[must_use]
    pub fn new(coding: Coding, next: u64, entries: Vec<Arc<Entry>>, texts: Texts) -> Self {
        Self {
            coding,
            next,
            entries: entries.into_iter(),
            texts,
            place: Place::Start,
            frame: Vec::new(),
            large: None,
            checksum: Crc::new(),
        }
    }

    /// Whether all frames were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.place == Place::End && self.frame.is_empty() && self.large.is_none()
    }

    fn step(&mut self) {
        match (self.place, self.entries.next()) {
            (Place::Start, first) => {
                self.begin();
                self.place = Place::First;
                match first {
                    Some(entry) => self.group(&entry),
                    None => self.end(),
                }
            }
            (Place::First | Place::Later, Some(entry)) => self.group(&entry),
            (Place::First | Place::Later, None) => self.end(),
            (Place::End, _) => {}
        }
    }

    fn begin(&mut self) {
        if self.coding == Coding::Gzip {
            // Deflate, no name, no modification time, unknown OS.
            self.frame.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
        }
        let text = format!("{{\"next\":{},\"security_groups\":[", self.next);
        self.text(text.as_bytes(), false);
    }

    fn group(&mut self, entry: &Entry) {
        if self.place == Place::Later {
            self.text(b",", false);
        }
        self.place = Place::Later;
        let fragment = entry.fragment();
        match self.coding {
            Coding::Identity => fragment.append(&mut self.frame, &self.texts),
            Coding::Gzip => {
                self.checksum.combine(fragment.checksum());
                let piece = fragment.deflated();
                match piece.len() < FRAME {
                    true => self.frame.extend_from_slice(piece),
                    false => self.large = Some(piece.clone()),
                }
            }
        }
    }

    fn end(&mut self) {
        self.text(b"]}", true);
        if self.coding == Coding::Gzip {
            self.frame.extend(self.checksum.sum().to_le_bytes());
            self.frame.extend(self.checksum.amount().to_le_bytes());
        }
        self.place = Place::End;
    }

    /// Appends a few bytes; in gzip as an uncompressed block.
    fn text(&mut self, text: &[u8], is_last: bool) {
        if self.coding == Coding::Gzip {
            self.checksum.update(text);
            let length = u16::try_from(text.len()).expect("a few bytes");
            self.frame.push(u8::from(is_last));
            self.frame.extend(length.to_le_bytes());
            self.frame.extend((!length).to_le_bytes());
        }
        self.frame.extend_from_slice(text);
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.place != Place::End && self.frame.len() < FRAME && self.large.is_none() {
            self.step();
        }
        if self.frame.is_empty() {
            return self.large.take();
        }
        let room = match self.place {
            Place::End => 0,
            Place::Start | Place::First | Place::Later => FRAME + FRAME / 4,
        };
        Some(mem::replace(&mut self.frame, Vec::with_capacity(room)).into())
    }
}
