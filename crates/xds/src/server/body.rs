//! The body of a streaming answer: frames of shared bytes, then the gRPC status.
//!
//! **Invariant:** owns the task that fills it: a dropped body ends the stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

/// Yields what the stream task sends: responses, then the gRPC status.
///
/// The status has a way of its own, so that the task can end while a client does not read.
pub(super) struct StreamBody {
    frames: mpsc::Receiver<Vec<Bytes>>,
    end: oneshot::Receiver<HeaderMap>,
    chunks: VecDeque<Bytes>,
    ended: bool,
    task: JoinHandle<()>,
}

// === impl StreamBody ===

impl StreamBody {
    pub(super) fn new(
        frames: mpsc::Receiver<Vec<Bytes>>,
        end: oneshot::Receiver<HeaderMap>,
        task: JoinHandle<()>,
    ) -> Self {
        Self { frames, end, chunks: VecDeque::new(), ended: false, task }
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
            if let Some(chunks) = ready!(self.frames.poll_recv(cx)) {
                self.chunks = chunks.into();
                continue;
            }
            let trailers = ready!(Pin::new(&mut self.end).poll(cx));
            self.ended = true;
            // The task ended without a word: it panicked.
            let panicked = || HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("13"))]);
            let trailers = trailers.unwrap_or_else(|_| panicked());
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}
