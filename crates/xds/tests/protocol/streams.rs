//! The running server with many streams, with slow ones, and what is never on the wire (R43, R45,
//! R66, R85, R91–R95, R99, R101, R104).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use xds::{EncodedResource, Options, ResourceType, ScopeId};

use super::dsl::*;
use super::server::*;

/// A state-of-the-world stream.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Sotw {
    async fn connected(server: &Running) -> Self {
        let mut client = AggregatedDiscoveryServiceClient::new(server.channel().await);
        let (requests, outgoing) = mpsc::channel(16);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(outgoing));
        // The server answers the call once it has read a request.
        requests.send(Self::ask(Cds, &[], "")).await.unwrap();
        Self { requests, responses: responses.await.unwrap().into_inner() }
    }

    fn ask(resource_type: ResourceType, names: &[&str], version: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            node: request(Some("n"), resource_type).node,
            type_url: resource_type.type_url().to_owned(),
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            version_info: version.to_owned(),
            ..Default::default()
        }
    }

    async fn response(&mut self) -> DiscoveryResponse {
        let next = timeout(LIMIT, self.responses.message()).await.expect("an answer");
        next.unwrap().expect("a response")
    }
}

/// A resource of many bytes, different in each version.
fn large(name: &str, n: u32) -> EncodedResource {
    let mut body = format!("{name} {n} ").into_bytes();
    body.resize(1 << 20, b'x');
    EncodedResource::new(Cds, name, &body, vec![])
}

#[tokio::test]
async fn r43_a_named_resource_is_sent_whatever_version_the_first_request_says() {
    let server = serve(true, [resource(Cds, "c", 1), resource(Eds, "c", 1)]).await;
    let mut first = Sotw::connected(&server).await;
    assert_eq!(first.response().await.resources.len(), 1);
    first.requests.send(Sotw::ask(Eds, &["c"], "")).await.unwrap();
    let version = first.response().await.version_info;
    let mut again = Sotw::connected(&server).await;
    again.response().await;
    again.requests.send(Sotw::ask(Eds, &["c"], &version)).await.unwrap();
    let response = again.response().await;
    assert_eq!((response.resources.len(), response.version_info), (1, version));
}

#[tokio::test]
async fn r45_resources_of_the_state_of_the_world_are_never_wrapped() {
    let all = [resource(Cds, "c", 1), resource(Eds, "c", 1)];
    let server = serve(true, all.clone()).await;
    let mut client = Sotw::connected(&server).await;
    let clusters = client.response().await;
    client.requests.send(Sotw::ask(Eds, &["c"], "")).await.unwrap();
    let endpoints = client.response().await;
    for (response, resource) in [clusters, endpoints].iter().zip(&all) {
        assert_eq!(response.resources[0].type_url, resource.resource_type().type_url());
        assert_eq!(response.resources[0].value, resource.body());
    }
}

#[tokio::test]
async fn r66_every_resource_and_every_response_has_a_version() {
    let server = serve(true, [resource(Cds, "a", 1), resource(Cds, "b", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    assert!(!response.system_version_info.is_empty());
    let versions: Vec<_> = response.resources.iter().map(|r| &r.version).collect();
    assert!(versions.iter().all(|version| !version.is_empty()));
    assert_ne!(versions[0], versions[1], "each its own");
}

#[tokio::test]
async fn r85_a_change_that_a_proxy_does_not_see_does_not_even_wake_it() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, None).await;
    let sent = server.stats.sent_bytes.get();
    let mut woken = server.gate.publisher.subscribe(ScopeId(0));
    woken.mark_unchanged();
    for n in 1..100 {
        let mut next = (*server.gate.publisher.load()).clone();
        next.revision += 1;
        Arc::make_mut(&mut next.scopes).insert(ScopeId(1), view([resource(Cds, "d", n)]));
        server.gate.publisher.publish(next);
    }
    assert!(!woken.has_changed().unwrap(), "its scope was told");
    // What comes after the others came would have come after them.
    client.send(subscribe(Eds, "x")).await;
    assert_eq!(names(&client.response().await), ["x"]);
    assert_eq!(server.stats.skipped_equal.get(), 0, "it was woken for nothing");
    assert_eq!(server.stats.responses(Cds).get(), 1);
    assert!(server.stats.sent_bytes.get() - sent < 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn r91_clients_that_do_not_read_hold_up_nobody() {
    let clusters = (0..24).map(|i| large(&format!("c{i}"), 1));
    let mut offered = view(clusters.chain([resource(Eds, "e", 0)]));
    let server = serve(true, []).await;
    server.gate.publisher.publish(publication(2, offered.clone()));
    let mut frozen = Vec::new();
    for _ in 0..10 {
        // They ask for 24 MiB and never read: buffers are full long before.
        frozen.push(server.connected("frozen").await);
    }
    let mut healthy = server.delta().await;
    let mut first = subscribe(Eds, "e");
    first.node = request(Some("healthy"), Eds).node;
    healthy.send(first).await;
    let response = healthy.response().await;
    healthy.ack(&response, None).await;
    let mut slowest = Duration::ZERO;
    for n in 1..=20 {
        offered = edited(&offered, |layer| layer.set(resource(Eds, "e", n)));
        let began = Instant::now();
        server.gate.publisher.publish(publication(u64::from(n) + 2, offered.clone()));
        let response = healthy.response().await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(response.resources[0].version, resource(Eds, "e", n).version().to_string());
        healthy.ack(&response, None).await;
    }
    println!("slowest of 20 changes beside 10 frozen clients: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    drop(frozen);
}

#[tokio::test(flavor = "multi_thread")]
async fn r92_a_client_that_does_not_read_is_ended_with_unavailable_and_counted() {
    let limit = Duration::from_secs(1);
    let clusters = (0..24).map(|i| large(&format!("c{i}"), 1));
    let server = serve_with(true, clusters, |mut options| {
        options.write_limit = limit;
        options
    })
    .await;
    let began = Instant::now();
    let mut slow = server.connected("slow").await;
    server.streams(1).await;
    // Nothing is read: the stream ends, and with it all that the server kept for it.
    server.streams(0).await;
    assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
    assert_eq!(server.stats.unread.get(), 1);
    let code = loop {
        match slow.next().await {
            Ok(Some(_)) => {}
            Ok(None) => break Code::Ok,
            Err(status) => break status.code(),
        }
    };
    assert_eq!(code, Code::Unavailable);
    // Whoever reads, however much there is, is not ended.
    let mut good = server.connected("good").await;
    let mut count = 0;
    while count < 24 {
        let response = good.response().await;
        count += response.resources.len();
        good.ack(&response, None).await;
    }
    tokio::time::sleep(2 * limit).await;
    good.send(subscribe(Eds, "x")).await;
    assert_eq!(names(&good.response().await), ["x"]);
    assert_eq!(server.stats.unread.get(), 1);
}

/// Time for which the processor ran this thread.
fn worked() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

// One thread has client and server.
#[tokio::test]
async fn r92_a_wait_that_ends_while_a_client_does_not_read_costs_nothing() {
    let wait = Duration::from_millis(100);
    let clusters = (0..24).map(|i| large(&format!("c{i}"), 1));
    let listener = refers(Lds, "l", 1, &[(Cds, "c0")]);
    let server = serve_with(true, clusters.chain([listener]), |mut options| {
        options.settings.first_gate = wait;
        options
    })
    .await;
    let slow = server.connected("slow").await;
    slow.send(request(None, Lds)).await;
    tokio::time::sleep(10 * wait).await;
    let before = worked();
    tokio::time::sleep(10 * wait).await;
    let spent = worked() - before;
    assert!(spent < wait, "{spent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r93_many_cold_connects_at_once_all_get_everything() {
    const CLIENTS: usize = 300;
    let clusters: Vec<_> = (0..200).map(|i| resource(Cds, &format!("c{i}"), 1)).collect();
    let server = Arc::new(serve(true, clusters).await);
    let connect = |i: usize| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let mut client = server.connected(&format!("n{i}")).await;
            let response = client.response().await;
            client.ack(&response, None).await;
            (response.resources.len(), client)
        })
    };
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    let mut kept = Vec::new();
    for client in clients {
        let (count, client) = client.await.expect("no panic");
        assert_eq!(count, 200);
        kept.push(client);
    }
    println!("{CLIENTS} cold connects served in {:?}", began.elapsed());
    server.streams(CLIENTS).await;
    assert_eq!(server.stats.responses(Cds).get(), CLIENTS as u64, "one answer each");
}

/// A server that takes in one stream after the other, and waits so long for its proxy.
async fn one_after_the_other(patience: Duration) -> Arc<Running> {
    let all = [resource(Cds, "c", 1), resource(Lds, "l", 1)];
    let options = |options| Options { building_bytes: 1, building_patience: patience, ..options };
    Arc::new(serve_with(true, all, options).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn r93_cold_connects_are_taken_in_one_after_the_other() {
    const CLIENTS: usize = 20;
    let server = one_after_the_other(10 * LIMIT).await;
    let inside = Arc::new(AtomicUsize::new(0));
    let connect = |i: usize| {
        let (server, inside) = (Arc::clone(&server), Arc::clone(&inside));
        tokio::spawn(async move {
            let mut client = server.connected(&format!("n{i}")).await;
            let clusters = client.response().await;
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "another one is not ready");
            client.ack(&clusters, None).await;
            client.send(request(None, Lds)).await;
            let listeners = client.response().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            client.ack(&listeners, None).await;
            client
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    let mut kept = Vec::new();
    for client in clients {
        kept.push(client.await.expect("no panic"));
    }
    assert_eq!(server.stats.waiting.get(), 0);
    // Who was taken in waits for nobody.
    let _busy = server.connected("busy").await;
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    for client in &mut kept {
        assert_eq!(names(&client.response().await), ["c"]);
    }
}

#[tokio::test]
async fn r91_who_is_taken_in_and_says_nothing_lets_others_go_first() {
    let server = one_after_the_other(Duration::from_millis(20)).await;
    let mut frozen = server.connected("frozen").await;
    let mut other = server.connected("other").await;
    assert_eq!(names(&other.response().await), ["c"]);
    // It lost its place, not its stream.
    let response = frozen.response().await;
    frozen.ack(&response, None).await;
    frozen.send(request(None, Lds)).await;
    assert_eq!(names(&frozen.response().await), ["l"]);
}

#[tokio::test]
async fn r95_a_stream_that_is_shed_before_its_first_response_is_unavailable_and_later_ends_ok() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut early = server.connected("n").await;
    early.response().await;
    server.shutdown.send_replace(true);
    // It had its response: it may come back at once.
    assert_eq!(early.code().await, Code::Ok);
    let mut late = server.connected("n").await;
    assert_eq!(late.code().await, Code::Unavailable);
}

#[tokio::test]
async fn r99_whoever_comes_back_gets_the_state_of_today() {
    let server = serve(true, [resource(Cds, "c", 1), resource(Cds, "gone", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, None).await;
    drop(client);
    server.streams(0).await;
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    let mut client = server.connected("n").await;
    let response = client.response().await;
    assert_eq!(names(&response), ["c"]);
    assert_eq!(response.resources[0].version, resource(Cds, "c", 2).version().to_string());
}

#[tokio::test]
async fn r101_no_resource_has_a_time_to_live() {
    let all = [resource(Cds, "c", 1), resource(Lds, "l", 1), resource(Eds, "c", 1)];
    let server = serve(true, all).await;
    let mut client = server.connected("n").await;
    client.send(request(None, Lds)).await;
    client.send(subscribe(Eds, "c")).await;
    for _ in 0..3 {
        let response = client.response().await;
        client.ack(&response, None).await;
        for resource in response.resources {
            assert_eq!((resource.ttl, resource.cache_control), (None, None), "{}", resource.name);
            assert!(resource.resource.is_some(), "a heartbeat");
        }
    }
}

#[tokio::test]
async fn r104_types_of_debug_pages_are_not_served_and_start_nothing() {
    let server = serve(true, [resource(Cds, "c", 1)]).await;
    let mut client = server.connected("n").await;
    let response = client.response().await;
    client.ack(&response, None).await;
    for type_url in ["istio.io/debug/syncz", "istio.io/debug/config_dump"] {
        let names = vec!["n".to_owned()];
        let ask = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.clone(),
            ..Default::default()
        };
        client.send(ask).await;
        let response = client.response().await;
        assert_eq!((response.resources.len(), response.removed_resources), (0, names));
    }
    server.gate.publisher.publish(publication(2, view([resource(Cds, "c", 2)])));
    let response = client.response().await;
    assert_eq!(response.type_url, Cds.type_url(), "nothing more of those types");
}

/// A request for one more name.
fn subscribe(resource_type: ResourceType, name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: vec![name.to_owned()],
        ..request(None, resource_type)
    }
}
