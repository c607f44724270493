//! The ADS gRPC service, in both variants.
//!
//! In: HTTP/2 requests, publications, scope changes, time. Out: bytes of responses, events. A
//! stream is one task: it steps the session and writes one response at a time, so a client that
//! does not read is not sent anything that it would find outdated.
//!
//! **Invariant:** decides nothing about delivery; no lock is held across `.await`; every task is
//! owned by the body it fills.

mod admission;
mod body;
mod intake;
mod wire;

use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_api::ResourceType;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status};

use crate::chunks::parts;
use crate::connect::{ConnectRequest, Connection, Connector, Event, Refused, What};
use crate::publication::ScopeId;
use crate::session::Settings;
use crate::stats::Stats;
use crate::streams::{Registered, Streams};
use admission::{Admission, Place};
use body::StreamBody;
use intake::Requests;
use wire::{Outgoing, WireDeltaRequest, WireRequest, WireSotwRequest};

const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// How a server behaves, and where it reports to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Limits of the sessions.
    pub settings: Settings,
    /// `control_plane.identifier`: names this replica in every response.
    pub identifier: Arc<str>,
    /// Largest request, in bytes: a proxy that holds 100,000 resources lists them all.
    pub request_bytes: usize,
    /// Bytes of requests that came in part, of all streams together. Above it a stream ends that
    /// holds more than a 64th of this.
    pub intake_bytes: usize,
    /// Memory for streams that are being taken in, in bytes: who comes when it is used up waits.
    pub building_bytes: usize,
    /// How long a proxy that is being taken in may keep others waiting without a word.
    pub building_patience: Duration,
    /// Names that a stream may subscribe to, in bytes of all of them together: each costs memory
    /// whether or not it exists.
    pub name_bytes: usize,
    /// Age at which a stream ends, within a tenth, so that proxies spread over replicas anew; none
    /// = never.
    pub max_age: Option<Duration>,
    /// How long a proxy may leave a response unread before its stream is ended.
    pub write_limit: Duration,
    /// Time over which streams are closed once `shutdown` turns true.
    pub drain: Duration,
    /// Rejections and notices. When full they are counted as dropped; the status keeps them.
    pub events: mpsc::Sender<Event>,
    /// True = no stream is accepted any more, and the open ones are closed.
    pub shutdown: watch::Receiver<bool>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Registry of open streams.
    pub streams: Arc<Streams>,
}

/// The service; clones share everything. Add it to a `tonic` router.
pub struct XdsServer<C> {
    connector: Arc<C>,
    options: Arc<Options>,
    admission: Arc<Admission>,
}

/// What one stream task works with.
struct StreamTask<C, W> {
    connector: Arc<C>,
    options: Arc<Options>,
    admission: Arc<Admission>,
    requests: Requests<W>,
    extensions: http::Extensions,
    messages: mpsc::Sender<Outgoing>,
}

/// An admitted stream.
struct Admitted {
    registered: Registered,
    connection: Connection,
    views: Option<watch::Receiver<u64>>,
    /// Whether there was a view yet.
    has_view: bool,
    /// Nonces of answers about types that are not served.
    unknown: u64,
    /// Whether the last wake-up was a new view.
    woken_by_view: bool,
}

// === impl Options ===

impl Options {
    /// Defaults, a registry and counters of its own.
    pub fn new(
        identifier: impl Into<Arc<str>>,
        events: mpsc::Sender<Event>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            settings: Settings::default(),
            identifier: identifier.into(),
            request_bytes: 64 << 20,
            intake_bytes: 256 << 20,
            building_bytes: 64 << 20,
            building_patience: Duration::from_millis(250),
            name_bytes: 32 << 20,
            max_age: None,
            write_limit: Duration::from_secs(60),
            drain: Duration::ZERO,
            events,
            shutdown,
            stats: Arc::default(),
            streams: Arc::default(),
        }
    }
}

// === impl XdsServer ===

impl<C: Connector> XdsServer<C> {
    /// A service that admits proxies by this connector.
    pub fn new(connector: Arc<C>, options: Options) -> Self {
        let options = Arc::new(options);
        let admission = Arc::new(Admission::new(options.clone()));
        Self { connector, options, admission }
    }

    /// Start the task of a stream; its body owns it.
    fn open<W: WireRequest>(
        &self,
        request: http::Request<tonic::body::Body>,
    ) -> http::Response<tonic::body::Body> {
        let (head, body) = request.into_parts();
        // One response: when full, the session is not asked for the next one, which will then
        // carry the newest state.
        let (messages, received) = mpsc::channel(1);
        let (end, status) = oneshot::channel();
        let task = StreamTask::<C, W> {
            connector: self.connector.clone(),
            options: self.options.clone(),
            admission: self.admission.clone(),
            requests: Requests::new(body, self.options.clone()),
            extensions: head.extensions,
            messages,
        };
        let body = StreamBody::new(received, status, tokio::spawn(task.run(end)));
        let mut response = http::Response::new(tonic::body::Body::new(body));
        let grpc = http::HeaderValue::from_static("application/grpc");
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, grpc);
        response
    }
}

impl<C> Clone for XdsServer<C> {
    fn clone(&self) -> Self {
        let Self { connector, options, admission } = self;
        Self {
            connector: connector.clone(),
            options: options.clone(),
            admission: admission.clone(),
        }
    }
}

impl<C> tonic::server::NamedService for XdsServer<C> {
    const NAME: &'static str = SERVICE;
}

impl<C: Connector> tower::Service<http::Request<tonic::body::Body>> for XdsServer<C> {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let method = request.uri().path().strip_prefix('/');
        let method = method.and_then(|path| path.strip_prefix(SERVICE));
        let response = match method {
            Some("/DeltaAggregatedResources") => self.open::<WireDeltaRequest>(request),
            Some("/StreamAggregatedResources") => self.open::<WireSotwRequest>(request),
            _ => Status::unimplemented("only ADS is served").into_http(),
        };
        ready(Ok(response))
    }
}

// === impl StreamTask ===

impl<C: Connector, W: WireRequest> StreamTask<C, W> {
    async fn run(mut self, end: oneshot::Sender<http::HeaderMap>) {
        let status = match self.serve().await {
            Ok(()) => Status::new(Code::Ok, ""),
            Err(status) => status,
        };
        let mut trailers = http::HeaderMap::new();
        if status.add_header(&mut trailers).is_ok() {
            // Fails when the client is gone, and then nobody wants to know.
            let _gone = end.send(trailers);
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let _more = self.requests.more().await?;
        let mut place = self.admission.enter().await;
        let Some(first) = self.first(&mut place).await? else {
            return Ok(());
        };
        if *self.options.shutdown.borrow() {
            return Err(Status::unavailable("shutting down"));
        }
        let mut admitted = self.admit(&first).await?;
        let _open = Open::new(self.options.stats.clone());
        admitted.rescope();
        let mut first = Some(first);
        let mut shutdown = self.options.shutdown.clone();
        let messages = self.messages.clone();
        let mut blocked_since = None;
        let id = admitted.registered.stream.id.0;
        // From 90 % to 110 % of the age.
        let ages = |age: Duration| Instant::now() + age * 9 / 10 + share(age / 5, id);
        let aged = self.options.max_age.map(ages);
        let mut end = admitted.connection.until.into_iter().chain(aged).min();
        // Registered once, not in each turn.
        let mut ending = pin!(sleep_until(end.unwrap_or_else(Instant::now)));
        let mut draining = false;
        loop {
            // Until there is something to compare it with, what a proxy says is left where it is.
            let has_view = admitted.has_view;
            if let Some(first) = first.take_if(|_| has_view) {
                let stream = &admitted.registered.stream;
                stream.state().machine.begin_at(stream.now());
                self.on_request(&mut admitted, first).await?;
            }
            let (wants_output, deadline) = {
                let state = admitted.registered.stream.state();
                (state.machine.wants_output(), state.machine.next_deadline())
            };
            // Once it can be written, it is planned anew. Until then a wait that ended would end again
            // and again, at the cost of a core.
            let deadline = deadline.filter(|_| !wants_output);
            let deadline = deadline.map(|at| admitted.registered.stream.instant(at));
            blocked_since = wants_output.then(|| blocked_since.unwrap_or_else(Instant::now));
            let unread = blocked_since.map(|since| since + self.options.write_limit);
            tokio::select! {
                biased;
                () = &mut ending, if end.is_some() => return Ok(()),
                () = closing(&mut shutdown), if !draining => {
                    draining = true;
                    let drained = Instant::now() + share(self.options.drain, id);
                    let earliest = end.map_or(drained, |end| end.min(drained));
                    end = Some(earliest);
                    ending.as_mut().reset(earliest);
                }
                request = self.requests.message(), if has_view => match request? {
                    Some(request) => {
                        place.heard();
                        self.on_request(&mut admitted, request).await?;
                    }
                    None => return Ok(()),
                },
                scope = admitted.connection.scope.changed() => match scope {
                    Ok(()) => admitted.rescope(),
                    Err(_) => return Err(Status::unavailable("withdrawn by the control plane")),
                },
                () = changed(&mut admitted.views) => admitted.review(),
                () = until(place.until()) => place.leave(),
                () = until(deadline) => {
                    let stream = &admitted.registered.stream;
                    stream.state().machine.on_timer(stream.now());
                }
                permit = messages.reserve(), if wants_output => {
                    // Closed = the client is gone; the body is about to drop this task.
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = self.next_message(&mut admitted) {
                        place.heard();
                        permit.send(message);
                    }
                    blocked_since = None;
                }
                () = until(unread) => return Err(self.unread(&admitted)),
            }
            self.report(&admitted);
            if place.until().is_some() {
                self.may_leave(&admitted, &mut place);
            }
        }
    }

    /// The first request. Who sends it by and by loses its place.
    async fn first(&mut self, place: &mut Place) -> Result<Option<W>, Status> {
        loop {
            tokio::select! {
                biased;
                first = self.requests.message() => return first,
                () = until(place.until()) => place.leave(),
            }
        }
    }

    /// Others are next once the proxy has caught up.
    fn may_leave(&self, admitted: &Admitted, place: &mut Place) {
        let stream = &admitted.registered.stream;
        let state = stream.state();
        if !state.machine.has_caught_up() {
            return;
        }
        place.leave();
        let view = state.scope.and_then(|scope| admitted.connection.publisher.view(scope));
        view.iter().for_each(|view| self.admission.learn(view));
    }

    /// Check the first request and ask the controller about the proxy.
    async fn admit(&mut self, first: &W) -> Result<Admitted, Status> {
        let node = first.node().filter(|node| wire::node_id(node).is_some());
        let Some(node) = node else {
            return Err(Status::invalid_argument("the first request needs a node with an id"));
        };
        let node = wire::decode_node(node);
        let node = node.map_err(|e| Status::invalid_argument(format!("bad node: {e}")))?;
        if first.type_url().is_empty() {
            return Err(Status::invalid_argument("type_url is empty"));
        }
        let node_id: Arc<str> = node.id.as_str().into();
        let id = self.options.streams.next_id();
        let request = ConnectRequest {
            stream: id,
            protocol: W::PROTOCOL,
            node_id: node_id.clone(),
            node,
            extensions: std::mem::take(&mut self.extensions),
        };
        let connection = self.connector.connect(request).await;
        let connection = connection.map_err(|refused| {
            self.options.stats.refused.add(1);
            tracing::info!(node = %node_id, %refused, "stream refused");
            status_of(&refused)
        })?;
        let machine = W::machine(self.options.settings.clone());
        let streams = &self.options.streams;
        Ok(Admitted {
            registered: streams.register(id, node_id, W::PROTOCOL, machine),
            connection,
            views: None,
            has_view: false,
            unknown: 0,
            woken_by_view: false,
        })
    }

    async fn on_request(&mut self, admitted: &mut Admitted, request: W) -> Result<(), Status> {
        self.options.stats.requests.add(1);
        let stream = &admitted.registered.stream;
        if request.type_url().is_empty() {
            return Err(Status::invalid_argument("type_url is empty"));
        }
        if let Some(resource_type) = ResourceType::from_type_url(request.type_url()) {
            let now = stream.now();
            let mut state = stream.state();
            request.apply(now, resource_type, &mut state.machine);
            let (bytes, limit) = (state.machine.name_bytes(), self.options.name_bytes);
            if bytes > limit {
                let node = &stream.node_id;
                tracing::warn!(%node, bytes, limit, "the proxy asks for too many names");
                let text = format!("subscribed to {bytes} bytes of names; at most {limit}");
                return Err(Status::resource_exhausted(text));
            }
            return Ok(());
        }
        let (url, limit) = (request.type_url(), self.options.settings.response_bytes);
        for names in parts(request.asked(), limit) {
            admitted.unknown += 1;
            let nonce = format!("unknown-{}", admitted.unknown);
            let message = wire::unknown_type_frame(url, &nonce, names, &self.options.identifier);
            // A client that does not read waits for its own answer here.
            let sent = self.messages.send(message);
            if timeout(self.options.write_limit, sent).await.is_err() {
                return Err(self.unread(admitted));
            }
        }
        Ok(())
    }

    /// The proxy leaves a response unread: half alive, it would keep what it has for ever.
    fn unread(&self, admitted: &Admitted) -> Status {
        let limit = self.options.write_limit;
        self.options.stats.unread.add(1);
        let node = &admitted.registered.stream.node_id;
        tracing::warn!(%node, ?limit, "the proxy does not read; its stream is ended");
        Status::unavailable(format!("a response was not read within {limit:?}"))
    }

    /// The next response, if the session has one after all.
    fn next_message(&self, admitted: &mut Admitted) -> Option<Outgoing> {
        let response = admitted.registered.stream.state().machine.poll_output();
        let stats = &self.options.stats;
        let by_view = std::mem::take(&mut admitted.woken_by_view);
        let Some(response) = response else {
            stats.skipped_equal.add(u64::from(by_view));
            return None;
        };
        let message = W::frame(&response, &self.options.identifier);
        let items = response.resources.len() + response.removed.len();
        stats.responses(response.resource_type).add(1);
        stats.resources(response.resource_type).add(items as u64);
        stats.sent_bytes.add(message.bytes() as u64);
        Some(message)
    }

    /// Pass on what the session has to say to the controller.
    fn report(&self, admitted: &Admitted) {
        let stream = &admitted.registered.stream;
        let (rejections, notices) = stream.state().machine.take_events();
        for rejection in &rejections {
            self.options.stats.rejections(rejection.resource_type).add(1);
            tracing::warn!(
                node = %stream.node_id, resource_type = %rejection.resource_type,
                nonce = rejection.nonce, error = rejection.error, "rejected by the proxy"
            );
        }
        let rejections = rejections.into_iter().map(What::Rejected);
        for what in rejections.chain(notices.into_iter().map(What::Notice)) {
            let event = Event { stream: stream.id, node_id: stream.node_id.clone(), what };
            // Full = the controller is behind; it must never slow a stream.
            if self.options.events.try_send(event).is_err() {
                self.options.stats.events_dropped.add(1);
            }
        }
    }
}

// === impl Admitted ===

impl Admitted {
    /// The scope is another one: listen to its views from now on.
    fn rescope(&mut self) {
        let scope = *self.connection.scope.borrow_and_update();
        self.registered.stream.state().scope = scope;
        let publisher = &self.connection.publisher;
        self.views = scope.map(|scope| publisher.subscribe(scope));
        self.review();
    }

    /// Take over the newest view. A scope that is gone leaves the last one in place.
    fn review(&mut self) {
        let stream = &self.registered.stream;
        let scope: Option<ScopeId> = stream.state().scope;
        let view = scope.and_then(|scope| self.connection.publisher.view(scope));
        if let Some(view) = view {
            stream.state().machine.on_view(stream.now(), &view);
            self.woken_by_view = true;
            self.has_view = true;
        }
    }
}

/// Counts a stream as open until dropped.
struct Open(Arc<Stats>);

impl Open {
    fn new(stats: Arc<Stats>) -> Self {
        stats.streams.add(1);
        stats.streams_opened.add(1);
        Self(stats)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.subtract(1);
    }
}

fn status_of(refused: &Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::NotReady(_) => Status::unavailable(text),
        Refused::Denied { .. } => Status::permission_denied(text),
        Refused::Invalid { .. } => Status::invalid_argument(text),
    }
}

/// A share of the drain time that differs from stream to stream.
fn share(drain: Duration, stream: u64) -> Duration {
    let spread = xxhash_rust::xxh3::xxh3_64(&stream.to_le_bytes()) % 1024;
    drain * u32::try_from(spread).unwrap_or(0) / 1024
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn changed(views: &mut Option<watch::Receiver<u64>>) {
    let alive = match views {
        Some(views) => views.changed().await.is_ok(),
        None => false,
    };
    if !alive {
        pending().await
    }
}

/// Shutdown was asked for. A dropped sender asks for nothing.
async fn closing(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|closing| *closing).await.is_err() {
        pending().await
    }
}
