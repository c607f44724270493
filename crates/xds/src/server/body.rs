//! The body of a streaming answer: frames of shared bytes, then the gRPC status.
//!
//! **Invariant:** owns the task that fills it: a dropped body ends the stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the stream task sends.
pub(super) enum Item {
    /// One response.
    Frame(Vec<Bytes>),
    /// The gRPC status; nothing follows.
    End(HeaderMap),
}

const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

/// Yields what the stream task sends.
pub(super) struct StreamBody {
    items: mpsc::Receiver<Item>,
    chunks: VecDeque<Bytes>,
    ended: bool,
    task: JoinHandle<()>,
}

// === impl StreamBody ===

impl StreamBody {
    pub(super) fn new(items: mpsc::Receiver<Item>, task: JoinHandle<()>) -> Self {
        Self { items, chunks: VecDeque::new(), ended: false, task }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let trailers = match self.items.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Item::Frame(chunks))) => {
                    self.chunks = chunks.into();
                    continue;
                }
                Poll::Ready(Some(Item::End(trailers))) => trailers,
                // The task ended without a word: it panicked.
                Poll::Ready(None) => {
                    HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("13"))])
                }
            };
            self.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}
