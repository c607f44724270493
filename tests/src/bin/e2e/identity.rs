//! The cases of identity: who is believed, and what becomes of the root.
//!
//! **Invariant:** as `cases`; the namespace `identity` is made and removed here.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use identity::api::IstioCertificateRequest;
use identity::api::istio_certificate_service_client::IstioCertificateServiceClient;
use identity::client::{self, Certified, ClientError};
use identity::{PrivateKey, TrustBundle, pem, tls};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cluster::{Cluster, SYSTEM, until};
use crate::workload::Workload;

const NAMESPACE: &str = "identity";
const OWN: &str = "heddle-ca-secret";
const ROOTS: &str = "istio-ca-root-cert";

/// The roots as a workload of a namespace is told them.
fn roots(cluster: &Cluster, namespace: &str) -> Result<String> {
    let map = cluster.get(&["configmap", ROOTS, "-n", namespace])?;
    Ok(map["data"]["root-cert.pem"].as_str().context("roots")?.to_owned())
}

/// What every controller said so far.
fn controllers_log(cluster: &Cluster) -> Result<String> {
    let all = ["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller", "--tail=-1"];
    cluster.kubectl(&all)
}

/// A token of a ServiceAccount of the namespace.
fn token(cluster: &Cluster, account: &str, audience: &str) -> Result<String> {
    let audience = format!("--audience={audience}");
    let args = ["create", "token", account, "-n", NAMESPACE, &audience, "--duration=10m"];
    Ok(cluster.kubectl(&args)?.trim().to_owned())
}

/// A connection to the secure port, with a certificate if there is one.
async fn connect(
    cluster: &Cluster,
    address: &str,
    certificate: Option<(&Certified, &PrivateKey)>,
) -> Result<Channel> {
    let bundle = TrustBundle::from_pem(roots(cluster, NAMESPACE)?.as_bytes());
    let bundle = bundle.map_err(anyhow::Error::msg)?;
    let certificate = certificate
        .and_then(|(certified, key)| Some((pem::certificates(certified.chain.as_bytes())?, key)));
    Ok(client::connect(address, tls::client_config(&bundle, certificate)?).await?)
}

/// Ask for a certificate by a token.
async fn ask(channel: &Channel, token: &str) -> Result<(Certified, PrivateKey), ClientError> {
    let key = PrivateKey::generate().map_err(|error| ClientError::Request(error.to_string()))?;
    let csr = client::csr(&key, None)?;
    Ok((client::request(channel, Some(token), csr, None).await?, key))
}

/// What a token is refused with.
async fn refusal(channel: &Channel, token: &str) -> Result<Status> {
    match ask(channel, token).await {
        Err(ClientError::Refused(status)) => Ok(status),
        Err(error) => Err(error.into()),
        Ok(_) => anyhow::bail!("a certificate was issued"),
    }
}

/// Open a stream as this node, and ask for its clusters; the types of the first answer.
async fn open(channel: Channel, node: &str) -> Result<usize, Status> {
    let ask = DeltaDiscoveryRequest {
        node: Some(Node { id: node.to_owned(), ..Node::default() }),
        type_url: envoy_api::ResourceType::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // The stream stays open until it is answered.
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    let _ = requests.send(ask).await;
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(outgoing).await?.into_inner();
    let answer = timeout(Duration::from_secs(10), responses.message()).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
    answer.map(|a| a.resources.len()).ok_or_else(|| Status::aborted("the stream ended"))
}

pub(crate) async fn given_a_gateway_then_it_proved_who_it_is_and_nothing_is_served_in_plain_text(
    cluster: &Cluster,
) -> Result<()> {
    let said = controllers_log(cluster)?;
    let id = "spiffe://cluster.local/ns/heddle-system/sa/heddle-gateway";
    let issued = said.lines().find(|l| l.contains("certificate issued") && l.contains(id));
    let issued = issued.context("no certificate was issued to the gateway")?;
    ensure!(issued.contains("service account token"), "{issued}");
    ensure!(said.lines().any(|l| l.contains("proxy connected") && l.contains(id)), "{said}");
    ensure!(!said.contains("PRIVATE"), "a key is in the log");
    let pods = ["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller"];
    let pods = cluster.get(&pods)?;
    let pods = pods["items"].as_array().context("pods")?;
    ensure!(pods.len() == 2, "{} replicas", pods.len());
    for pod in pods {
        let address = pod["status"]["podIP"].as_str().context("an address")?;
        TcpStream::connect(format!("{address}:15012")).await.context("the secure port")?;
        let plain = TcpStream::connect(format!("{address}:15010")).await;
        ensure!(plain.is_err(), "{address}:15010 is open");
    }
    Ok(())
}

pub(crate) async fn given_two_replicas_that_started_at_once_then_they_have_one_root_in_one_secret(
    cluster: &Cluster,
) -> Result<()> {
    let pods = ["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller", "-o", "name"];
    let mut serials = Vec::new();
    for pod in cluster.kubectl(&[&["get"], &pods[..]].concat())?.lines() {
        let admin = cluster.admin_of(pod).await?;
        serials.push(admin.page("/debug/ca").await?["issuer"]["serial"].clone());
        let told = cluster.heddle(&["ca", "status", "--admin", &admin.address.to_string()])?;
        ensure!(told.contains("self-signed"), "{told}");
    }
    ensure!(serials.len() == 2 && serials[0] == serials[1], "{serials:?}");
    let secret = cluster.get(&["secret", OWN, "-n", SYSTEM])?;
    ensure!(secret["type"] == "heddle.io/ca-root", "{}", secret["type"]);
    // And every namespace is told of it, but for those of the system.
    let namespaces = cluster.get(&["namespaces"])?;
    for namespace in namespaces["items"].as_array().context("namespaces")? {
        let name = namespace["metadata"]["name"].as_str().context("a name")?;
        match name.starts_with("kube-") {
            true => ensure!(roots(cluster, name).is_err(), "{name} has roots"),
            false => ensure!(roots(cluster, name)? == roots(cluster, SYSTEM)?, "{name}"),
        }
    }
    Ok(())
}

pub(crate) async fn given_a_pod_with_a_projected_token_then_its_envoy_has_an_authenticated_stream(
    cluster: &Cluster,
) -> Result<()> {
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let began = Instant::now();
    until("the roots in a new namespace", async || roots(cluster, NAMESPACE).is_ok()).await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(5), "the roots came after {took:?}");
    let web = Workload::honest("web", NAMESPACE);
    web.start(cluster)?;
    until("a stream that is in sync", async || {
        let streams = cluster.heddle(&["status", "--kubernetes"]).unwrap_or_default();
        let line = streams.lines().find(|line| line.contains(&web.node()));
        line.is_some_and(|line| line.to_ascii_lowercase().contains("synced"))
    })
    .await?;
    let said = controllers_log(cluster)?;
    let connected = said.lines().find(|l| l.contains("proxy connected") && l.contains(&web.node()));
    let connected = connected.context("no word of the proxy")?;
    ensure!(connected.contains("spiffe://cluster.local/ns/identity/sa/web"), "{connected}");
    Ok(())
}

pub(crate) async fn given_a_pod_whose_token_is_for_somebody_else_then_it_gets_no_certificate(
    cluster: &Cluster,
) -> Result<()> {
    let audience = "https://kubernetes.default.svc.cluster.local";
    let stray = Workload { audience: Some(audience), ..Workload::honest("stray", NAMESPACE) };
    stray.start(cluster)?;
    until("the refusal", async || {
        let said = ["logs", "-n", NAMESPACE, "stray", "-c", "certificate"];
        let said = cluster.kubectl(&said).unwrap_or_default();
        said.contains("the token is not for the audience \"istio-ca\"")
    })
    .await?;
    let pod = cluster.get(&["pod", "stray", "-n", NAMESPACE])?;
    ensure!(pod["status"]["phase"] == "Pending", "{}", pod["status"]);
    Ok(())
}

pub(crate) async fn given_a_proxy_that_claims_another_namespace_then_it_is_denied(
    cluster: &Cluster,
) -> Result<()> {
    let liar = Workload { claims: "default", ..Workload::honest("liar", NAMESPACE) };
    liar.start(cluster)?;
    until("the refusal", async || {
        let said = controllers_log(cluster).unwrap_or_default();
        let refused = said.lines().find(|l| l.contains("denied") && l.contains(&liar.node()));
        refused
            .is_some_and(|l| l.contains("it claims the namespace") && l.contains("identity/sa/web"))
    })
    .await?;
    let streams = cluster.heddle(&["status", "--kubernetes"])?;
    ensure!(!streams.contains(&liar.node()), "{streams}");
    Ok(())
}

pub(crate) async fn given_a_client_with_a_token_then_it_is_what_the_api_server_says_until_it_is_revoked(
    cluster: &Cluster,
) -> Result<()> {
    let forward = cluster.forward(SYSTEM, "deployment/heddle", 15012).await?;
    let address = forward.address.to_string();
    cluster.kubectl(&["create", "serviceaccount", "client", "-n", NAMESPACE])?;
    let good = token(cluster, "client", "istio-ca")?;
    let channel = connect(cluster, &address, None).await?;
    let (certified, key) = ask(&channel, &good).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &certified.chain)?;
    let path = file.path().display().to_string();
    let san = ["x509", "-in", &path, "-noout", "-ext", "subjectAltName"];
    let san = cluster.run("openssl", &san, "")?;
    ensure!(san.contains("URI:spiffe://cluster.local/ns/identity/sa/client"), "{san}");

    // By its certificate it is served as itself, and as nothing else.
    let as_itself = connect(cluster, &address, Some((&certified, &key))).await?;
    let sidecar = |namespace: &str| {
        format!("sidecar~10.0.0.1~client.{namespace}~{namespace}.svc.cluster.local")
    };
    let clusters = open(as_itself.clone(), &sidecar(NAMESPACE)).await?;
    ensure!(clusters > 0, "no cluster was sent");
    let router = format!("router~10.0.0.1~client.{NAMESPACE}~{NAMESPACE}.svc.cluster.local");
    for node in [sidecar("default"), sidecar(SYSTEM), router] {
        let refused = open(as_itself.clone(), &node).await.err().context(node)?;
        ensure!(refused.code() == Code::PermissionDenied, "{refused}");
    }
    let nobody = open(channel.clone(), &sidecar(NAMESPACE)).await.err().context("served")?;
    ensure!(nobody.code() == Code::Unauthenticated, "{nobody}");

    // Tokens that are no proof.
    let other = token(cluster, "client", "vault")?;
    // In the midst of the signature: the last letter holds two bits of it, and may be `A` already.
    let (head, tail) = good.split_at(good.len() - 20);
    let letter = if tail.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{head}{letter}{}", &tail[1..]);
    for (bad, says) in [(&other, "audience"), (&tampered, "not signed")] {
        let refused = refusal(&channel, bad).await?;
        ensure!(refused.code() == Code::Unauthenticated, "{refused}");
        ensure!(refused.message().contains(says) && !refused.message().contains(bad), "{refused}");
    }

    // Its ServiceAccount goes: so does what its token proves, within the time that answers are kept.
    ask(&channel, &good).await?;
    cluster.kubectl(&["delete", "serviceaccount", "client", "-n", NAMESPACE])?;
    let began = Instant::now();
    let refused = loop {
        match ask(&channel, &good).await {
            Err(ClientError::Refused(refused)) => break refused,
            Err(error) => return Err(error.into()),
            Ok(_) => ensure!(began.elapsed() < Duration::from_secs(40), "still believed"),
        }
        sleep(Duration::from_millis(500)).await;
    };
    ensure!(refused.code() == Code::Unauthenticated, "{refused}");
    println!("        its token was refused after {:.1?}: {}", began.elapsed(), refused.message());
    Ok(())
}

pub(crate) async fn given_the_secret_of_the_root_when_it_is_deleted_then_the_same_root_is_back(
    cluster: &Cluster,
) -> Result<()> {
    let data = |field: &str| -> Result<String> {
        let secret = cluster.get(&["secret", OWN, "-n", SYSTEM])?;
        Ok(secret["data"][field].as_str().context("data")?.to_owned())
    };
    let (certificate, key) = (data("ca-cert.pem")?, data("ca-key.pem")?);
    cluster.kubectl(&["delete", "secret", OWN, "-n", SYSTEM])?;
    until("the Secret", async || data("ca-key.pem").is_ok()).await?;
    ensure!(data("ca-cert.pem")? == certificate && data("ca-key.pem")? == key, "another root");
    // The same for the roots that workloads are told.
    let before = roots(cluster, NAMESPACE)?;
    cluster.kubectl(&["delete", "configmap", ROOTS, "-n", NAMESPACE])?;
    until("the roots", async || roots(cluster, NAMESPACE).is_ok_and(|now| now == before)).await?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

pub(crate) async fn given_the_permissions_of_the_controller_then_they_reach_no_other_secret(
    cluster: &Cluster,
) -> Result<()> {
    let who = "--as=system:serviceaccount:heddle-system:heddle";
    // It answers no with an exit code of 1.
    let may = |args: &[&str]| {
        let all = [&["auth", "can-i"], args, &[who]].concat();
        cluster.kubectl(&all).is_ok_and(|answer| answer.trim() == "yes")
    };
    for (wanted, what) in [
        (true, &["watch", "secret/cacerts", "-n", SYSTEM][..]),
        (true, &["watch", "secret/heddle-ca-secret", "-n", SYSTEM]),
        (true, &["create", "secrets", "-n", SYSTEM]),
        (true, &["create", "tokenreviews.authentication.k8s.io"]),
        (true, &["create", "configmap/istio-ca-root-cert", "-n", "default"]),
        (false, &["list", "secrets", "-n", SYSTEM]),
        (false, &["get", "secret/other", "-n", SYSTEM]),
        (false, &["update", "secret/cacerts", "-n", SYSTEM]),
        (false, &["delete", "secret/heddle-ca-secret", "-n", SYSTEM]),
        (false, &["list", "secrets", "-n", "default"]),
        (false, &["create", "secrets", "-n", "default"]),
        (false, &["create", "configmaps", "-n", "default"]),
        (false, &["patch", "configmap/other", "-n", "default"]),
    ] {
        ensure!(may(what) == wanted, "{what:?}: {}", !wanted);
    }
    Ok(())
}

pub(crate) async fn given_a_ca_of_ones_own_then_it_signs_and_is_replaced_while_a_bad_one_is_refused(
    cluster: &Cluster,
) -> Result<()> {
    const PLACE: &str = "heddle-plugged";
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    // As README says.
    let init = |directory: &str| {
        let (root, directory) = (path("root"), path(directory));
        let secret = format!("{directory}.yaml");
        let place = ["--directory", &directory, "--secret", &secret, "--namespace", PLACE];
        cluster.heddle(&[&["ca", "init", "--root", &root], &place[..]].concat())?;
        cluster.kubectl(&["apply", "-f", &secret])
    };
    cluster.kubectl(&["create", "namespace", PLACE])?;
    init("first")?;
    let more = [
        "crds.install=false",
        "gateway.enabled=false",
        "replicas=1",
        "identity.rootConfigMap=plugged-root-cert",
        "identity.nodeAgents={heddle-plugged/agent}",
        "admin.remote=true",
    ];
    cluster.helm("helm", "install", PLACE, &more)?;
    let root = std::fs::read_to_string(folder.path().join("root/root-cert.pem"))?;
    until("the roots", async || {
        let map = cluster.get(&["configmap", "plugged-root-cert", "-n", "default"]);
        map.is_ok_and(|map| map["data"]["root-cert.pem"] == *root)
    })
    .await?;
    ensure!(roots(cluster, "default")? != root, "the other mesh's roots were overwritten");
    let admin = cluster.forward(PLACE, "deployment/heddle", 8080).await?;
    let issuer = async || admin.page("/debug/ca").await.map(|page| page["issuer"].clone());
    let first = issuer().await?;
    ensure!(first["selfSigned"] == false, "{first}");
    let own = cluster.get(&["secret", OWN, "-n", PLACE]);
    ensure!(own.is_err(), "a root was made beside it");

    // One whose key is another's is refused, and people are told.
    let text = |file: &str| std::fs::read_to_string(folder.path().join(file));
    let good = text("first.yaml")?;
    cluster.heddle(&["ca", "init", "--root", &path("evil"), "--directory", &path("other")])?;
    let key = text("other/ca-key.pem")?;
    let file = format!("--from-file=ca-key.pem={}", path("other/ca-key.pem"));
    ensure!(!good.contains(key.lines().nth(1).context("a key")?), "the same key");
    let from = |name: &str| format!("--from-file={name}={}", path(&format!("first/{name}")));
    let (a, b, c) = (from("ca-cert.pem"), from("root-cert.pem"), from("cert-chain.pem"));
    let dry = ["--dry-run=client", "-o", "yaml"];
    let create = ["create", "secret", "generic", "cacerts", "-n", PLACE, &file, &a, &b, &c];
    let bad = cluster.kubectl(&[&create[..], &dry].concat())?;
    cluster.apply(&bad)?;
    until("an event", async || {
        let said = cluster.kubectl(&["events", "-n", PLACE, "--for=secret/cacerts"]);
        said.is_ok_and(|said| said.contains("ca-key.pem is not the key of ca-cert.pem"))
    })
    .await?;
    ensure!(issuer().await? == first, "the bad one is in service");

    // Another one of the same root takes its place.
    init("second")?;
    until("the second CA", async || issuer().await.is_ok_and(|now| now != first)).await?;
    asks_for_the_pods_of_its_node(cluster, PLACE, &root).await?;
    looks_from_elsewhere(cluster, PLACE, &path("root/root-cert.pem")).await?;
    cluster.run("helm", &["uninstall", "heddle", "--namespace", PLACE, "--wait"], "")?;
    cluster.kubectl(&[
        "delete",
        "configmap",
        "-A",
        "-l",
        "heddle.io/control-plane=heddle-plugged",
    ])?;
    cluster.kubectl(&["delete", "namespace", PLACE, "--wait=false"]).map(drop)
}

pub(crate) async fn given_traffic_when_the_root_is_replaced_then_the_gateway_follows_and_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (root, directory, secret) = (path("root"), path("cacerts"), path("cacerts.yaml"));
    let init = ["ca", "init", "--root", &root, "--directory", &directory, "--secret", &secret];
    cluster.heddle(&init)?;
    // The logs of all replicas, one after the other: what came later says its time.
    let times = |what: &[&str]| -> Result<Vec<String>> {
        let said = controllers_log(cluster)?;
        let lines = said.lines().filter(|line| what.iter().all(|part| line.contains(part)));
        let lines = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines.filter_map(|line| Some(line["timestamp"].as_str()?.to_owned())).collect())
    };
    let replaced = || times(&["certificate authority replaced"]);
    let before = replaced()?.len();
    let began = Instant::now();
    cluster.kubectl(&["apply", "-f", &secret])?;
    // kubelet takes its time until the pod sees the new roots.
    let gateway = "spiffe://cluster.local/ns/heddle-system/sa/heddle-gateway";
    let follows = || -> Result<bool> {
        let (replaced, issued) = (replaced()?, times(&["certificate issued", gateway])?);
        Ok(replaced.len() > before && issued.iter().max() > replaced.iter().max())
    };
    while !follows()? {
        ensure!(began.elapsed() < Duration::from_secs(180), "the gateway did not follow");
        sleep(Duration::from_secs(1)).await;
    }
    println!("        the gateway had a certificate of the new CA after {:.0?}", began.elapsed());
    // Its open stream is of before; the next one is to controllers who know the new root alone.
    cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment/heddle"])?;
    cluster.rolled_out(SYSTEM, "heddle")?;
    until("the gateway", async || {
        let streams = cluster.heddle(&["status", "--kubernetes"]).unwrap_or_default();
        let line = streams.lines().find(|line| line.contains("heddle-gateway-"));
        line.is_some_and(|line| line.to_ascii_lowercase().contains("synced"))
    })
    .await?;
    traffic.stop().await.map(drop)
}

/// A node agent gets certificates for pods that are on its node, and for no others.
async fn asks_for_the_pods_of_its_node(cluster: &Cluster, place: &str, root: &str) -> Result<()> {
    cluster.kubectl(&["create", "serviceaccount", "agent", "-n", place])?;
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: agent, namespace: {place}}}, spec: \
         {{serviceAccountName: agent, terminationGracePeriodSeconds: 1, containers: \
         [{{name: a, image: 'hashicorp/http-echo:1.0.0', args: ['-text=x']}}]}}}}"
    );
    cluster.apply(&pod)?;
    let ready = ["wait", "--for=condition=Ready", "pod/agent", "-n", place, "--timeout=30s"];
    cluster.kubectl(&ready)?;
    let token = |bound: &[&str]| {
        let token = ["create", "token", "agent", "-n", place, "--audience=istio-ca"];
        Ok::<_, anyhow::Error>(cluster.kubectl(&[&token[..], bound].concat())?.trim().to_owned())
    };
    let of_pod = token(&["--bound-object-kind=Pod", "--bound-object-name=agent"])?;
    let of_account = token(&[])?;
    let forward = cluster.forward(place, "deployment/heddle", 15012).await?;
    let bundle = TrustBundle::from_pem(root.as_bytes()).map_err(anyhow::Error::msg)?;
    let channel = tls::client_config(&bundle, None)?;
    let channel = client::connect(&forward.address.to_string(), channel).await?;
    let ask = async |token: &str, id: &str| -> Result<(), Status> {
        let key = PrivateKey::generate().map_err(|error| Status::internal(error.to_string()))?;
        let csr = client::csr(&key, None).map_err(|error| Status::internal(error.to_string()))?;
        let who = serde_json::Map::from_iter([("ImpersonatedIdentity".to_owned(), id.into())]);
        let metadata = Some(envoy_api::json::to_struct(&who));
        let ask = IstioCertificateRequest { csr, validity_duration: 0, metadata };
        let mut request = tonic::Request::new(ask);
        let bearer = format!("Bearer {token}").parse();
        let bearer = bearer.map_err(|_| Status::internal("the token is no text"))?;
        request.metadata_mut().insert("authorization", bearer);
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        client.create_certificate(request).await.map(drop)
    };
    let reviews = "spiffe://cluster.local/ns/default/sa/default";
    ask(&of_pod, reviews).await?;
    for (token, id, says) in [
        (&of_pod, "spiffe://cluster.local/ns/default/sa/admin", "no pod on node node"),
        (&of_account, reviews, "names no node"),
    ] {
        let refused = ask(token, id).await.err().with_context(|| format!("{id} was issued"))?;
        let right = refused.code() == Code::PermissionDenied && refused.message().contains(says);
        ensure!(right, "{refused}");
    }
    Ok(())
}

/// A ServiceAccount that may get admin pages gets them over TLS, and nobody else does.
async fn looks_from_elsewhere(cluster: &Cluster, place: &str, roots: &str) -> Result<()> {
    let pages = "--non-resource-url=/debug/*";
    cluster.kubectl(&["create", "clusterrole", "look-at-heddle", "--verb=get", pages])?;
    let account = format!("--serviceaccount={place}:viewer");
    let role = "--clusterrole=look-at-heddle";
    cluster.kubectl(&["create", "clusterrolebinding", "look-at-heddle", role, &account])?;
    cluster.kubectl(&["create", "serviceaccount", "viewer", "-n", place])?;
    let forward = cluster.forward(place, "service/heddle-admin", 15013).await?;
    // What curl says, and the status on a line of its own.
    let curl = |path: &str, account: Option<&str>, more: &[&str]| -> Result<String> {
        let url = format!("https://127.0.0.1:{}{path}", forward.address.port());
        let status = ["-sS", "--max-time", "10", "-w", "\n%{http_code}", "--cacert", roots, &url];
        let mut args = [&status[..], more].concat();
        let header;
        if let Some(account) = account {
            let token = ["create", "token", account, "-n", place, "--audience=istio-ca"];
            header = format!("Authorization: Bearer {}", cluster.kubectl(&token)?.trim());
            args.extend(["-H", &header]);
        }
        cluster.run("curl", &args, "")
    };
    let page = curl("/debug/ca", Some("viewer"), &[])?;
    ensure!(page.contains("issuer") && page.ends_with("\n200"), "{page}");
    for (path, account, more, status) in [
        ("/debug/ca", Some("agent"), &[][..], "403"),
        ("/debug/logging?level=debug", Some("viewer"), &["-X", "POST"], "403"),
        ("/debug/ca", None, &[], "401"),
    ] {
        let refused = curl(path, account, more)?;
        ensure!(refused.ends_with(status), "{path} {account:?}: {refused}");
    }
    Ok(())
}
