//! Requests on their way in: one message at a time, and how much of unfinished ones all streams
//! hold together.
//!
//! A request is kept until its last byte is there, up to the limit of one request. A few clients
//! that send most of a large one and no more could fill the memory of the process. What it was kept
//! in goes with it: a proxy that holds 10,000 clusters says so once, in half a megabyte, and its
//! stream lives for hours. tonic's own `Streaming` keeps a buffer for the largest one.
//!
//! **Invariant:** what is counted for a stream is what it holds, and is given back when it ends.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use http_body::Body as _;
use tonic::Status;

use super::Options;
use super::wire::WireRequest;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// A stream may hold so much of the limit of all, whatever others hold.
const SHARE: usize = 64;
/// Room that is made for a message before its bytes are there.
const ROOM: usize = 64 << 10;

/// The requests of a stream.
pub(super) struct Requests<W> {
    body: tonic::body::Body,
    /// What came and is not read yet.
    buffer: BytesMut,
    options: Arc<Options>,
    request: PhantomData<fn() -> W>,
}

// === impl Requests ===

impl<W: WireRequest> Requests<W> {
    pub(super) fn new(body: tonic::body::Body, options: Arc<Options>) -> Self {
        Self { body, buffer: BytesMut::new(), options, request: PhantomData }
    }

    /// The next request; none when there will be no more. Nothing is lost when this is dropped
    /// before it is ready.
    pub(super) async fn message(&mut self) -> Result<Option<W>, Status> {
        loop {
            if let Some(request) = self.read()? {
                return Ok(Some(request));
            }
            if !self.more().await? {
                return self.end();
            }
        }
    }

    /// Wait for more bytes of requests. False when there will be none.
    pub(super) async fn more(&mut self) -> Result<bool, Status> {
        let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
        match frame.transpose() {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => self.take(&data).map(|()| true),
                Err(_trailers) => Ok(false),
            },
            Ok(None) => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// No more will come.
    fn end(&self) -> Result<Option<W>, Status> {
        match self.buffer.is_empty() {
            true => Ok(None),
            false => Err(Status::internal("the stream ended within a message")),
        }
    }

    /// More bytes came.
    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        self.buffer.extend_from_slice(data);
        let Options { stats, intake_bytes: limit, .. } = &*self.options;
        stats.intake_bytes.add(data.len() as u64);
        if stats.intake_bytes.get() > *limit as u64 && self.buffer.len() > limit / SHARE {
            let limit = limit >> 20;
            let message = format!("unfinished requests of all proxies take {limit} MiB; try later");
            return Err(Status::resource_exhausted(message));
        }
        Ok(())
    }

    /// The next request, if all of it is there.
    fn read(&mut self) -> Result<Option<W>, Status> {
        let Some(mut prefix) = self.buffer.get(..PREFIX) else { return Ok(None) };
        let compressed = prefix.get_u8();
        if compressed != 0 {
            let message = "a message is marked as compressed, and no compression was agreed on";
            return Err(Status::internal(message));
        }
        let (length, limit) = (prefix.get_u32() as usize, self.options.request_bytes);
        if length > limit {
            let message = format!("a request of {length} bytes; at most {limit}");
            return Err(Status::resource_exhausted(message));
        }
        let whole = PREFIX + length;
        if self.buffer.len() < whole {
            self.buffer.reserve((whole - self.buffer.len()).min(ROOM));
            return Ok(None);
        }
        let message = self.buffer.split_to(whole).freeze();
        // A few bytes of the next one must not hold what this one was kept in. When they are more,
        // it goes with them.
        if self.buffer.len() < whole {
            self.buffer = BytesMut::from(&*self.buffer);
        }
        self.options.stats.intake_bytes.subtract(whole as u64);
        let request = W::decode(message.slice(PREFIX..));
        request.map(Some).map_err(|e| Status::invalid_argument(format!("bad request: {e}")))
    }
}

impl<W> Drop for Requests<W> {
    fn drop(&mut self) {
        self.options.stats.intake_bytes.subtract(self.buffer.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use prost::Message as _;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::server::wire::WireDeltaRequest;

    fn options() -> Arc<Options> {
        Arc::new(Options::new("a", mpsc::channel(1).0, watch::channel(false).1))
    }

    fn requests(chunks: Vec<Bytes>) -> Requests<WireDeltaRequest> {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        let body = StreamBody::new(tokio_stream::iter(frames));
        Requests::new(tonic::body::Body::new(body), options())
    }

    /// A request with so many bytes, as it is on the wire.
    fn framed(bytes: usize) -> Vec<u8> {
        let request = envoy_api::envoy::service::discovery::v3::DeltaDiscoveryRequest {
            response_nonce: "n".repeat(bytes),
            ..Default::default()
        };
        let message = request.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length[..], &message[..]].concat()
    }

    #[tokio::test]
    async fn messages_are_read_however_they_are_cut() {
        let sizes = [0, 1, 300, 0, 70_000, 2];
        let bytes: Vec<u8> = sizes.into_iter().flat_map(framed).collect();
        for size in [1, 4, 5, 6, 16_384, bytes.len()] {
            let chunks = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let mut requests = requests(chunks);
            let mut read = 0;
            while let Some(request) = requests.message().await.unwrap() {
                assert_eq!(request.encoded_len() + PREFIX, framed(sizes[read]).len());
                read += 1;
            }
            assert_eq!((read, requests.options.stats.intake_bytes.get()), (sizes.len(), 0));
        }
    }

    #[tokio::test]
    async fn what_a_large_request_was_kept_in_goes_with_it() {
        let bytes = [framed(1 << 20), framed(1)[..3].to_vec()].concat();
        let mut requests = requests(vec![bytes.into()]);
        requests.message().await.unwrap().expect("a request");
        assert_eq!(requests.buffer.len(), 3);
        assert!(!requests.buffer.try_reclaim(1 << 19), "it holds what the request was kept in");
        assert!(requests.message().await.is_err(), "the stream ended within a message");
    }
}
