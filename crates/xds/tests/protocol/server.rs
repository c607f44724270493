//! The running server on the loopback: what only shows on a real stream (R1, R2, R4, R5, R8, R9,
//! R13, R15–R17, R98).

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Code, Status, Streaming};
use xds::{
    ConnectRequest, Connection, Connector, Event, Options, Publisher, Refused, ResourceType,
    ScopeId, Stats, Streams, What, XdsServer,
};

use super::dsl::*;

/// Longer than anything here takes, so that a hang is a failure and not a wait.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// How long streams of the node `short-lived` may last.
const LIFE: Duration = Duration::from_millis(300);

pub(super) struct Gate {
    ready: bool,
    pub(super) publisher: Arc<Publisher>,
    pub(super) scope: watch::Sender<Option<ScopeId>>,
    /// Streams that hold something of the controller's.
    pub(super) open: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    pub(super) fn new(ready: bool, publisher: Arc<Publisher>) -> Self {
        let scope = watch::channel(Some(ScopeId(0))).0;
        Self { ready, publisher, scope, open: Arc::default() }
    }
}

impl Connector for Gate {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<Connection, Refused>> + Send {
        let answer = match (&*request.node_id, self.ready) {
            ("stranger", _) => Err(Refused::Denied {
                node_id: request.node_id,
                reason: "not its certificate".to_owned(),
            }),
            (_, false) => Err(Refused::NotReady("sources are not synced".to_owned())),
            (_, true) => {
                self.open.fetch_add(1, Ordering::SeqCst);
                Ok(Connection {
                    scope: self.scope.subscribe(),
                    publisher: self.publisher.clone(),
                    until: (&*request.node_id == "short-lived").then(|| Instant::now() + LIFE),
                    guard: Box::new(Guard(self.open.clone())),
                })
            }
        };
        std::future::ready(answer)
    }
}

/// A server, and what the controller would hold of it.
pub(super) struct Running {
    address: SocketAddr,
    pub(super) gate: Arc<Gate>,
    options: Options,
    streams: Arc<Streams>,
    pub(super) stats: Arc<Stats>,
    events: mpsc::Receiver<Event>,
    pub(super) shutdown: watch::Sender<bool>,
}

pub(super) async fn serve(
    ready: bool,
    resources: impl IntoIterator<Item = xds::EncodedResource>,
) -> Running {
    serve_with(ready, resources, |options| options).await
}

/// A server with other options.
pub(super) async fn serve_with(
    ready: bool,
    resources: impl IntoIterator<Item = xds::EncodedResource>,
    adjust: impl FnOnce(Options) -> Options,
) -> Running {
    let publisher = Arc::new(Publisher::default());
    publisher.publish(publication(1, view(resources)));
    let gate = Arc::new(Gate::new(ready, publisher));
    let (events_in, events) = mpsc::channel(16);
    let (shutdown, closing) = watch::channel(false);
    let options = adjust(Options::new("replica-1", events_in, closing));
    let streams = options.streams.clone();
    let stats = options.stats.clone();
    // As the controller does: with the usual 128, hundreds that come at once are reset.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(4096).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(XdsServer::new(gate.clone(), options.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Running { address, gate, options, streams, stats, events, shutdown }
}

/// One delta stream.
pub(super) struct Client {
    pub(super) requests: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Running {
    pub(super) async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.address);
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    /// The service itself, without a network.
    pub(super) fn service(&self) -> XdsServer<Gate> {
        XdsServer::new(self.gate.clone(), self.options.clone())
    }

    pub(super) async fn delta(&self) -> Client {
        self.delta_over(self.channel().await).await
    }

    pub(super) async fn delta_over(&self, channel: Channel) -> Client {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let responses =
            client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
        Client { requests: Some(requests), responses: responses.into_inner() }
    }

    pub(super) async fn connected(&self, node: &str) -> Client {
        let client = self.delta().await;
        client.send(request(Some(node), Cds)).await;
        client
    }

    /// Wait until the server has as many open streams.
    pub(super) async fn streams(&self, n: usize) {
        let there = async {
            while self.streams.list().len() != n || self.gate.open.load(Ordering::SeqCst) != n {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, there).await.expect("that many streams");
    }
}

impl Client {
    pub(super) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.as_ref().unwrap().send(request).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        self.next_within(LIMIT).await
    }

    pub(super) async fn next_within(
        &mut self,
        limit: Duration,
    ) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        timeout(limit, self.responses.message()).await.expect("an answer")
    }

    pub(super) async fn response(&mut self) -> DeltaDiscoveryResponse {
        self.next().await.unwrap().expect("a response")
    }

    pub(super) async fn code(&mut self) -> Code {
        match self.next().await {
            Ok(None) => Code::Ok,
            Ok(Some(response)) => panic!("a response: {response:?}"),
            Err(status) => status.code(),
        }
    }

    pub(super) async fn ack(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(error_detail),
            ..Default::default()
        };
        self.send(request).await;
    }
}

pub(super) fn error_detail(message: impl Into<String>) -> envoy_api::google::rpc::Status {
    let message = message.into();
    envoy_api::google::rpc::Status { code: 13, message, ..Default::default() }
}

pub(super) fn request(node: Option<&str>, resource_type: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node.map(|id| Node { id: id.to_owned(), ..Default::default() }),
        type_url: resource_type.type_url().to_owned(),
        ..Default::default()
    }
}

pub(super) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[tokio::test]
async fn r1_a_stream_without_a_node_id_is_an_invalid_argument() {
    let server = serve(true, []).await;
    for node in [None, Some("")] {
        let mut client = server.delta().await;
        client.send(request(node, Cds)).await;
        assert_eq!(client.code().await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn r1_r2_later_requests_need_no_node_and_cannot_change_it() {
    let server = serve(true, [resource(Cds, "c", 1), resource(Lds, "l", 1)]).await;
    let mut client = server.connected("n").await;
    client.response().await;
    client.send(request(None, Lds)).await;
    client.response().await;
    client.send(request(Some("other"), Lds)).await;
    server.streams(1).await;
    assert_eq!(&*server.streams.list()[0].node_id, "n");
}

#[tokio::test]
async fn r3_a_refusal_ends_the_stream_before_anything_is_sent() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("stranger").await;
    assert_eq!(client.code().await, Code::PermissionDenied);
}

#[tokio::test]
async fn r4_an_empty_type_url_is_an_invalid_argument() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.delta().await;
    let mut empty = request(Some("n"), Cds);
    empty.type_url.clear();
    client.send(empty.clone()).await;
    assert_eq!(client.code().await, Code::InvalidArgument);
    let mut client = server.connected("n").await;
    client.response().await;
    client.send(empty).await;
    assert_eq!(client.code().await, Code::InvalidArgument);
}

#[tokio::test]
async fn r5_names_of_an_unknown_type_are_missing_and_other_types_go_on() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.delta().await;
    client
        .send(DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/unknown".to_owned(),
            resource_names_subscribe: vec!["x".to_owned()],
            ..request(Some("n"), Cds)
        })
        .await;
    let response = client.response().await;
    assert_eq!(response.removed_resources, ["x"]);
    assert_eq!(response.type_url, "type.googleapis.com/unknown");
    client.send(request(None, Cds)).await;
    assert_eq!(names(&client.response().await), ["c"]);
}

#[tokio::test]
async fn r8_a_half_close_ends_the_stream_ok_and_frees_its_state() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    client.response().await;
    server.streams(1).await;
    client.requests = None;
    assert_eq!(client.code().await, Code::Ok);
    server.streams(0).await;
}

#[tokio::test]
async fn r8_a_client_that_disappears_frees_its_state_too() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    client.response().await;
    server.streams(1).await;
    drop(client);
    server.streams(0).await;
}

#[tokio::test]
async fn r9_two_streams_of_one_node_are_independent() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut one = server.connected("n").await;
    let mut two = server.connected("n").await;
    let response = one.response().await;
    one.ack(&response, Some("no")).await;
    assert_eq!(names(&two.response().await), ["c"]);
    server.streams(2).await;
}

#[tokio::test]
async fn r12_r17_a_response_on_the_wire_is_what_the_protocol_says() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    assert_eq!(response.type_url, Cds.type_url());
    assert_eq!(response.control_plane.unwrap().identifier, "replica-1");
    let entry = &response.resources[0];
    let body = entry.resource.as_ref().unwrap();
    assert_eq!(body.type_url, Cds.type_url());
    let ours = resource(Cds, "c", 1);
    assert_eq!(entry.version, ours.version().to_string());
    assert_eq!(body.value, ours.body());
}

#[tokio::test]
async fn r13_before_the_sources_are_synced_a_stream_is_unavailable() {
    let server = serve(false, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    assert_eq!(client.code().await, Code::Unavailable);
}

#[tokio::test]
async fn r15_a_reconnect_with_100_000_versions_is_accepted() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.delta().await;
    let version = resource(Cds, "c", 1).version().to_string();
    let name = |i| format!("outbound|80||a-rather-long-service-name-{i}.ns.svc.cluster.local");
    let versions: HashMap<_, _> = (0..100_000).map(|i| (name(i), version.clone())).collect();
    client
        .send(DeltaDiscoveryRequest {
            initial_resource_versions: versions.into_iter().collect(),
            ..request(Some("n"), Cds)
        })
        .await;
    assert_eq!(names(&client.response().await), ["c"]);
}

#[tokio::test]
async fn r16_other_methods_are_unimplemented() {
    use tower::Service as _;
    let server = serve(true, []).await;
    let mut service = server.service();
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/FetchAll";
    let request = http::Request::post(path).body(tonic::body::Body::empty());
    let answer = service.call(request.unwrap()).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
}

#[tokio::test]
async fn r26_a_rejection_reaches_the_controller_and_the_status() {
    let mut server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, Some("bad address")).await;
    let event = timeout(LIMIT, server.events.recv()).await.unwrap().unwrap();
    assert_eq!(&*event.node_id, "n");
    let What::Rejected(rejection) = event.what else {
        panic!("a notice");
    };
    assert_eq!(rejection.error, "bad address");
    assert_eq!(rejection.nonce, response.nonce);
    let status = server.streams.get(event.stream).unwrap();
    assert_eq!(status.types[0].error.as_deref(), Some("bad address"));
}

#[tokio::test]
async fn r98_a_publication_reaches_an_open_stream() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, None).await;
    let next = view([resource(Cds, "c", 2)]);
    server.gate.publisher.publish(publication(2, next));
    let response = client.response().await;
    let newest = resource(Cds, "c", 2).version().to_string();
    assert_eq!(response.resources[0].version, newest);
}

#[tokio::test]
async fn a_stream_follows_its_proxy_into_another_scope() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, None).await;
    let mut both = (*server.gate.publisher.load()).clone();
    Arc::make_mut(&mut both.scopes).insert(ScopeId(1), view([resource(Cds, "d", 1)]));
    server.gate.publisher.publish(both);
    server.gate.scope.send_replace(Some(ScopeId(1)));
    let added = client.response().await;
    assert_eq!(names(&added), ["d"]);
    client.ack(&added, None).await;
    assert_eq!(client.response().await.removed_resources, ["c"]);
}

#[tokio::test]
async fn a_stream_whose_scope_is_not_known_yet_waits() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    server.gate.scope.send_replace(None);
    let mut client = server.connected("n").await;
    server.streams(1).await;
    server.gate.scope.send_replace(Some(ScopeId(0)));
    assert_eq!(names(&client.response().await), ["c"]);
}

#[tokio::test]
async fn r96_on_shutdown_open_streams_end_and_new_ones_are_unavailable() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    client.response().await;
    server.shutdown.send_replace(true);
    assert_eq!(client.code().await, Code::Ok);
    let mut late = server.connected("n").await;
    assert_eq!(late.code().await, Code::Unavailable);
}

#[tokio::test]
async fn r96_streams_end_over_the_drain_and_hear_of_changes_until_then() {
    const DRAIN: Duration = Duration::from_secs(2);
    let drain = |options| Options { drain: DRAIN, ..options };
    let server = serve_with(true, [resource(Cds, "c", 1)], drain).await;
    let mut clients = Vec::new();
    for n in 0..16 {
        let mut client = server.connected(&format!("n{n}")).await;
        let response = client.response().await;
        client.ack(&response, None).await;
        clients.push(client);
    }
    server.shutdown.send_replace(true);
    let began = Instant::now();
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    let (mut ends, mut heard) = (Vec::new(), 0);
    for mut client in clients {
        let mut end = client.next().await;
        if let Ok(Some(_)) = &end {
            heard += 1;
            end = client.next().await;
        }
        assert!(matches!(end, Ok(None)), "{end:?}");
        ends.push(began.elapsed());
    }
    // Streams are numbered from one, so their shares are the same in every run.
    let last = ends.iter().max().expect("sixteen");
    assert!((DRAIN / 2..DRAIN * 2).contains(last), "{last:?}");
    assert!(heard >= 8, "{heard} heard of the change");
    server.streams(0).await;
}

/// A stream of this node ends OK, after some time at least; the next is sent nothing that the first
/// was sent.
async fn ends_and_comes_back(server: &Running, node: &str, least: Duration) {
    let began = Instant::now();
    let mut client = server.connected(node).await;
    let response = client.response().await;
    let version = response.resources[0].version.clone();
    assert_eq!(client.code().await, Code::Ok);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    let mut back = server.delta().await;
    let mut first = request(Some(node), Cds);
    first.initial_resource_versions.insert("c".to_owned(), version);
    back.send(first).await;
    // Nothing is left to send, so its end is all that comes.
    assert_eq!(back.code().await, Code::Ok);
}

#[tokio::test]
async fn r95_an_old_stream_ends_ok_and_the_next_is_sent_nothing() {
    const AGE: Duration = Duration::from_secs(1);
    let age = |options| Options { max_age: Some(AGE), ..options };
    let server = serve_with(true, [resource(Cds, "c", 1)], age).await;
    ends_and_comes_back(&server, "n", AGE * 9 / 10).await;
}

#[tokio::test]
async fn more_names_than_a_stream_may_ask_for_end_it_and_hurt_nobody() {
    let limit = |options| Options { name_bytes: 1 << 20, ..options };
    let server = serve_with(true, [resource(Cds, "c", 1)], limit).await;
    let mut other = server.connected("other").await;
    let response = other.response().await;
    other.ack(&response, None).await;
    let mut greedy = server.delta().await;
    greedy.send(request(Some("greedy"), Cds)).await;
    greedy.response().await;
    // Below the limit each time, and never answered.
    for part in 0..3 {
        let name = |i| format!("{part}-{i:0>100}");
        let mut more = request(None, Eds);
        more.resource_names_subscribe = (0..5_000).map(name).collect();
        greedy.send(more).await;
    }
    // What it asked for before that may still come.
    let end = loop {
        match greedy.next().await {
            Ok(Some(_)) => {}
            end => break end.map(|_| "a quiet end").map_err(|status| status.code()),
        }
    };
    assert_eq!(end, Err(Code::ResourceExhausted));
    let mut long = server.delta().await;
    let mut first = request(Some("long"), Eds);
    first.resource_names_subscribe = vec!["n".repeat(2 << 20)];
    long.send(first).await;
    assert_eq!(long.code().await, Code::ResourceExhausted);
    server.streams(1).await;
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    assert_eq!(names(&other.response().await), ["c"]);
}

#[tokio::test]
async fn a_stream_ends_with_what_its_peer_was_admitted_by_and_the_next_is_not_sent_it_all_again() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    ends_and_comes_back(&server, "short-lived", LIFE).await;
}

#[tokio::test]
async fn large_resources_arrive_whole_between_small_ones() {
    let large = vec![b'x'; 200_000];
    let large = xds::EncodedResource::new(Cds, "b", &large, vec![]);
    let all = [resource(Cds, "a", 1), large.clone(), resource(Cds, "c", 1)];
    let server = serve(true, all).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    assert_eq!(names(&response), ["a", "b", "c"]);
    let body = response.resources[1].resource.as_ref().unwrap();
    assert_eq!(body.value, large.body());
}

#[tokio::test]
async fn r31_the_state_of_the_world_variant_is_served() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = AggregatedDiscoveryServiceClient::new(server.channel().await);
    let (requests, outgoing) = mpsc::channel(1);
    let first = DiscoveryRequest {
        node: request(Some("n"), Cds).node,
        type_url: Cds.type_url().to_owned(),
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let answer = client.stream_aggregated_resources(ReceiverStream::new(outgoing));
    let mut responses = answer.await.unwrap().into_inner();
    let response = timeout(LIMIT, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.type_url, Cds.type_url());
    assert!(!response.version_info.is_empty() && !response.nonce.is_empty());
    assert_eq!(response.resources[0].type_url, Cds.type_url());
    assert_eq!(response.resources[0].value, resource(Cds, "c", 1).body());
}
