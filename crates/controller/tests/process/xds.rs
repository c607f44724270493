//! A proxy that speaks xDS to the running controller.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_api::envoy::config::core::v3::{BuildVersion, Node, node::UserAgentVersionType};
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use envoy_api::envoy::r#type::v3::SemanticVersion;
use prost_types::value::Kind;
use prost_types::{Struct, Value as Field};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{Controller, Folder, LIMIT, MESH, until};

pub(super) const ID: &str = "router~10.0.0.9~gw-1.edge~edge.svc.cluster.local";
const CLUSTER: &str = "outbound|80||shop.edge.svc.cluster.local";
pub(super) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const VHDS: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";

pub(super) fn node(id: &str, minor: u32) -> Node {
    let text = |t: &str| Field { kind: Some(Kind::StringValue(t.to_owned())) };
    let labels = Struct { fields: [("app".to_owned(), text("gw"))].into() };
    let labels = Field { kind: Some(Kind::StructValue(labels)) };
    let version = SemanticVersion { major_number: 1, minor_number: minor, patch: 0 };
    Node {
        id: id.to_owned(),
        metadata: Some(Struct { fields: [("LABELS".to_owned(), labels)].into() }),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(version),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A delta stream that accepts what it is sent, unless told otherwise.
pub(super) struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(super) responses: Streaming<DeltaDiscoveryResponse>,
}

async fn client(controller: &Controller) -> AggregatedDiscoveryServiceClient<Channel> {
    let address = format!("http://{}", controller.xds);
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    AggregatedDiscoveryServiceClient::new(channel.expect("a connection"))
}

impl Proxy {
    pub(super) async fn connect(controller: &Controller, node: Node) -> Self {
        let first = DeltaDiscoveryRequest { node: Some(node), ..Self::first() };
        Self::over(client(controller).await, first).await.expect("a stream")
    }

    /// Open a stream with this first request.
    pub(super) async fn over(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        first: DeltaDiscoveryRequest,
    ) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(64);
        requests.send(first).await.expect("sent");
        let stream = ReceiverStream::new(outgoing);
        let responses = client.delta_aggregated_resources(stream).await?;
        Ok(Self { requests, responses: responses.into_inner() })
    }

    /// A first request for clusters, without a node.
    pub(super) fn first() -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: CDS.to_owned(), ..Default::default() }
    }

    async fn subscribe(&self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.expect("sent");
    }

    pub(super) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("an answer");
        next.expect("no error").expect("no end")
    }

    pub(super) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|message| envoy_api::google::rpc::Status {
            code: 13,
            message: message.to_owned(),
            ..Default::default()
        });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        self.requests.send(request).await.expect("sent");
    }

    /// Reject this cluster until nothing more comes of its type; accept the rest.
    async fn reject(&mut self, error: &str) {
        loop {
            let response = self.next().await;
            let bad = response.resources.iter().any(|r| r.name == CLUSTER);
            self.answer(&response, bad.then_some(error)).await;
            // Alone, it is the culprit.
            if bad && response.resources.len() == 1 {
                return;
            }
        }
    }

    /// Accept everything until a resource of this name comes; its bytes.
    async fn bytes_of(&mut self, type_url: &str, name: &str) -> Vec<u8> {
        loop {
            let response = self.next().await;
            self.answer(&response, None).await;
            let found = response.resources.iter().find(|r| r.name == name);
            if response.type_url == type_url
                && let Some(found) = found
            {
                return found.resource.clone().expect("a body").value.to_vec();
            }
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

/// Problems of objects that come from rejections.
fn rejections(controller: &Controller) -> Vec<(String, String)> {
    let found = controller.configz();
    let objects = found["objects"].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        for problem in object["problems"].as_array().cloned().unwrap_or_default() {
            if problem["reason"] == "Rejected" {
                all.push((
                    kind.clone(),
                    problem["message"].as_str().unwrap_or_default().to_owned(),
                ));
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_rejection_then_it_stands_on_the_object_until_it_changes_or_the_stream_ends() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let mut proxy = Proxy::connect(&controller, node(ID, 40)).await;
    let error = format!("Error adding/updating cluster(s) {CLUSTER}: bad policy");
    proxy.reject(&error).await;
    let (kind, message) = until("the rejection", || rejections(&controller).into_iter().next());
    assert!(kind == "DestinationRule" || kind == "Service", "{kind}");
    assert!(
        message.contains(ID) && message.contains(CLUSTER) && message.contains("bad policy"),
        "{message}"
    );
    let syncz = controller.debug("/debug/syncz").1;
    let syncz: Value = serde_json::from_str(&syncz).expect("JSON");
    assert_eq!(syncz[0]["types"]["CDS"]["state"], "ERROR", "{syncz}");
    let metrics = controller.public("/metrics").1;
    assert!(metrics.contains(&format!("pilot_total_xds_rejects{{type=\"{CDS}\"}} ")), "{metrics}");
    assert!(metrics.contains("\npilot_xds 1\n"), "{metrics}");

    // The object changes: what was said of it may not hold any more.
    folder.write("mesh.yaml", MESH.replace("RANDOM", "ROUND_ROBIN"));
    until("the rejection to go", || rejections(&controller).is_empty().then_some(()));
    proxy.reject(&error.replace("bad", "worse")).await;
    let (_, message) = until("the next one", || rejections(&controller).into_iter().next());
    assert!(message.contains("worse policy"), "{message}");
    drop(proxy);
    until("it to go with its stream", || rejections(&controller).is_empty().then_some(()));
    until("no proxies", || (controller.debug("/debug/syncz").1 == "[]").then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_node_id_that_is_none_then_the_stream_ends_with_what_is_wrong() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    for (id, why) in [
        ("gateway", "four parts"),
        ("", "node"),
        ("proxy~10.0.0.9~a.b~b.svc.cluster.local", "sidecar or router"),
        ("router~10.0.0.9~a~", "no namespace"),
    ] {
        let mut proxy = Proxy::connect(&controller, node(id, 40)).await;
        let status =
            tokio::time::timeout(LIMIT, proxy.responses.message()).await.expect("an answer");
        let status = status.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{id}: {status}");
        assert!(status.message().contains(why), "{id}: {status}");
    }
    assert_eq!(controller.debug("/debug/syncz").1, "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn r108_an_envoy_that_is_too_old_for_vhds_gets_its_virtual_hosts_inlined() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    for (minor, inlined) in [(40, false), (41, false), (39, true)] {
        let mut proxy = Proxy::connect(&controller, node(ID, minor)).await;
        proxy.subscribe(EDS, &[CLUSTER]).await;
        proxy.subscribe(LDS, &[]).await;
        proxy.subscribe(RDS, &["http.8080"]).await;
        let routes = proxy.bytes_of(RDS, "http.8080").await;
        assert_eq!(contains(&routes, "shop.example.com"), inlined, "1.{minor}");
        if !inlined {
            proxy.subscribe(VHDS, &["http.8080/shop.example.com"]).await;
            let host = proxy.bytes_of(VHDS, "http.8080/shop.example.com").await;
            assert!(contains(&host, CLUSTER));
            let (_, dump) = controller.debug(&format!("/debug/config_dump?proxyID={ID}"));
            let origin = "VirtualService edge/shop spec.hosts";
            assert!(dump.contains(origin) && dump.contains("mesh.yaml:"), "{dump}");
        }
        let (_, dump) = controller.debug(&format!("/debug/config_dump?proxyID={ID}"));
        let dump: Value = serde_json::from_str(&dump).expect("JSON");
        let routes = &dump["configs"][2]["dynamic_route_configs"][0];
        let from = &routes["route_origins"]["shop.example.com"][0][0];
        let from = from.as_str().unwrap_or_default();
        assert!(from.starts_with("VirtualService edge/shop spec.http[0] ("), "1.{minor}: {routes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn given_state_of_the_world_then_virtual_hosts_are_inlined_and_the_dump_says_where_from() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let (requests, outgoing) = mpsc::channel(64);
    let ask = |type_url: &str, names: &[&str], node: Option<Node>| DiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        node,
        ..Default::default()
    };
    requests.send(ask(CDS, &[], Some(node(ID, 40)))).await.expect("sent");
    requests.send(ask(EDS, &[CLUSTER], None)).await.expect("sent");
    requests.send(ask(LDS, &[], None)).await.expect("sent");
    requests.send(ask(RDS, &["http.8080"], None)).await.expect("sent");
    let stream = ReceiverStream::new(outgoing);
    let responses = client(&controller).await.stream_aggregated_resources(stream).await;
    let mut responses = responses.expect("a stream").into_inner();
    loop {
        let next = tokio::time::timeout(LIMIT, responses.message()).await.expect("an answer");
        let next = next.expect("no error").expect("no end");
        let names: &[&str] = match next.type_url.as_str() {
            EDS => &[CLUSTER],
            RDS => &["http.8080"],
            _ => &[],
        };
        let accepted = DiscoveryRequest {
            version_info: next.version_info.clone(),
            response_nonce: next.nonce.clone(),
            ..ask(&next.type_url, names, None)
        };
        requests.send(accepted).await.expect("sent");
        if next.type_url == RDS {
            assert!(contains(&next.resources[0].value, "shop.example.com"));
            break;
        }
    }
    let (status, dump) = controller.debug(&format!("/debug/config_dump?proxyID={ID}"));
    assert_eq!(status, 200);
    assert!(
        dump.contains("Gateway edge/edge spec.servers[0]") && dump.contains("mesh.yaml:"),
        "{dump}"
    );
    assert!(dump.contains("VirtualService edge/shop spec.hosts"), "{dump}");
}

/// Versions of all that a proxy is sent: of each resource, and of each type without a name.
async fn versions(controller: &Controller) -> BTreeMap<(String, String), String> {
    let mut proxy = Proxy::connect(controller, node(ID, 40)).await;
    proxy.subscribe(EDS, &[CLUSTER]).await;
    proxy.subscribe(LDS, &[]).await;
    proxy.subscribe(RDS, &["http.8080"]).await;
    proxy.subscribe(VHDS, &[]).await;
    let mut found = BTreeMap::new();
    for _ in [CDS, EDS, LDS, RDS, VHDS] {
        let response = proxy.next().await;
        proxy.answer(&response, None).await;
        let of_type = |name: &str| (response.type_url.clone(), name.to_owned());
        for resource in &response.resources {
            found.insert(of_type(&resource.name), resource.version.clone());
        }
        found.insert(of_type(""), response.system_version_info.clone());
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn r59_two_processes_and_the_next_one_give_equal_versions_to_equal_content_alone() {
    let folder = Folder::with("mesh.yaml", MESH);
    let (one, two) = (Controller::on(folder.path()), Controller::on(folder.path()));
    let first = versions(&one).await;
    assert_eq!(first.len(), 5 + 6, "{first:#?}");
    assert_eq!(versions(&two).await, first);
    drop(one);
    assert_eq!(versions(&Controller::on(folder.path())).await, first, "after a restart");
    folder.write("mesh.yaml", MESH.replace("RANDOM", "ROUND_ROBIN"));
    let after = versions(&Controller::on(folder.path())).await;
    let differ: Vec<_> = first.keys().filter(|key| first[*key] != after[*key]).collect();
    let of_type = |name: &str| (CDS.to_owned(), name.to_owned());
    assert_eq!(differ, [&of_type(""), &of_type(CLUSTER)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn given_open_streams_when_it_is_told_to_stop_then_it_ends_soon_with_0() {
    let folder = Folder::with("mesh.yaml", MESH);
    let mut controller = Controller::on(folder.path());
    let mut proxy = Proxy::connect(&controller, node(ID, 40)).await;
    proxy.next().await;
    let started = std::time::Instant::now();
    controller.guard.signal("TERM");
    assert_eq!(controller.guard.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// The newest batch of `/debug/pushz` in which an object was read.
fn newest_read(controller: &Controller) -> Value {
    let (status, text) = controller.debug("/debug/pushz");
    assert_eq!(status, 200);
    let pushes: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let read = |push: &Value| push["events"].to_string().contains("read: ");
    pushes.into_iter().find(read).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn given_edits_then_pushz_says_what_ran_and_why_a_stream_was_woken_or_not() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::start(folder.path(), &["--verify-engine"]);
    until("readiness", || (controller.public("/readyz").0 == 200).then_some(()));
    let mut proxy = Proxy::connect(&controller, node(ID, 40)).await;
    proxy.next().await;
    let after = |outcome: &'static str| {
        until(outcome, || {
            let push = newest_read(&controller);
            push["outcome"].as_str().is_some_and(|o| o.starts_with(outcome)).then_some(push)
        })
    };
    let edited = |from: &str, to: &str| folder.write("mesh.yaml", MESH.replace(from, to));
    edited("RANDOM", "ROUND_ROBIN");
    let push = after("resources differ; the streams");
    assert_eq!(push["resources"].as_array().map(Vec::len), Some(1), "{push:#}");
    let cluster = format!("cluster {CLUSTER}");
    let ran = push["ran"].as_array().cloned().unwrap_or_default();
    let outcome = |query: &str| {
        let found = ran.iter().find(|r| r["query"].as_str().is_some_and(|q| q.contains(query)));
        found.map(|r| r["outcome"].clone()).unwrap_or_default()
    };
    assert_eq!(outcome(&cluster), "differs", "{push:#}");
    assert_eq!(outcome("destinations of VirtualService edge/shop"), "equal", "{push:#}");
    assert_eq!(push["woken"][0]["streams"].as_array().map(Vec::len), Some(1), "{push:#}");
    edited("RANDOM", "ROUND_ROBIN # a remark");
    after("nothing differs");
    assert!(!controller.guard.log().contains("differs from a fresh one"));
}

/// A peer that is gone without a word: its kernel still takes bytes, but nobody answers.
#[test]
fn r97_a_peer_that_does_not_answer_pings_is_cut_within_a_minute() {
    use std::io::{Read, Write};
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let mut peer = std::net::TcpStream::connect(controller.xds).expect("a connection");
    peer.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    // The preface of HTTP/2, empty settings, and never an answer to a PING.
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
    let began = std::time::Instant::now();
    let mut bytes = [0; 1024];
    loop {
        match peer.read(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("still there after {:?}: {error}", began.elapsed()),
        }
    }
    let took = began.elapsed();
    // Clients may be silent for 15 s and more.
    assert!(took > Duration::from_secs(15) && took < Duration::from_secs(60), "{took:?}");
}
