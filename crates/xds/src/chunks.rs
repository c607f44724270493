//! Bytes on their way out, in pieces that a connection likes.
//!
//! In: a head and shared entries. Out: chunks, made one by one as they are taken.
//!
//! **Invariant:** the bytes of a large entry are never copied.

use bytes::{BufMut, Bytes, BytesMut};

/// Entries up to this size are joined into one chunk: many small chunks cost more than the copy.
const JOIN: usize = 16 << 10;

/// Bytes that are joined at most: each stream that is behind holds so much for itself.
pub(crate) const CHUNK: usize = 64 << 10;

/// A head and the entries behind it.
pub(crate) struct Chunks {
    /// The head, until it is taken.
    first: BytesMut,
    entries: std::vec::IntoIter<Bytes>,
}

// === impl Chunks ===

impl Chunks {
    pub(crate) fn new(first: BytesMut, entries: Vec<Bytes>) -> Self {
        Self { first, entries: entries.into_iter() }
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    /// The next chunk: a large entry as it is, else as many entries as go into one.
    fn next(&mut self) -> Option<Bytes> {
        let mut joined = std::mem::take(&mut self.first);
        let mut fits = joined.len();
        let rest = self.entries.as_slice();
        let small = rest.iter().take_while(|entry| {
            fits += entry.len();
            entry.len() <= JOIN && fits <= CHUNK
        });
        let count = small.count();
        if joined.is_empty() && count <= 1 {
            return self.entries.next();
        }
        joined.reserve(rest[..count].iter().map(Bytes::len).sum());
        for entry in self.entries.by_ref().take(count) {
            joined.put_slice(&entry);
        }
        Some(joined.freeze())
    }
}
