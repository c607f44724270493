//! The ports: xDS in plain text and over mutual TLS, health and metrics, admin.
//!
//! In: addresses. Out: tasks that serve them until told to stop.
//!
//! **Invariant:** every port is bound before anything else starts, so that a port that is taken
//! ends the process with its name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::identity::{Authenticated, Connections, ca_server};
use anyhow::{Context, Result};
use axum::response::Response;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::ServiceExt;
use xds::{Options, XdsServer};

use crate::admin::{self, Admin};
use crate::claims::Policy;
use crate::connector::StreamConnector;
use crate::event::Event;
use crate::identity::Identity;
use crate::injection::Injection;
use crate::logging::Level;
use crate::metrics;
use crate::settings::Settings;
use crate::world::Shared;

/// Connections that may wait to be accepted: a thousand proxies may come at once.
const BACKLOG: u32 = 4096;
/// Stream events that may wait for the loop. When full they are counted as dropped; the status of
/// the stream still shows them.
const STREAM_EVENTS: usize = 1024;
/// Streams of a connection in plain text; a proxy has one.
const STREAMS: u32 = 1024;
/// Streams of a connection that may be reset for the client's mistakes, before it is ended.
const RESETS: usize = 1024;
/// Bytes of requests of a stream that may come before it is read: who waits to be taken in takes no
/// more.
const WINDOW: u32 = 64 << 10;
/// How long streams may take to end once they were told to.
const GRACE: Duration = Duration::from_secs(5);

/// Bound ports.
pub(crate) struct Listeners {
    xds: TcpListener,
    secure: Option<TcpListener>,
    remote: Option<TcpListener>,
    webhook: Option<TcpListener>,
    http: TcpListener,
    admin: TcpListener,
    pub(crate) xds_address: SocketAddr,
    pub(crate) secure_address: Option<SocketAddr>,
    pub(crate) http_address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
}

/// When proxies are asked to come again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    /// Age of a stream; none = never.
    pub(crate) max_age: Option<Duration>,
    /// Time over which streams end once the controller stops.
    pub(crate) drain: Duration,
}

// === impl Leaving ===

impl Leaving {
    /// Age at which a connection takes no new streams: before its stream ends, so that the next one
    /// goes over a new connection.
    fn connection_age(&self) -> Option<Duration> {
        self.max_age.map(|age| age * 4 / 5)
    }

    fn grace(&self) -> Duration {
        self.drain + GRACE
    }
}

// === impl Listeners ===

impl Listeners {
    /// Bind every port.
    pub(crate) async fn bind(settings: &Settings) -> Result<Self> {
        let xds = bind(settings.xds_address, "--xds-address")?;
        let secure = settings.identity.as_ref().map(|i| bind(i.address, "--secure-address"));
        let secure = secure.transpose()?;
        let remote = settings.identity.as_ref().and_then(|i| i.remote_admin);
        let remote = remote.map(|a| bind(a, "--remote-admin-address")).transpose()?;
        let webhook = settings.identity.as_ref().and_then(|i| i.webhook);
        let webhook = webhook.map(|a| bind(a, "--webhook-address")).transpose()?;
        let http = bind(settings.http_address, "--http-address")?;
        let admin = bind(settings.admin_address, "--admin-address")?;
        Ok(Self {
            xds_address: xds.local_addr()?,
            secure_address: secure.as_ref().map(TcpListener::local_addr).transpose()?,
            http_address: http.local_addr()?,
            admin_address: admin.local_addr()?,
            xds,
            secure,
            remote,
            webhook,
            http,
            admin,
        })
    }

    /// Serve them.
    #[allow(clippy::too_many_arguments, reason = "called once, by main")]
    pub(crate) fn spawn(
        self,
        tasks: &mut JoinSet<Result<()>>,
        inbox: mpsc::Sender<Event>,
        shared: &Arc<Shared>,
        identity: Option<Identity>,
        injection: Option<Injection>,
        level: Level,
        leaving: Leaving,
        stopped: &watch::Receiver<bool>,
    ) -> Result<()> {
        let (events, stream_events) = mpsc::channel(STREAM_EVENTS);
        let options = Options {
            max_age: leaving.max_age,
            drain: leaving.drain,
            ..Options::new(identifier(), events, stopped.clone())
        };
        let stats = Arc::clone(&options.stats);
        let streams = Arc::clone(&options.streams);
        let connector =
            |policy| Arc::new(StreamConnector::new(inbox.clone(), Arc::clone(shared), policy));
        let server = XdsServer::new(connector(Policy::Open), options.clone());
        tasks.spawn(serve_xds(self.xds, server, leaving, stopped.clone()));
        let counted = injection.as_ref().map(Injection::metrics);
        let admin = Admin { shared: Arc::clone(shared), streams: Arc::clone(&streams), level };
        if let Some((listener, identity)) = self.secure.zip(identity) {
            let policy = Policy::Proven(Arc::clone(&identity.gateways));
            let server = XdsServer::new(connector(policy), options);
            let gate = identity.gate().map(|gate| admin::remote(admin.clone(), gate));
            let remote = self.remote.zip(gate);
            let webhook = self.webhook.zip(injection);
            let secure = Secure { listener, server, identity, remote, webhook, leaving };
            tasks.spawn(secure.serve(Arc::clone(shared), stopped.clone()));
        }
        tasks.spawn(forward(stream_events, inbox, stopped.clone()));
        let registered =
            metrics::register(Arc::clone(shared), stats, Arc::clone(&streams), counted.as_ref())?;
        let public = admin::public(Arc::clone(shared), registered);
        tasks.spawn(serve_http(self.http, public, stopped.clone()));
        let private = admin::private(admin);
        tasks.spawn(serve_http(self.admin, private, stopped.clone()));
        Ok(())
    }
}

/// The ports whose certificate comes from the authority.
struct Secure {
    listener: TcpListener,
    server: XdsServer<StreamConnector>,
    identity: Identity,
    /// Admin pages for authorised callers.
    remote: Option<(TcpListener, axum::Router)>,
    /// Injection of pods.
    webhook: Option<(TcpListener, Injection)>,
    leaving: Leaving,
}

impl Secure {
    /// Serve them once there is an authority.
    async fn serve(self, shared: Arc<Shared>, stopped: watch::Receiver<bool>) -> Result<()> {
        let Self { listener, server, identity, remote, webhook, leaving } = self;
        let mut tasks = JoinSet::new();
        let for_streams = Arc::clone(&identity.for_streams);
        let for_certificates = Arc::clone(&identity.for_certificates);
        let delegation = identity.delegation.clone();
        let Some(ca) = identity.start(&shared, &mut tasks, stopped.clone()).await? else {
            return Ok(());
        };
        let routes = Routes::new(Authenticated::new(server, for_streams)).add_service(ca_server(
            Arc::clone(&ca),
            for_certificates,
            delegation,
        ));
        let connections = Connections {
            tls: ca.tls(),
            trust_domain: ca.trust_domain().clone(),
            stats: Arc::clone(ca.stats()),
            stopped,
            grace: leaving.grace(),
            max_age: leaving.connection_age(),
        };
        let serve_pages = |listener, pages: axum::Router| {
            let whole = |response: Response| response.map(Body::new);
            let pages = ServiceExt::<http::Request<Body>>::map_response(pages, whole);
            ::identity::serve(listener, pages, connections.clone())
        };
        if let Some((listener, pages)) = remote {
            tasks.spawn(serve_pages(listener, pages));
        }
        if let Some((listener, injection)) = webhook {
            tasks.spawn(serve_pages(listener, injection.routes()));
            injection.start(Arc::clone(&ca), &shared, &mut tasks, &connections.stopped);
        }
        tasks.spawn(::identity::serve(listener, routes.prepare(), connections));
        while let Some(ended) = tasks.join_next().await {
            ended.context("a part of the certificate authority failed")?;
        }
        Ok(())
    }
}

fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("listening on {address}; choose another with {flag}"))
}

/// What this replica calls itself.
pub(crate) fn identifier() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "heddle".to_owned() } else { name.to_owned() }
}

async fn serve_xds(
    listener: TcpListener,
    server: XdsServer<StreamConnector>,
    leaving: Leaving,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut stopping = stopped.clone();
    let incoming = TcpListenerStream::new(listener);
    let grace = leaving.grace();
    let mut builder = Server::builder();
    if let Some(age) = leaving.connection_age() {
        builder = builder.max_connection_age(age);
    }
    let serving = builder
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(Some(WINDOW))
        // Without these tonic has no limit.
        .max_concurrent_streams(STREAMS)
        .http2_max_local_error_reset_streams(Some(RESETS))
        .add_service(server)
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the sender is gone, which is the end as well.
            let _ = stopping.wait_for(|stopped| *stopped).await;
        });
    tokio::select! {
        served = serving => served.context("serving xDS"),
        () = async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(grace).await;
        } => {
            tracing::warn!("xDS connections did not end within {grace:?}; they are cut");
            Ok(())
        }
    }
}

async fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut stopping = stopped.clone();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopping.wait_for(|stopped| *stopped).await;
    });
    tokio::select! {
        served = serving => served.context("serving HTTP"),
        () = async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    }
}

/// Hand what streams say to the loop.
async fn forward(
    mut events: mpsc::Receiver<xds::Event>,
    inbox: mpsc::Sender<Event>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    loop {
        let event = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
            event = events.recv() => event,
        };
        let Some(event) = event else { return Ok(()) };
        if inbox.send(Event::Stream(event)).await.is_err() {
            return Ok(());
        }
    }
}
