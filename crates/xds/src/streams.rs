//! The open streams of this replica, for admin pages and dumps.
//!
//! In: each stream registers itself. Out: copies of their state, taken on demand, so that an idle
//! page costs nothing.
//!
//! **Invariant:** a lock is held for one step of one session or one copy, never across `.await`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use envoy_api::{ContentHash, ResourceType};
use tokio::time::Instant;

use crate::publication::{ScopeId, ScopeView};
use crate::session::{Notice, Rejection, Response, Session, SotwSession, TypeStatus};

/// Number of a stream, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// The variant of xDS that a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `DeltaAggregatedResources`.
    Delta,
    /// `StreamAggregatedResources`.
    Sotw,
}

/// One stream, as people see it.
#[derive(Clone, Debug)]
pub struct StreamStatus {
    /// The stream.
    pub id: StreamId,
    /// `node.id` of its first request.
    pub node_id: Arc<str>,
    /// The variant it speaks.
    pub protocol: Protocol,
    /// When its first request was read.
    pub connected_since: SystemTime,
    /// Its scope; `None` = not known yet.
    pub scope: Option<ScopeId>,
    /// State of every type it asked for; times are since `connected_since`.
    pub types: Vec<TypeStatus>,
}

/// The registry.
#[derive(Debug, Default)]
pub struct Streams {
    last: AtomicU64,
    open: Mutex<BTreeMap<StreamId, Arc<Stream>>>,
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) node_id: Arc<str>,
    protocol: Protocol,
    connected_since: SystemTime,
    began: Instant,
    state: Mutex<StreamState>,
}

#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) scope: Option<ScopeId>,
    pub(crate) machine: Machine,
}

/// The session of either variant.
#[derive(Debug)]
pub(crate) enum Machine {
    Delta(Box<Session>),
    Sotw(Box<SotwSession>),
}

/// Takes the stream out of the registry when dropped.
pub(crate) struct Registered {
    pub(crate) stream: Arc<Stream>,
    streams: Arc<Streams>,
}

// === impl Streams ===

impl Streams {
    /// Every open stream.
    pub fn list(&self) -> Vec<StreamStatus> {
        let open: Vec<_> = self.open().values().cloned().collect();
        open.iter().map(|stream| stream.status()).collect()
    }

    /// One open stream.
    pub fn get(&self, id: StreamId) -> Option<StreamStatus> {
        let stream = self.open().get(&id).cloned();
        stream.map(|stream| stream.status())
    }

    /// The versions that a stream's proxy holds of a type; `None` = the stream is gone.
    pub fn held(
        &self,
        id: StreamId,
        resource_type: ResourceType,
    ) -> Option<BTreeMap<Arc<str>, ContentHash>> {
        let stream = self.open().get(&id).cloned()?;
        Some(stream.state().machine.held(resource_type))
    }

    pub(crate) fn next_id(&self) -> StreamId {
        StreamId(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn register(
        self: &Arc<Self>,
        id: StreamId,
        node_id: Arc<str>,
        protocol: Protocol,
        machine: Machine,
    ) -> Registered {
        let scope = None;
        let stream = Arc::new(Stream {
            id,
            node_id,
            protocol,
            connected_since: SystemTime::now(),
            began: Instant::now(),
            state: Mutex::new(StreamState { scope, machine }),
        });
        self.open().insert(id, stream.clone());
        let streams = self.clone();
        Registered { stream, streams }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<StreamId, Arc<Stream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Registered ===

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.open().remove(&self.stream.id);
    }
}

// === impl Stream ===

impl Stream {
    /// Time since the stream began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The instant at this time of the stream.
    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.began + at
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> StreamStatus {
        let state = self.state();
        StreamStatus {
            id: self.id,
            node_id: self.node_id.clone(),
            protocol: self.protocol,
            connected_since: self.connected_since,
            scope: state.scope,
            types: match &state.machine {
                Machine::Delta(session) => session.status(self.now()),
                Machine::Sotw(session) => session.status(self.now()),
            },
        }
    }
}

// === impl Machine ===

impl Machine {
    pub(crate) fn begin_at(&mut self, now: Duration) {
        match self {
            Self::Delta(session) => session.begin_at(now),
            Self::Sotw(session) => session.begin_at(now),
        }
    }

    pub(crate) fn on_view(&mut self, now: Duration, view: &Arc<ScopeView>) {
        match self {
            Self::Delta(session) => session.on_view(now, view),
            Self::Sotw(session) => session.on_view(now, view),
        }
    }

    pub(crate) fn on_timer(&mut self, now: Duration) {
        match self {
            Self::Delta(session) => session.on_timer(now),
            Self::Sotw(session) => session.on_timer(now),
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Response> {
        match self {
            Self::Delta(session) => session.poll_output(),
            Self::Sotw(session) => session.poll_output(),
        }
    }

    pub(crate) fn wants_output(&self) -> bool {
        match self {
            Self::Delta(session) => session.wants_output(),
            Self::Sotw(session) => session.wants_output(),
        }
    }

    pub(crate) fn has_caught_up(&self) -> bool {
        match self {
            Self::Delta(session) => session.has_caught_up(),
            Self::Sotw(session) => session.has_caught_up(),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match self {
            Self::Delta(session) => session.next_deadline(),
            Self::Sotw(session) => session.next_deadline(),
        }
    }

    pub(crate) fn take_events(&mut self) -> (Vec<Rejection>, Vec<Notice>) {
        match self {
            Self::Delta(session) => (session.take_rejections(), session.take_notices()),
            Self::Sotw(session) => (session.take_rejections(), session.take_notices()),
        }
    }

    pub(crate) fn name_bytes(&self) -> usize {
        match self {
            Self::Delta(session) => session.name_bytes(),
            Self::Sotw(session) => session.name_bytes(),
        }
    }

    fn held(&self, resource_type: ResourceType) -> BTreeMap<Arc<str>, ContentHash> {
        match self {
            Self::Delta(session) => session.held(resource_type),
            Self::Sotw(session) => session.held(resource_type),
        }
    }
}
