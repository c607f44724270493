//! Responses in pieces: chunks of bytes that a connection likes, names that fit into a response.
//!
//! **Invariant:** the bytes of a large entry are never copied; a piece is never empty.

use bytes::{BufMut, Bytes, BytesMut};

/// Entries up to this size are joined into one chunk: many small chunks cost more than the copy.
const JOIN: usize = 16 << 10;

/// Bytes that are joined at most: each stream that is behind holds so much for itself.
const CHUNK: usize = 64 << 10;

/// The next chunk of a head, which may be empty, and the entries behind it: a large entry as it is,
/// else as many entries as go into one. How many entries it takes; none = nothing is left.
pub(crate) fn chunk(mut head: BytesMut, entries: &[Bytes]) -> Option<(usize, Bytes)> {
    let mut fits = head.len();
    let small = entries.iter().take_while(|entry| {
        fits += entry.len();
        entry.len() <= JOIN && fits <= CHUNK
    });
    let count = small.count();
    if head.is_empty() && count <= 1 {
        return Some((1, entries.first()?.clone()));
    }
    head.reserve(entries[..count].iter().map(Bytes::len).sum());
    for entry in &entries[..count] {
        head.put_slice(entry);
    }
    Some((count, head.freeze()))
}

/// Names, one after the other, in parts of so many bytes, or of one name that is longer.
pub(crate) fn parts<T: AsRef<str>>(names: &[T], bytes: usize) -> impl Iterator<Item = &[T]> {
    let mut sum = names.first().map_or(0, |name| name.as_ref().len());
    names.chunk_by(move |_, next| {
        let next = next.as_ref().len();
        sum += next;
        let fits = sum <= bytes;
        if !fits {
            sum = next;
        }
        fits
    })
}
