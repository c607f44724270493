//! The secure port: who may be what.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use identity::folder::{read_ca, write_ca};
use identity::{Authority, CertifiedRequest, IdentityFolder, JoinTokens, PrivateKey, client, tls};
use prost_types::Value as Field;
use prost_types::value::Kind;
use rustls::ClientConfig;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::xds::{ID, Proxy, node};
use super::{Controller, Folder, Guard, LIMIT, MESH, until};

const HOUR: Duration = Duration::from_secs(3600);
const SIDECAR: &str = "sidecar~10.0.0.9~web-1.edge~edge.svc.cluster.local";

/// A controller with an authority, and the authority's folder.
pub(super) struct Secured {
    pub(super) controller: Controller,
    pub(super) folder: Folder,
}

impl Secured {
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Self {
        let folder = Folder::with("mesh/mesh.yaml", MESH);
        let directory = folder.path().join("identity").display().to_string();
        let mut args = vec![
            "--secure-address=127.0.0.1:0",
            "--gateway-identity=edge/gateway",
            "--identity-directory",
            &directory,
        ];
        args.extend(more);
        let controller = Controller::start(&folder.path().join("mesh"), &args);
        until("readiness", || (controller.public("/readyz").0 == 200).then_some(()));
        Self { controller, folder }
    }

    fn identity(&self) -> PathBuf {
        self.folder.path().join("identity")
    }

    fn authority(&self) -> Authority {
        let files = read_ca(&self.identity().join("ca")).expect("files");
        Authority::from_files(&files, SystemTime::now()).expect("usable")
    }

    /// TLS of a workload whose certificate lasts so long; none: without certificate.
    pub(super) fn tls(&self, who: Option<(&str, &str, Duration)>) -> ClientConfig {
        let authority = self.authority();
        let key = PrivateKey::generate().expect("a key");
        let certificate = who.map(|(namespace, account, lifetime)| {
            let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
            let id = id.parse().expect("an id");
            let csr = client::csr(&key, None).expect("a request");
            let request = CertifiedRequest::check(csr.as_bytes(), &id).expect("a good request");
            let issued = authority.issue(&id, &request, lifetime, SystemTime::now());
            (vec![issued.expect("issued").der], &key)
        });
        tls::client_config(authority.roots(), certificate).expect("set up")
    }

    /// Connect as this workload.
    async fn connect(&self, who: Option<(&str, &str, Duration)>) -> Channel {
        let address = self.controller.secure.expect("a secure port").to_string();
        client::connect(&address, self.tls(who)).await.expect("connected")
    }

    /// Open a stream as this workload with this node.
    async fn open(&self, who: Option<(&str, &str, Duration)>, node: Node) -> Result<Proxy, Status> {
        let client = AggregatedDiscoveryServiceClient::new(self.connect(who).await);
        let first = DeltaDiscoveryRequest { node: Some(node), ..Proxy::first() };
        Proxy::over(client, first).await
    }

    /// What a stream of this workload with this node is refused with.
    async fn refusal(&self, who: Option<(&str, &str, Duration)>, node: Node) -> (Code, String) {
        let status = match self.open(who, node).await {
            Err(status) => status,
            Ok(mut proxy) => {
                let answer = tokio::time::timeout(LIMIT, proxy.responses.message()).await;
                answer.expect("an answer").expect_err("no resource")
            }
        };
        (status.code(), status.message().to_owned())
    }
}

/// A node with one more field of metadata.
fn claiming(id: &str, key: &str, value: &str) -> Node {
    let mut node = node(id, 40);
    let value = Field { kind: Some(Kind::StringValue(value.to_owned())) };
    node.metadata.as_mut().expect("metadata").fields.insert(key.to_owned(), value);
    node
}

#[tokio::test]
async fn given_a_gateway_with_its_certificate_then_it_is_served() {
    let mesh = Secured::start();
    let who = Some(("edge", "gateway", HOUR));
    let mut proxy = mesh.open(who, node(ID, 40)).await.expect("a stream");
    assert!(!proxy.next().await.resources.is_empty());
    let (_, page) = mesh.controller.debug("/debug/syncz");
    assert!(page.contains(ID), "{page}");
    super::until("its identity in the log", || {
        let log = mesh.controller.guard.log();
        log.contains("spiffe://cluster.local/ns/edge/sa/gateway").then_some(())
    });
}

#[tokio::test]
async fn given_a_certificate_of_namespace_a_that_claims_b_then_permission_is_denied() {
    let mesh = Secured::start();
    let other = Some(("other", "web", HOUR));
    let (code, text) = mesh.refusal(other, node(SIDECAR, 40)).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(text.contains("namespace \"edge\"") && text.contains("ns/other/sa/web"), "{text}");
    let (_, page) = mesh.controller.debug("/debug/syncz");
    assert_eq!(page.trim(), "[]", "nothing was opened");
}

#[tokio::test]
async fn given_node_metadata_that_claims_another_namespace_or_account_then_permission_is_denied() {
    let mesh = Secured::start();
    let web = Some(("edge", "web", HOUR));
    for (key, value) in [("NAMESPACE", "other"), ("SERVICE_ACCOUNT", "admin")] {
        let (code, text) = mesh.refusal(web, claiming(SIDECAR, key, value)).await;
        assert_eq!(code, Code::PermissionDenied, "{text}");
        assert!(text.contains(value), "{text}");
    }
    let own = claiming(SIDECAR, "SERVICE_ACCOUNT", "web");
    assert!(mesh.open(web, own).await.is_ok());
}

#[tokio::test]
async fn given_a_workload_that_claims_to_be_a_gateway_then_permission_is_denied() {
    let mesh = Secured::start();
    let (code, text) = mesh.refusal(Some(("edge", "web", HOUR)), node(ID, 40)).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(text.contains("--gateway-identity"), "{text}");
}

#[tokio::test]
async fn given_no_certificate_or_a_join_token_then_a_stream_is_refused() {
    let mesh = Secured::start();
    let (code, text) = mesh.refusal(None, node(ID, 40)).await;
    assert!(code == Code::Unauthenticated && text.contains("no credential"), "{text}");
    let folder = IdentityFolder::open(&mesh.identity()).expect("the same folder");
    let domain: identity::TrustDomain = "cluster.local".parse().expect("valid");
    let id = "spiffe://cluster.local/ns/edge/sa/gateway".parse().expect("valid");
    let token = JoinTokens::new(&folder, domain).create(&id, HOUR, SystemTime::now());
    let token = token.expect("made");
    let channel = mesh.connect(None).await;
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let first = DeltaDiscoveryRequest { node: Some(node(ID, 40)), ..Proxy::first() };
    let mut request = tonic::Request::new(tokio_stream::iter([first]));
    let bearer = format!("Bearer {}", *token).parse().expect("text");
    request.metadata_mut().insert("authorization", bearer);
    let status = client.delta_aggregated_resources(request).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    // It is good for a certificate still; nothing of it is in the log.
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, None).expect("a request");
    client::request(&channel, Some(&token), csr, None).await.expect("issued");
    // What is logged travels through a pipe.
    let log = until("the log", || {
        let log = mesh.controller.guard.log();
        log.contains("certificate issued").then_some(log)
    });
    assert!(!log.contains(&token[..]) && !log.contains("PRIVATE"), "{log}");
}

#[tokio::test]
async fn given_a_stream_whose_certificate_expires_then_it_ends_and_the_next_is_sent_little() {
    let mesh = Secured::start();
    let short = Some(("edge", "gateway", Duration::from_secs(4)));
    let mut proxy = mesh.open(short, node(ID, 40)).await.expect("a stream");
    let response = proxy.next().await;
    proxy.answer(&response, None).await;
    let began = std::time::Instant::now();
    let held: Vec<_> =
        response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    // No error: it ended in good order.
    let end = tokio::time::timeout(LIMIT, async {
        while let Some(more) = proxy.responses.message().await? {
            proxy.answer(&more, None).await;
        }
        Ok::<_, Status>(())
    });
    end.await.expect("an end").expect("in good order");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The client is back with a new certificate and says what it holds.
    let first = DeltaDiscoveryRequest {
        node: Some(node(ID, 40)),
        initial_resource_versions: held.into_iter().collect(),
        ..Proxy::first()
    };
    let channel = mesh.connect(Some(("edge", "gateway", HOUR))).await;
    let client = AggregatedDiscoveryServiceClient::new(channel);
    let mut back = Proxy::over(client, first).await.expect("a stream");
    let again = tokio::time::timeout(Duration::from_secs(1), back.responses.message()).await;
    let resent = match again {
        Ok(Ok(Some(response))) => response.resources.len(),
        Ok(other) => panic!("the stream ended: {other:?}"),
        Err(_) => 0,
    };
    assert_eq!(resent, 0, "it holds all");
}

#[test]
fn given_two_controllers_that_start_at_once_on_an_empty_folder_then_there_is_one_root() {
    let folder = Folder::with("mesh/mesh.yaml", MESH);
    let directory = folder.path().join("identity").display().to_string();
    let args = ["--secure-address=127.0.0.1:0", "--identity-directory", &directory];
    let controllers: Vec<Controller> = std::thread::scope(|scope| {
        let start = || Controller::start(&folder.path().join("mesh"), &args);
        let both = [scope.spawn(start), scope.spawn(start)];
        both.map(|thread| thread.join().expect("no panic")).into()
    });
    let serial = |controller: &Controller| {
        let page = until("the authority", || {
            let (status, page) = controller.debug("/debug/ca");
            (status == 200).then_some(page)
        });
        let page: Value = serde_json::from_str(&page).expect("JSON");
        page["issuer"]["serial"].as_str().expect("a serial number").to_owned()
    };
    assert_eq!(serial(&controllers[0]), serial(&controllers[1]));
    let key = folder.path().join("identity/ca/ca-key.pem");
    let mode = std::fs::metadata(key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // And a restart keeps it.
    let first = serial(&controllers[0]);
    drop(controllers);
    let again = Controller::start(&folder.path().join("mesh"), &args);
    assert_eq!(serial(&again), first);
}

#[tokio::test]
async fn given_requests_then_page_and_metrics_count_them() {
    let mesh = Secured::start();
    mesh.refusal(None, node(ID, 40)).await;
    let channel = mesh.connect(Some(("edge", "web", HOUR))).await;
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, None).expect("a request");
    client::request(&channel, None, csr, None).await.expect("issued");
    client::request(&channel, None, "nonsense".to_owned(), None).await.expect_err("refused");
    let page: Value = serde_json::from_str(&mesh.controller.debug("/debug/ca").1).expect("JSON");
    assert_eq!(page["issued"], 1, "{page}");
    assert_eq!(page["refused"]["no_credential"], 1, "{page}");
    assert_eq!(page["refused"]["csr_malformed"], 1, "{page}");
    assert_eq!(page["trustDomain"], "cluster.local");
    assert!(!page.to_string().contains("PRIVATE"), "{page}");
    let metrics = mesh.controller.public("/metrics").1;
    for line in [
        "citadel_server_csr_count 2",
        "citadel_server_success_cert_issuance_count 1",
        "citadel_server_authentication_failure_count 1",
        "citadel_server_csr_parsing_err_count 1",
        "heddle_identity_refused_total{reason=\"csr_malformed\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in:\n{metrics}");
    }
    let end = metrics.lines().find(|l| l.starts_with("citadel_server_root_cert_expiry_timestamp"));
    let end = end.and_then(|l| l.split(' ').next_back()?.parse::<u64>().ok()).expect("a time");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    assert!(end > now.as_secs(), "{end}");
}

#[test]
fn given_settings_that_cannot_work_then_the_end_says_why() {
    let folder = Folder::with("mesh/mesh.yaml", MESH);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let source = format!("--source=directory={}", path("mesh"));
    let own = path("identity");
    let says = |args: &[&str], texts: &[&str]| {
        let mut all = vec![source.as_str(), "--secure-address=127.0.0.1:0"];
        all.extend(args);
        let mut guard = Guard::spawn(&all);
        assert!(!guard.wait().success());
        for text in texts {
            assert!(guard.log().contains(text), "{text:?} is not in:\n{}", guard.log());
        }
    };
    says(&["--ca-directory=/x"], &["--ca-directory has no effect without --identity-directory"]);
    let with = |more: &str| vec!["--identity-directory".to_owned(), own.clone(), more.to_owned()];
    let run = |more: &str, texts: &[&str]| {
        let args = with(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        says(&args, texts);
    };
    says(&["--identity-cluster"], &["--identity-cluster needs --source kubernetes"]);
    says(&["--node-agent=a/b"], &["--node-agent has no effect without --identity-cluster"]);
    says(&["--remote-admin-address=127.0.0.1:0"], &["no effect without --identity-cluster"]);
    says(&["--server-name=x"], &["--server-name", "--identity-directory or --identity-cluster"]);
    run("--node-agent=a/b", &["--node-agent has no effect without --identity-cluster"]);
    run("--identity-cluster", &["cannot be used with"]);
    run("--gateway-identity=edge", &["NAMESPACE/SERVICE-ACCOUNT", "edge"]);
    run("--trust-domain=Cluster", &["--trust-domain", "lower-case"]);
    run("--certificate-lifetime=1s", &["between 60s"]);
    run("--certificate-lifetime=100d", &["--longest-certificate-lifetime"]);
    run("--jwt-issuer=x", &["--jwt-keys"]);
    run(&format!("--ca-directory={}", path("nowhere")), &["nowhere/ca-cert.pem", "reading"]);
    // A plug-in CA whose key is another's.
    let domain: identity::TrustDomain = "cluster.local".parse().expect("valid");
    let now = SystemTime::now();
    let mut files = Authority::self_signed(&domain, now).expect("made");
    files.key = Authority::self_signed(&domain, now).expect("made").key;
    write_ca(&folder.path().join("cacerts"), &files).expect("written");
    let ca = format!("--ca-directory={}", path("cacerts"));
    run(&ca, &["cacerts", "ca-key.pem is not the key of ca-cert.pem"]);
    // A file where a folder should be.
    folder.write("file", "x");
    says(&["--identity-directory", &path("file")], &["--identity-directory", "file"]);
}
