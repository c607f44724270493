//! Sidecars: pods that ask for one, as people label and annotate them.
//!
//! **Invariant:** a case leaves namespace `meshed` as the next expects it: client and both versions
//! of the server ready.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use house::statistics::is_plausible;
use serde_json::Value;
use tokio::time::sleep;

use crate::cluster::{Cluster, SYSTEM, until};
use crate::inside::Inside;
use crate::mutual_tls::counter_in;

/// The namespace of `tests/cluster/meshed.yaml`, and the server's name in it.
pub(crate) const MESHED: &str = "meshed";
pub(crate) const HOST: &str = "server.meshed.svc.cluster.local";
const DEPLOYMENTS: [&str; 3] = ["client", "server-v1", "server-v2"];

/// The name of a pod that runs, by label.
pub(crate) fn pod_of(cluster: &Cluster, namespace: &str, label: &str) -> Result<String> {
    let first = cluster.names(namespace, label)?.into_iter().next();
    first.with_context(|| format!("a pod {label} in {namespace}"))
}

/// The client's network.
pub(crate) fn client(cluster: &Cluster) -> Result<Inside> {
    Inside::of(cluster, MESHED, &pod_of(cluster, MESHED, "app=client")?)
}

/// Where the server's Service is.
pub(crate) fn server(cluster: &Cluster) -> Result<SocketAddr> {
    let service = cluster.get(&["service", "server", "-n", MESHED])?;
    let address = service["spec"]["clusterIP"].as_str().context("an address")?;
    Ok(format!("{address}:80").parse()?)
}

/// Names of the containers that were injected.
fn sidecar(pod: &Value) -> Vec<&str> {
    let of = |list: &str| pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = of("initContainers").iter().chain(of("containers"));
    all.filter_map(|c| c["name"].as_str().filter(|n| n.starts_with("heddle-"))).collect()
}

/// A pod whose one container stays, with more in metadata and spec.
pub(crate) fn pod(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, {metadata}}}, \
         spec: {{terminationGracePeriodSeconds: 0, {spec} containers: [{{name: app, \
         image: 'heddle/backend:test', args: ['0.0.0.0:8082', {name}]}}]}}}}"
    )
}

pub(crate) async fn given_a_labelled_namespace_when_pods_are_created_then_each_has_a_ready_sidecar(
    cluster: &Cluster,
) -> Result<()> {
    cluster.kubectl(&["apply", "-f", "tests/cluster/meshed.yaml"])?;
    let began = Instant::now();
    for deployment in DEPLOYMENTS {
        cluster.rolled_out(MESHED, deployment)?;
    }
    println!("        client and server were ready after {:.1?}", began.elapsed());
    let pods = cluster.get(&["pods", "-n", MESHED])?;
    for pod in pods["items"].as_array().context("pods")? {
        ensure!(sidecar(pod) == ["heddle-init", "heddle-proxy"], "{pod}");
        let label = &pod["metadata"]["labels"]["security.istio.io/tlsMode"];
        ensure!(label == "istio", "{pod}");
    }
    let (inside, address) = (client(cluster)?, server(cluster)?);
    until("an answer by way of the sidecars", async || {
        inside.get(cluster, address, HOST, "/").is_ok_and(|(status, _)| status == 200)
    })
    .await?;
    let (status, answer) = inside.get(cluster, address, "server", "/a")?;
    ensure!(status == 200 && answer["path"] == "/a", "{status} {answer}");
    // It was captured: its own Envoy counts the attempts.
    ensure!(answer["attempt"] == "1", "{answer}");
    let table = cluster.heddle(&["status", "--kubernetes"])?;
    let rows = table.lines().filter(|line| line.contains(".meshed"));
    ensure!(rows.count() == 3, "{table}");
    Ok(())
}

pub(crate) async fn given_labels_and_annotations_when_pods_are_created_then_those_that_ask_have_a_sidecar(
    cluster: &Cluster,
) -> Result<()> {
    const OTHER: &str = "unlabelled";
    const ANNOTATED: &str = "annotated";
    for namespace in [OTHER, ANNOTATED] {
        cluster.kubectl(&["create", "namespace", namespace])?;
    }
    cluster.kubectl(&["annotate", "namespace", ANNOTATED, "linkerd.io/inject=enabled"])?;
    until("the webhook of annotated namespaces", async || {
        let name = "heddle-heddle-system-annotated";
        let found = cluster.get(&["mutatingwebhookconfiguration", name]).unwrap_or_default();
        found["webhooks"].to_string().contains(ANNOTATED)
    })
    .await?;
    for (namespace, name, metadata, spec, injected) in [
        (MESHED, "no-by-label", "labels: {sidecar.istio.io/inject: 'false'}", "", false),
        (MESHED, "no-by-note", "annotations: {sidecar.istio.io/inject: 'false'}", "", false),
        (MESHED, "of-the-node", "", "hostNetwork: true,", false),
        (MESHED, "held", "annotations: {sidecar.istio.io/nativeSidecar: 'false'}", "", true),
        (OTHER, "plain", "", "", false),
        (OTHER, "yes-by-label", "labels: {sidecar.istio.io/inject: 'true'}", "", true),
        (OTHER, "yes-by-note", "annotations: {linkerd.io/inject: enabled}", "", true),
        (OTHER, "by-revision", "labels: {istio.io/rev: default}", "", true),
        (ANNOTATED, "annotated", "", "", true),
        (SYSTEM, "of-the-system", "labels: {sidecar.istio.io/inject: 'true'}", "", false),
    ] {
        let input = pod(name, metadata, spec);
        cluster.run("kubectl", &["apply", "-n", namespace, "-f", "-"], &input)?;
        let created = cluster.get(&["pod", name, "-n", namespace])?;
        ensure!(sidecar(&created).is_empty() != injected, "{name}: {created:#}");
        let ready = ["wait", "--for=condition=Ready", "-n", namespace, "--timeout=60s"];
        cluster.kubectl(&[&ready[..], &[&format!("pod/{name}")]].concat())?;
        cluster.kubectl(&["delete", "pod", name, "-n", namespace, "--wait=false"])?;
    }
    cluster.kubectl(&["delete", "namespace", OTHER, ANNOTATED, "--wait=false"]).map(drop)
}

pub(crate) async fn given_a_malformed_annotation_then_the_pod_is_refused_and_it_is_named(
    cluster: &Cluster,
) -> Result<()> {
    let mut input = "annotations: {sidecar.istio.io/proxyCPU: lots}".to_owned();
    for says in ["annotation sidecar.istio.io/proxyCPU: \"lots\"", "use one such as 100m"] {
        let refused =
            cluster.run("kubectl", &["create", "-n", MESHED, "-f", "-"], &pod("bad", &input, ""));
        let why = refused.err().context("the pod was taken")?.to_string();
        ensure!(why.contains(says), "{why}");
    }
    // In a Deployment its ReplicaSet tells why there are no pods.
    input = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {selector: \
             {matchLabels: {app: bad}}, template: {metadata: {labels: {app: bad}, annotations: \
             {traffic.sidecar.istio.io/excludeOutboundPorts: http}}, spec: {containers: \
             [{name: app, image: 'heddle/backend:test'}]}}}}"
        .to_owned();
    cluster.run("kubectl", &["create", "-n", MESHED, "-f", "-"], &input)?;
    until("an event that names the annotation", async || {
        let events = cluster.kubectl(&["get", "events", "-n", MESHED]).unwrap_or_default();
        events.contains("annotation traffic.sidecar.istio.io/excludeOutboundPorts: \"http\"")
    })
    .await?;
    cluster.kubectl(&["delete", "deployment", "bad", "-n", MESHED]).map(drop)
}

pub(crate) async fn given_probes_of_the_app_then_they_are_asked_through_the_agent_and_hide_nothing(
    cluster: &Cluster,
) -> Result<()> {
    let name = pod_of(cluster, MESHED, "app=server,version=v1")?;
    let server = cluster.get(&["pod", &name, "-n", MESHED])?;
    let app = &server["spec"]["containers"][0];
    ensure!(app["livenessProbe"]["httpGet"]["port"] == 15020, "{app}");
    ensure!(app["readinessProbe"]["tcpSocket"].is_null(), "{app}");
    ensure!(server["status"]["containerStatuses"][0]["restartCount"] == 0, "{server:#}");
    // An app that does not answer is not ready, however well its sidecar is.
    let mut failing: Value = serde_yaml::from_str(&pod("failing", "", ""))?;
    failing["spec"]["containers"][0]["readinessProbe"] =
        serde_json::json!({"httpGet": {"path": "/", "port": 9}, "periodSeconds": 1});
    let input = failing.to_string();
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], &input)?;
    until("the sidecar of an app that fails", async || {
        let found = cluster.get(&["pod", "failing", "-n", MESHED]).unwrap_or_default();
        let statuses = found["status"]["initContainerStatuses"].as_array().cloned();
        statuses
            .unwrap_or_default()
            .iter()
            .any(|s| s["name"] == "heddle-proxy" && s["ready"] == true)
    })
    .await?;
    sleep(Duration::from_secs(4)).await;
    let found = cluster.get(&["pod", "failing", "-n", MESHED])?;
    ensure!(found["status"]["containerStatuses"][0]["ready"] == false, "{found:#}");
    cluster.kubectl(&["delete", "pod", "failing", "-n", MESHED, "--wait=false"]).map(drop)
}

pub(crate) async fn given_a_job_then_its_sidecar_lets_it_complete(cluster: &Cluster) -> Result<()> {
    // It needs the network from its first moment on, by an init container too.
    let ask = format!("command: [/usr/local/bin/heddle, wait, 'http://{HOST}:80/']");
    let container = |name: &str| format!("{{name: {name}, image: 'heddle/proxy:test', {ask}}}");
    let job = format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: report}}, spec: {{backoffLimit: 0, \
         template: {{spec: {{restartPolicy: Never, initContainers: [{}], containers: [{}]}}}}}}}}",
        container("first"),
        container("report")
    );
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], &job)?;
    let done = ["wait", "--for=condition=Complete", "job/report", "-n", MESHED, "--timeout=60s"];
    cluster.kubectl(&done)?;
    cluster.kubectl(&["delete", "job", "report", "-n", MESHED, "--wait=false"]).map(drop)
}

pub(crate) async fn given_pods_from_before_the_label_then_they_are_told_of(
    cluster: &Cluster,
) -> Result<()> {
    const LATE: &str = "late";
    cluster.kubectl(&["create", "namespace", LATE])?;
    cluster.run("kubectl", &["apply", "-n", LATE, "-f", "-"], &pod("early", "", ""))?;
    cluster.kubectl(&["label", "namespace", LATE, "istio-injection=enabled"])?;
    until("an event of the pod", async || {
        let said = cluster.kubectl(&["get", "events", "-n", LATE]).unwrap_or_default();
        said.contains("InjectionMissed") && said.contains("restart it")
    })
    .await?;
    let page = cluster.metrics().await?;
    ensure!(page.contains("heddle_injection_missed_pods 1"), "{page}");
    ensure!(page.contains("sidecar_injection_success_total"), "{page}");
    cluster.kubectl(&["delete", "namespace", LATE, "--wait=false"]).map(drop)
}

pub(crate) async fn given_files_then_heddle_inject_gives_what_the_webhook_gives(
    cluster: &Cluster,
) -> Result<()> {
    let file = "tests/cluster/meshed.yaml";
    let injected = cluster.heddle(&["inject", "-f", file, "--kubernetes"])?;
    for document in injected.split("---\n") {
        let offline: Value = serde_yaml::from_str(document)?;
        if offline["kind"] != "Deployment" {
            continue;
        }
        let label = offline["spec"]["template"]["metadata"]["labels"]["version"].as_str();
        let label = label.map_or("app=client".to_owned(), |v| format!("app=server,version={v}"));
        let name = pod_of(cluster, MESHED, &label)?;
        let live = cluster.get(&["pod", &name, "-n", MESHED])?;
        let template = &offline["spec"]["template"];
        for part in ["labels", "annotations"] {
            for (key, value) in template["metadata"][part].as_object().context("a map")? {
                ensure!(live["metadata"][part][key] == *value, "{key} of {name}: {value}");
            }
        }
        holds(&template["spec"], &live["spec"]).with_context(|| format!("of {name}"))?;
    }
    Ok(())
}

/// Whether a value holds another, but for what the API server adds.
fn holds(wanted: &Value, found: &Value) -> Result<()> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(_)) => {
            wanted.iter().try_for_each(|(k, v)| holds(v, &found[k]).with_context(|| k.clone()))
        }
        // The API server puts items of its own between.
        (Value::Array(wanted), Value::Array(all)) => {
            wanted.iter().zip(0..).try_for_each(|(w, at)| {
                let same = |f: &&Value| !w["name"].is_null() && f["name"] == w["name"];
                let found = all.iter().find(same).or(all.get(at)).context("an item is missing")?;
                holds(w, found)
            })
        }
        _ => {
            ensure!(wanted == found, "{found}, not {wanted}");
            Ok(())
        }
    }
}

pub(crate) async fn given_an_envoy_that_is_killed_then_it_comes_back(
    cluster: &Cluster,
) -> Result<()> {
    let name = pod_of(cluster, MESHED, "app=client")?;
    let inside = Inside::of(cluster, MESHED, &name)?;
    let killed = inside.kill(cluster, "envoy")?;
    ensure!(killed == 1, "{killed} processes were killed");
    let address = server(cluster)?;
    until("the next Envoy", async || {
        inside.get(cluster, address, HOST, "/").is_ok_and(|(status, _)| status == 200)
    })
    .await?;
    // The agent started it: the container is the same.
    let found = cluster.get(&["pod", &name, "-n", MESHED])?;
    let statuses = found["status"]["initContainerStatuses"].to_string();
    ensure!(!statuses.contains("\"restartCount\":1"), "{statuses}");
    Ok(())
}

pub(crate) async fn given_stateful_pods_then_they_are_reached_by_name(
    cluster: &Cluster,
) -> Result<()> {
    let set = "{apiVersion: v1, kind: Service, metadata: {name: store}, spec: {clusterIP: None, \
               selector: {app: store}, ports: [{name: http, port: 8080}]}}\n---\n\
               {apiVersion: apps/v1, kind: StatefulSet, metadata: {name: store}, spec: {replicas: 2, \
               serviceName: store, podManagementPolicy: Parallel, selector: {matchLabels: \
               {app: store}}, template: {metadata: {labels: {app: store}}, spec: \
               {terminationGracePeriodSeconds: 1, containers: [{name: store, \
               image: 'heddle/backend:test', args: ['0.0.0.0:8080', $(NAME)], env: [{name: NAME, \
               valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]}}}}";
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], set)?;
    cluster.kubectl(&["rollout", "status", "statefulset/store", "-n", MESHED, "--timeout=90s"])?;
    let inside = client(cluster)?;
    for name in ["store-0", "store-1"] {
        let found = cluster.get(&["pod", name, "-n", MESHED])?;
        let address = found["status"]["podIP"].as_str().context("an address")?;
        let address: SocketAddr = format!("{address}:8080").parse()?;
        let host = format!("{name}.store.{MESHED}.svc.cluster.local:8080");
        until("an answer of the pod by its name", async || {
            let answer = inside.get(cluster, address, &host, "/");
            answer.is_ok_and(|(status, body)| status == 200 && body["backend"] == name)
        })
        .await?;
    }
    cluster.kubectl(&["delete", "service,statefulset", "store", "-n", MESHED]).map(drop)
}

pub(crate) async fn given_rules_of_the_mesh_then_sidecars_split_90_to_10(
    cluster: &Cluster,
) -> Result<()> {
    let rules = format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: server}}, spec: \
         {{host: {HOST}, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: \
         {{version: v2}}}}]}}}}\n---\n{{apiVersion: networking.istio.io/v1, kind: VirtualService, \
         metadata: {{name: server}}, spec: {{hosts: [{HOST}], http: [{{route: [{{destination: {{host: \
         {HOST}, subset: v1}}, weight: 90}}, {{destination: {{host: {HOST}, subset: v2}}, weight: \
         10}}]}}]}}}}"
    );
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], &rules)?;
    let (inside, address) = (client(cluster)?, server(cluster)?);
    let split = async || -> Result<(u64, u64)> {
        let traffic = inside.traffic(address, HOST)?;
        sleep(Duration::from_secs(3)).await;
        let counts = traffic.stop()?;
        Ok((counts.of("v2"), counts.good()?))
    };
    // Before the rules are there both get half.
    let mut seen = (0, 0);
    for _ in 0..5 {
        seen = split().await?;
        if is_plausible(seen.0, seen.1, 0.1) {
            break;
        }
    }
    let (v2, total) = seen;
    ensure!(is_plausible(v2, total, 0.1), "{v2} of {total} requests went to v2, not a tenth");
    println!("        {v2} of {total} requests went to v2");
    let (_, answer) = inside.get(cluster, address, HOST, "/")?;
    ensure!(answer["client"].as_str().is_some_and(|c| c.contains("sa/client")), "{answer}");
    cluster.kubectl(&["delete", "virtualservice,destinationrule", "server", "-n", MESHED]).map(drop)
}

pub(crate) async fn given_the_sample_when_its_namespace_is_labelled_and_its_pods_restarted_then_the_gateway_speaks_mutual_tls_to_it(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    let restart = || -> Result<()> {
        cluster.kubectl(&["rollout", "restart", "deployment", "reviews-v1", "reviews-v2"])?;
        cluster.rolled_out("default", "reviews-v1")?;
        cluster.rolled_out("default", "reviews-v2")
    };
    cluster.kubectl(&["label", "namespace", "default", "istio-injection=enabled"])?;
    restart()?;
    // Pods that are going still answer for a while.
    sleep(Duration::from_secs(12)).await;
    traffic.take().good()?;
    for pod in cluster.get(&["pods", "-l", "app=reviews"])?["items"].as_array().context("pods")? {
        ensure!(sidecar(pod) == ["heddle-init", "heddle-proxy"], "{pod:#}");
    }
    let first = pod_of(cluster, "default", "app=reviews,version=v1")?;
    let handshake = |name: &str| name.contains("15006") && name.ends_with(".ssl.handshake");
    let handshakes = counter_in(cluster, "default", &first, handshake).await?;
    ensure!(handshakes > 0, "no mutual TLS");
    cluster.kubectl(&["apply", "-f", "manifests/samples/mutual-tls"])?;
    let stranger = pod("stranger", "labels: {sidecar.istio.io/inject: 'false'}", "");
    cluster.run("kubectl", &["apply", "-f", "-"], &stranger)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/stranger", "--timeout=30s"])?;
    let stranger = Inside::of(cluster, "default", "stranger")?;
    let service = cluster.get(&["service", "reviews"])?;
    let address = service["spec"]["clusterIP"].as_str().context("an address")?;
    let address: SocketAddr = format!("{address}:9080").parse()?;
    until("a stranger to be refused", async || {
        stranger.get(cluster, address, "reviews", "/").is_err()
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    traffic.take().good()?;
    cluster.kubectl(&["delete", "-f", "manifests/samples/mutual-tls"])?;
    cluster.kubectl(&["delete", "pod", "stranger", "--wait=false"])?;
    cluster.kubectl(&["label", "namespace", "default", "istio-injection-"])?;
    restart()?;
    sleep(Duration::from_secs(12)).await;
    let total = traffic.stop().await?;
    println!("        {total} requests, 0 failed; {handshakes} handshakes");
    Ok(())
}

/// Wait until every webhook has the roots of the mesh, so that the API server believes it.
pub(crate) async fn believed(cluster: &Cluster) -> Result<()> {
    until("the roots in the webhooks", async || {
        let roots = cluster.get(&["configmap", "istio-ca-root-cert", "-n", MESHED]);
        let roots = roots.unwrap_or_default()["data"]["root-cert.pem"].clone();
        let name = "heddle-heddle-system";
        let found = cluster.get(&["mutatingwebhookconfiguration", name]).unwrap_or_default();
        let webhooks = found["webhooks"].as_array().cloned().unwrap_or_default();
        let bundle = |w: &Value| w["clientConfig"]["caBundle"].as_str().map(str::to_owned);
        let bundles: BTreeSet<_> = webhooks.iter().map(bundle).collect();
        let decode = |text: &str| cluster.run("base64", &["-d"], text);
        bundles.len() == 1 && bundles.iter().flatten().all(|b| decode(b).is_ok_and(|d| roots == d))
    })
    .await
}

/// Create a pod that asks for a sidecar, and gets it.
pub(crate) fn asks(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], &pod(name, "", ""))?;
    let created = cluster.get(&["pod", name, "-n", MESHED])?;
    ensure!(sidecar(&created) == ["heddle-init", "heddle-proxy"], "{created:#}");
    Ok(())
}

pub(crate) async fn given_another_root_when_a_pod_asks_then_the_api_server_still_believes_the_webhook(
    cluster: &Cluster,
) -> Result<()> {
    believed(cluster).await?;
    asks(cluster, "later")?;
    let ready = ["wait", "--for=condition=Ready", "pod/later", "-n", MESHED, "--timeout=60s"];
    cluster.kubectl(&ready)?;
    cluster.kubectl(&["delete", "pod", "later", "-n", MESHED, "--wait=false"]).map(drop)
}
