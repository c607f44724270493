//! What no sound proxy says: bytes that are no message, messages that make no sense, and too much
//! of everything. Each has its status or is bounded, nothing panics, and nobody else is hurt.

use bytes::Bytes;
use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tower::Service as _;
use xds::{EncodedResource, Options, ResourceType};

use super::dsl::*;
use super::server::*;

const DELTA: &str = "DeltaAggregatedResources";
const SOTW: &str = "StreamAggregatedResources";

/// Bytes as one gRPC message.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// Call a method with this body, one chunk after the other, and close it; what the stream ends
/// with. The server works on each chunk before it sees the next.
async fn call(server: &Running, method: &str, chunks: Vec<Vec<u8>>) -> Code {
    let (sender, body) = mpsc::channel(1);
    let body = ReceiverStream::new(body).map(Ok::<_, tonic::Status>);
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
    let request = http::Request::post(path).body(tonic::body::Body::new(StreamBody::new(body)));
    let response = server.service().call(request.unwrap()).await.unwrap();
    let answers = tokio::spawn(response.into_body().collect());
    for chunk in chunks {
        // An error: the stream has ended already.
        let _ended = sender.send(Frame::data(Bytes::from(chunk))).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
    drop(sender);
    let answers = timeout(LIMIT, answers).await.expect("an end").expect("no panic").unwrap();
    let trailers = answers.trailers().expect("a status");
    let code = trailers["grpc-status"].to_str().unwrap().parse::<i32>().unwrap();
    let code = Code::from(code);
    // This is how a stream says that its task panicked.
    assert!(code != Code::Internal || trailers.contains_key("grpc-message"), "it panicked");
    code
}

/// Run a property, each case against the same server; after all of them another proxy is served.
fn property<S: Strategy>(strategy: S, case: impl AsyncFn(&Running, S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, mut other) = runtime.block_on(async {
        let kinds = [Cds, Eds, Lds, Rds, Sds];
        let mut all: Vec<_> = kinds.iter().map(|kind| resource(*kind, "a", 1)).collect();
        all.push(host("a/b", 1, &["b"], &["a"]));
        let server = serve(true, all).await;
        let mut other = server.connected("other").await;
        let response = other.response().await;
        other.ack(&response, None).await;
        (server, other)
    });
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let done = TestRunner::new(config).run(&strategy, |value| {
        runtime.block_on(case(&server, value));
        Ok(())
    });
    done.unwrap();
    runtime.block_on(async {
        server.streams(1).await;
        server.gate.publisher.publish(publication(2, view([resource(Cds, "a", 2)])));
        assert_eq!(names(&other.response().await), ["a"]);
    });
}

/// Text as nobody expects it where names, versions and nonces are.
fn text() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] =
        &["", "*", "a", "a/b", "/", "a/", "xdstp://x/y/*", "unknown-1", "0", "1", "2"];
    prop_oneof![
        4 => proptest::sample::select(KNOWN).prop_map(str::to_owned),
        1 => any::<u64>().prop_map(|n| n.to_string()),
        1 => proptest::collection::vec(any::<char>(), 0..8).prop_map(String::from_iter),
    ]
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(text(), 0..5)
}

fn type_url() -> impl Strategy<Value = String> {
    let known = ResourceType::ALL.map(|kind| kind.type_url().to_owned());
    prop_oneof![12 => proptest::sample::select(known.to_vec()), 1 => text()]
}

/// A well-formed delta request; the first of a stream has a node.
fn delta(first: bool) -> impl Strategy<Value = Vec<u8>> {
    let held = proptest::collection::vec((text(), text()), 0..5);
    let parts = (type_url(), texts(), texts(), held, text(), proptest::option::of(text()));
    parts.prop_map(move |(type_url, subscribe, unsubscribe, held, nonce, error)| {
        let request = DeltaDiscoveryRequest {
            node: first.then(|| request(Some("n"), Cds).node).flatten(),
            type_url,
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: held.into_iter().collect(),
            response_nonce: nonce,
            error_detail: error.map(error_detail),
            ..Default::default()
        };
        request.encode_to_vec()
    })
}

/// The same of the other variant.
fn sotw(first: bool) -> impl Strategy<Value = Vec<u8>> {
    let parts = (type_url(), texts(), text(), text(), proptest::option::of(text()));
    parts.prop_map(move |(type_url, names, version_info, nonce, error)| {
        let request = DiscoveryRequest {
            node: first.then(|| request(Some("n"), Cds).node).flatten(),
            type_url,
            resource_names: names,
            version_info,
            response_nonce: nonce,
            error_detail: error.map(error_detail),
            ..Default::default()
        };
        request.encode_to_vec()
    })
}

/// Method and messages of a stream.
fn stream() -> impl Strategy<Value = (&'static str, Vec<Vec<u8>>)> {
    fn all<S: Strategy<Value = Vec<u8>>>(of: fn(bool) -> S) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let rest = proptest::collection::vec(of(false), 0..12);
        (of(true), rest).prop_map(|(first, rest)| [vec![first], rest].concat())
    }
    prop_oneof![
        all(delta).prop_map(|messages| (DELTA, messages)),
        all(sotw).prop_map(|messages| (SOTW, messages)),
    ]
}

/// A change of bytes: where, and what comes there instead.
type Damage = (proptest::sample::Index, Vec<u8>, usize);

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = (any::<proptest::sample::Index>(), any::<Vec<u8>>(), 0usize..9);
    proptest::collection::vec(one, 1..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for (at, with, gone) in damage {
        let at = at.index(bytes.len() + 1);
        let end = bytes.len().min(at + gone);
        bytes.splice(at..end, with.iter().take(8).copied());
    }
    bytes
}

#[test]
fn bytes_that_are_no_message_are_an_invalid_argument() {
    let input = (proptest::sample::select(&[DELTA, SOTW][..]), any::<Vec<u8>>());
    property(input, async |server, (method, bytes)| {
        assert_eq!(call(server, method, vec![framed(&bytes)]).await, Code::InvalidArgument);
    });
}

#[test]
fn messages_that_make_no_sense_hurt_nobody() {
    property(stream(), async |server, (method, messages)| {
        let code = call(server, method, messages.iter().map(|m| framed(m)).collect()).await;
        assert!(matches!(code, Code::Ok | Code::InvalidArgument), "{code:?}");
    });
}

#[test]
fn damaged_messages_hurt_nobody() {
    let input = (stream(), any::<proptest::sample::Index>(), damage());
    property(input, async |server, ((method, mut messages), which, damage)| {
        let at = which.index(messages.len());
        messages[at] = damaged(std::mem::take(&mut messages[at]), &damage);
        let code = call(server, method, messages.iter().map(|m| framed(m)).collect()).await;
        assert!(matches!(code, Code::Ok | Code::InvalidArgument), "{code:?}");
    });
}

#[test]
fn damaged_framing_hurts_nobody() {
    let input = (stream(), any::<proptest::sample::Index>(), damage());
    property(input, async |server, ((method, messages), cut, damage)| {
        let mut bytes = messages.iter().flat_map(|m| framed(m)).collect();
        bytes = damaged(bytes, &damage);
        // In two chunks, wherever a message begins.
        let rest = bytes.split_off(cut.index(bytes.len() + 1));
        let code = call(server, method, vec![bytes, rest]).await;
        // Lengths that are too large, flags that say nothing, an end in the middle.
        let expected = [Code::Ok, Code::InvalidArgument, Code::ResourceExhausted, Code::Internal];
        assert!(expected.contains(&code), "{code:?}");
    });
}

/// What ends a stream, whatever was sent to it before.
async fn end(client: &mut Client) -> Code {
    loop {
        // A million names take their time on a busy machine.
        match client.next_within(6 * LIMIT).await {
            Ok(Some(_)) => {}
            Ok(None) => break Code::Ok,
            Err(status) => break status.code(),
        }
    }
}

/// Names that nothing has, of this length.
fn long_names(count: usize, length: usize) -> Vec<String> {
    let name = |n| format!("{n:08}{}", "n".repeat(length - 8));
    (0..count).map(name).collect()
}

/// A first request for names.
fn asking(resource_type: ResourceType, names: Vec<String>) -> DeltaDiscoveryRequest {
    let first = request(Some("n"), resource_type);
    DeltaDiscoveryRequest { resource_names_subscribe: names, ..first }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_100_mb_ends_its_stream_alone() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    // Over the same connection.
    let channel = server.channel().await;
    let mut other = server.delta_over(channel.clone()).await;
    other.send(request(Some("other"), Cds)).await;
    let response = other.response().await;
    other.ack(&response, None).await;
    let mut huge = server.delta_over(channel).await;
    huge.send(asking(Eds, long_names(100, 1 << 20))).await;
    assert_eq!(end(&mut huge).await, Code::ResourceExhausted);
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    assert_eq!(names(&other.response().await), ["c"]);
}

#[tokio::test]
async fn clients_that_never_finish_a_large_request_fill_no_memory() {
    let limit = |options| Options { intake_bytes: 16 << 20, ..options };
    let server = serve_with(true, [resource(Cds, "c", 1)], limit).await;
    // 3 MiB of a request of 4 MiB, by each of six.
    let part = || {
        let mut chunks = vec![vec![0], (4_u32 << 20).to_be_bytes().to_vec()];
        chunks.extend((0..48).map(|_| vec![b'x'; 64 << 10]));
        let (sender, body) = mpsc::channel(100);
        chunks.into_iter().for_each(|c| sender.try_send(Frame::data(Bytes::from(c))).unwrap());
        (sender, ReceiverStream::new(body).map(Ok::<_, tonic::Status>))
    };
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{DELTA}");
    let mut open = Vec::new();
    for _ in 0..6 {
        let (sender, body) = part();
        let body = tonic::body::Body::new(StreamBody::new(body));
        let request = http::Request::post(&path).body(body).unwrap();
        let response = server.service().call(request).await.unwrap();
        open.push((sender, tokio::spawn(response.into_body().collect())));
    }
    let ended = async {
        let left = 5 * (5 + (3 << 20));
        loop {
            let at = open.iter().position(|(_, answers)| answers.is_finished());
            if let Some(at) = at.filter(|_| server.stats.intake_bytes.get() == left) {
                return at;
            }
            tokio::task::yield_now().await;
        }
    };
    let at = timeout(LIMIT, ended).await.expect("one is ended");
    let answers = open.remove(at).1.await.expect("no panic").unwrap();
    assert_eq!(answers.trailers().unwrap()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
    assert!(!open.iter().any(|(_, answers)| answers.is_finished()));
    // Who asks for little is served, and what a stream held is given back with it.
    let mut other = server.connected("other").await;
    assert_eq!(names(&other.response().await), ["c"]);
    open.into_iter().for_each(|(_, answers)| answers.abort());
    server.streams(1).await;
    let given_back = async {
        while server.stats.intake_bytes.get() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, given_back).await.expect("it is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn r100_names_of_1_mb_are_answered_in_parts() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let unknown = "type.googleapis.com/unknown";
    for type_url in [Lds.type_url(), Eds.type_url(), unknown] {
        let mut client = server.delta().await;
        let asked = long_names(6, 1 << 20);
        let first = asking(Lds, asked.clone());
        client.send(DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..first }).await;
        let mut answered = Vec::new();
        while answered.len() < asked.len() {
            let response = client.response().await;
            assert!(response.encoded_len() < 4 << 20, "{}", response.encoded_len());
            client.ack(&response, None).await;
            answered.extend(response.removed_resources);
            answered.extend(response.resources.into_iter().map(|resource| resource.name));
        }
        answered.sort();
        assert!(answered == asked, "each once");
    }
}

#[test]
fn r100_no_response_is_larger_than_4_mib_unless_one_resource_is() {
    let large = |name: &str, bytes: usize| {
        let body = vec![b'x'; bytes];
        EncodedResource::new(Cds, name, &body, vec![])
    };
    let sizes = [1_500_000, 600_000, 2 << 20, 5 << 20, 3, 1_900_000, 200_000];
    let named = |n: usize| format!("{n}{}", "n".repeat(300_000));
    let all = sizes.iter().enumerate().map(|(n, bytes)| large(&named(n), *bytes));
    let mut proxy = Proxy::offered(all);
    proxy.ask(Cds, &[]);
    for response in proxy.ack_all() {
        let fits = response.resource_bytes() < 4 << 20;
        assert!(fits || response.resources.len() == 1, "{}", response.resource_bytes());
    }
    assert_eq!(proxy.holds(Cds).len(), sizes.len());
    // They go as they came.
    proxy.publish(|layer| {
        sizes.iter().enumerate().fold(layer, |l, (n, _)| l.remove(Cds, &named(n)))
    });
    let parts = proxy.ack_all();
    assert_eq!(parts.len(), 2, "7 names of 300 kB");
    assert_eq!(proxy.holds(Cds).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_names_end_a_stream_and_20_000_are_answered() {
    let limit = |options| Options { name_bytes: 8 << 20, ..options };
    let server = serve_with(true, [resource(Cds, "c", 1)], limit).await;
    let mut other = server.connected("other").await;
    let response = other.response().await;
    other.ack(&response, None).await;
    let mut greedy = server.delta().await;
    greedy.send(asking(Eds, long_names(1_000_000, 10))).await;
    assert_eq!(end(&mut greedy).await, Code::ResourceExhausted);
    let mut many = server.delta().await;
    many.send(asking(Eds, long_names(20_000, 40))).await;
    let mut answered = 0;
    while answered < 20_000 {
        answered += many.response().await.resources.len();
    }
    assert_eq!(answered, 20_000, "each once");
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    assert_eq!(names(&other.response().await), ["c"]);
    drop(many);
    server.streams(1).await;
}
