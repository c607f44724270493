//! Requests on their way in: how much of unfinished ones all streams hold together.
//!
//! A request is kept until its last byte is there, up to the limit of one request. A few clients
//! that send most of a large one and no more could fill the memory of the process.
//!
//! **Invariant:** what is counted for a stream is given back when the stream ends, at the latest.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::Status;

use crate::stats::Stats;

/// A stream may hold so much of the limit of all, whatever others hold.
const SHARE: usize = 64;

/// Bytes of requests that one stream holds.
pub(super) struct Intake {
    stats: Arc<Stats>,
    /// Bytes that all streams may hold.
    limit: usize,
    own: AtomicUsize,
}

/// The body of a stream's requests, counted.
pub(super) struct Counted {
    body: tonic::body::Body,
    intake: Arc<Intake>,
}

// === impl Intake ===

impl Intake {
    pub(super) fn new(stats: Arc<Stats>, limit: usize) -> Arc<Self> {
        Arc::new(Self { stats, limit, own: AtomicUsize::new(0) })
    }

    /// More bytes came.
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.stats.intake_bytes.add(bytes as u64);
        if self.stats.intake_bytes.get() > self.limit as u64 && own > self.limit / SHARE {
            let limit = self.limit >> 20;
            let message = format!("unfinished requests of all proxies take {limit} MiB; try later");
            return Err(Status::resource_exhausted(message));
        }
        Ok(())
    }

    /// A message of so many bytes is complete.
    pub(super) fn complete(&self, bytes: usize) {
        let own = self.own.load(Ordering::Relaxed);
        let bytes = bytes.min(own);
        self.own.store(own - bytes, Ordering::Relaxed);
        self.stats.intake_bytes.subtract(bytes as u64);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.complete(usize::MAX);
    }
}

// === impl Counted ===

impl Counted {
    pub(super) fn new(body: tonic::body::Body, intake: Arc<Intake>) -> Self {
        Self { body, intake }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let bytes = frame.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum();
        Poll::Ready(match self.intake.take(bytes) {
            Ok(()) => frame,
            Err(status) => Some(Err(status)),
        })
    }
}
