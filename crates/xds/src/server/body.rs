//! The body of a streaming answer: messages of shared bytes, then the gRPC status.
//!
//! **Invariant:** owns the task that fills it: a dropped body ends the stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::wire::Outgoing;

const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

/// Yields what the stream task sends: responses, then the gRPC status.
///
/// The status has a way of its own, so that the task can end while a client does not read.
pub(super) struct StreamBody {
    messages: mpsc::Receiver<Outgoing>,
    end: oneshot::Receiver<HeaderMap>,
    /// What is being written.
    current: Option<Outgoing>,
    ended: bool,
    task: JoinHandle<()>,
}

// === impl StreamBody ===

impl StreamBody {
    pub(super) fn new(
        messages: mpsc::Receiver<Outgoing>,
        end: oneshot::Receiver<HeaderMap>,
        task: JoinHandle<()>,
    ) -> Self {
        Self { messages, end, current: None, ended: false, task }
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
            if let Some(chunk) = self.current.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            self.current = None;
            if let Some(message) = ready!(self.messages.poll_recv(cx)) {
                self.current = Some(message);
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
