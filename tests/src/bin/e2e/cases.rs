//! The cases: what a user does, and what must come of it.
//!
//! **Invariant:** a case leaves the cluster as the next expects it: Heddle installed, the sample
//! applied.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use house::client::Client;
use house::load::{Traffic, ask};
use house::statistics::is_plausible;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::sleep;

use crate::cluster::{Cluster, EDGE, SYSTEM, until};
use crate::identity::*;
use crate::injection::*;
use crate::mutual_tls::*;
use crate::under_load::*;

type Case = for<'a> fn(&'a Cluster) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// The cases, in order.
        pub(crate) const ALL: &[(&str, Case)] =
            &[$((stringify!($name), |cluster| Box::pin($name(cluster)))),*];
    };
}

cases![
    given_a_cluster_when_the_chart_is_installed_then_all_is_ready_within_a_minute,
    given_the_sample_when_it_is_applied_then_requests_are_split_90_to_10,
    given_traffic_when_the_weights_are_stepped_then_no_request_fails,
    given_a_gateway_then_it_is_synced_and_its_routes_say_where_they_come_from,
    given_a_gateway_then_it_proved_who_it_is_and_nothing_is_served_in_plain_text,
    given_two_replicas_that_started_at_once_then_they_have_one_root_in_one_secret,
    given_the_permissions_of_the_controller_then_they_reach_no_other_secret,
    given_a_pod_with_a_projected_token_then_its_envoy_has_an_authenticated_stream,
    given_a_pod_whose_token_is_for_somebody_else_then_it_gets_no_certificate,
    given_a_proxy_that_claims_another_namespace_then_it_is_denied,
    given_a_client_with_a_token_then_it_is_what_the_api_server_says_until_it_is_revoked,
    given_the_secret_of_the_root_when_it_is_deleted_then_the_same_root_is_back,
    given_a_ca_of_ones_own_then_it_signs_and_is_replaced_while_a_bad_one_is_refused,
    given_a_field_that_does_not_exist_then_the_api_server_refuses_it_by_name,
    given_every_field_of_the_api_then_the_api_server_keeps_it_as_it_is,
    given_rules_that_are_wrong_then_their_status_says_so_and_they_harm_only_themselves,
    given_the_yaml_of_other_peoples_tutorials_then_it_is_accepted_as_it_is,
    given_a_labelled_namespace_when_pods_are_created_then_each_has_a_ready_sidecar,
    given_two_sidecars_then_every_request_is_mutual_tls_and_each_knows_the_other,
    given_requests_of_the_mesh_then_who_reads_packets_of_a_pod_reads_none_of_them,
    given_a_server_then_the_certificate_that_it_presents_is_that_of_its_account,
    given_a_pod_then_its_app_gets_no_key,
    given_strict_mutual_tls_then_an_unmeshed_pod_is_refused_and_permissive_serves_it,
    given_rules_of_the_mesh_then_sidecars_split_90_to_10,
    given_the_sample_when_its_namespace_is_labelled_and_its_pods_restarted_then_the_gateway_speaks_mutual_tls_to_it,
    given_labels_and_annotations_when_pods_are_created_then_those_that_ask_have_a_sidecar,
    given_a_malformed_annotation_then_the_pod_is_refused_and_it_is_named,
    given_probes_of_the_app_then_they_are_asked_through_the_agent_and_hide_nothing,
    given_a_job_then_its_sidecar_lets_it_complete,
    given_pods_from_before_the_label_then_they_are_told_of,
    given_files_then_heddle_inject_gives_what_the_webhook_gives,
    given_traffic_in_the_mesh_when_the_server_is_rolled_then_no_request_fails,
    given_certificates_of_ten_seconds_when_they_are_renewed_and_clients_are_rolled_then_no_request_fails,
    given_an_envoy_that_is_killed_then_it_comes_back,
    given_stateful_pods_then_they_are_reached_by_name,
    given_traffic_in_the_mesh_when_the_controller_is_away_then_pods_that_ask_wait_and_others_do_not,
    given_traffic_when_the_app_is_scaled_and_rolled_then_no_request_fails,
    given_traffic_when_the_leader_is_killed_then_another_leads_and_no_request_fails,
    given_traffic_when_the_api_server_is_away_for_half_a_minute_then_no_request_fails,
    given_traffic_when_the_chart_is_upgraded_then_no_request_fails_and_the_settings_are_in_force,
    given_helm_3_when_it_installs_upgrades_rolls_back_and_uninstalls_then_each_works,
    given_a_namespace_that_is_deleted_then_its_objects_are_gone,
    given_traffic_when_the_root_is_replaced_then_the_gateway_follows_and_no_request_fails,
    given_another_root_when_a_pod_asks_then_the_api_server_still_believes_the_webhook,
    given_no_helm_then_heddle_install_prints_what_the_chart_holds,
    given_an_uninstalled_chart_then_nothing_but_the_crds_and_the_root_is_left,
];

/// Rules of the sample with other weights.
fn set_weights(cluster: &Cluster, v1: u32, v2: u32) -> Result<()> {
    let weight = |index: u32, weight: u32| {
        format!(r#"{{"op":"replace","path":"/spec/http/0/route/{index}/weight","value":{weight}}}"#)
    };
    let patch = format!("[{},{}]", weight(0, v1), weight(1, v2));
    cluster.kubectl(&["patch", "virtualservice", "reviews", "--type=json", "-p", &patch]).map(drop)
}

/// Wait until only this version answers; how long that took.
async fn only(traffic: &Traffic, version: &str) -> Result<Duration> {
    let began = Instant::now();
    traffic.take().good()?;
    loop {
        sleep(Duration::from_millis(100)).await;
        let counts = traffic.take();
        let total = counts.good()?;
        if total > 0 && total == counts.of(version) {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < Duration::from_secs(30), "not only {version}: {counts:?}");
    }
}

async fn given_a_cluster_when_the_chart_is_installed_then_all_is_ready_within_a_minute(
    cluster: &Cluster,
) -> Result<()> {
    cluster.helm("helm", "install", SYSTEM, &[])?;
    cluster.run("helm", &["test", "heddle", "--namespace", SYSTEM], "").map(drop)
}

async fn given_the_sample_when_it_is_applied_then_requests_are_split_90_to_10(
    cluster: &Cluster,
) -> Result<()> {
    cluster.kubectl(&["apply", "-f", "manifests/samples/canary"])?;
    cluster.rolled_out("default", "reviews-v1")?;
    cluster.rolled_out("default", "reviews-v2")?;
    let gateway = cluster.gateway()?;
    until("an answer", async || ask(&mut Client::new(gateway), EDGE).await.is_ok()).await?;
    const REQUESTS: u64 = 1000;
    let (mut client, mut v2) = (Client::new(gateway), 0);
    for _ in 0..REQUESTS {
        v2 += u64::from(ask(&mut client, EDGE).await? == "v2");
    }
    ensure!(is_plausible(v2, REQUESTS, 0.1), "{v2} of {REQUESTS} requests went to v2, not a tenth");
    Ok(())
}

async fn given_traffic_when_the_weights_are_stepped_then_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    set_weights(cluster, 50, 50)?;
    sleep(Duration::from_millis(500)).await;
    traffic.take().good()?;
    sleep(Duration::from_secs(2)).await;
    let counts = traffic.take();
    let total = counts.good()?;
    ensure!(is_plausible(counts.of("v2"), total, 0.5), "not one half: {counts:?}");
    set_weights(cluster, 0, 100)?;
    let took = only(&traffic, "v2").await?;
    ensure!(took < Duration::from_secs(2), "it took {took:?}");
    traffic.stop().await?;
    set_weights(cluster, 90, 10)
}

async fn given_a_gateway_then_it_is_synced_and_its_routes_say_where_they_come_from(
    cluster: &Cluster,
) -> Result<()> {
    let table = cluster.heddle(&["status", "--kubernetes"])?;
    ensure!(table.contains("CONTROLLER") && table.contains("heddle-gateway-"), "{table}");
    let streams = cluster.heddle(&["status", "--kubernetes", "-n", SYSTEM, "-o", "json"])?;
    let streams: Value = serde_json::from_str(&streams)?;
    // The gateway is connected to one of the replicas.
    let stream = &streams[0];
    ensure!(stream["synced"] == true && streams[1].is_null(), "{streams}");
    let text = |key: &str| stream[key].as_str().with_context(|| format!("{key} in {stream}"));
    let admin = cluster.admin_of(&format!("pod/{}", text("controller")?)).await?;
    let dump = admin.page(&format!("/debug/config_dump?proxyID={}", text("proxy")?)).await?;
    ensure!(dump.to_string().contains("VirtualService default/reviews"), "{dump}");
    // The same, as people ask for it: whichever replica serves the gateway.
    let routes = cluster.heddle(&["config", "heddle-gateway", "routes", "--kubernetes"])?;
    let row = routes.lines().find(|line| line.contains("reviews.example.com"));
    ensure!(
        row.is_some_and(
            |r| r.contains("(90%)") && r.contains("VirtualService default/reviews spec.http[0]")
        ),
        "{routes}"
    );
    let clusters = ["config", "heddle-gateway", "c", "--fqdn", "reviews", "-k", "-o", "json"];
    let clusters = cluster.heddle(&clusters)?;
    ensure!(clusters.contains("DestinationRule default/reviews spec.subsets[1]"), "{clusters}");
    Ok(())
}

async fn given_a_field_that_does_not_exist_then_the_api_server_refuses_it_by_name(
    cluster: &Cluster,
) -> Result<()> {
    let rule = "{apiVersion: networking.istio.io/v1, kind: VirtualService, \
                metadata: {name: wrong}, spec: SPEC}";
    for (spec, field) in [
        ("{hostz: [a.com], hosts: [a.com]}", "spec.hostz"),
        ("{hosts: [a.com], http: [{timeout: soon}]}", "spec.http[0].timeout"),
        (
            "{hosts: [a.com], http: [{match: [{uri: {exact: /a, prefix: /b}}]}]}",
            "spec.http[0].match[0].uri",
        ),
        ("{http: []}", "spec.hosts"),
        // Conditions between fields.
        (
            "{hosts: [a.com], http: [{route: [{destination: {host: a}}], redirect: {uri: /a}}]}",
            "spec.http[0]: Invalid value: \"object\": must hold exactly one of route, redirect",
        ),
        (
            "{hosts: [a.com], http: [{route: [{destination: {host: a}}], timeout: 1us}]}",
            "spec.http[0].timeout: Invalid value: \"string\": must be 0s or at least 1ms",
        ),
        (
            "{hosts: [a.com], http: [{delegate: {name: a}, \
              fault: {abort: {httpStatus: 500, grpcStatus: INTERNAL}}}]}",
            "spec.http[0].fault.abort: Invalid value: \"object\": must hold at most one of",
        ),
        (
            "{hosts: [a.com], http: [{redirect: {port: 80, derivePort: FROM_REQUEST_PORT}}]}",
            "spec.http[0].redirect: Invalid value: \"object\": must not hold both port and",
        ),
    ] {
        let refused = cluster.apply(&rule.replace("SPEC", spec)).err();
        let why = refused.with_context(|| format!("{spec} was taken"))?.to_string();
        ensure!(why.contains(field), "{field} is not named: {why}");
    }
    Ok(())
}

async fn given_every_field_of_the_api_then_the_api_server_keeps_it_as_it_is(
    cluster: &Cluster,
) -> Result<()> {
    const NAMESPACE: &str = "every-field";
    let text = std::fs::read_to_string(cluster.path("tests/cluster/every-field.yaml"))?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    cluster.run("kubectl", &["apply", "-n", NAMESPACE, "-f", "-"], &text)?;
    for document in serde_yaml::Deserializer::from_str(&text) {
        let written = Value::deserialize(document)?;
        let kind = written["kind"].as_str().context("a kind")?;
        let kept = cluster.get(&["-n", NAMESPACE, kind, "every-field"])?;
        let (kept, written) = (&kept["spec"], &written["spec"]);
        ensure!(kept == written, "of {kind}\n{kept:#}\nis left, of\n{written:#}");
    }
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

async fn given_rules_that_are_wrong_then_their_status_says_so_and_they_harm_only_themselves(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    let rule = |name: &str, gateway: &str, more: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}}}, \
             spec: {{hosts: [{name}.example.com], gateways: [{gateway}], \
             http: [{{route: [{{destination: {{host: reviews}}}}]{more}}}]}}}}"
        )
    };
    // What no schema can say.
    cluster.apply(&rule("broken", "edge", ", match: [{uri: {regex: '('}}]"))?;
    cluster.apply(&rule("lost", "nowhere", ""))?;
    for (name, condition, status, reason, text) in [
        ("broken", "Accepted", "False", "WrongType", "spec.http[0].match[0].uri.regex"),
        ("lost", "Accepted", "True", "Accepted", "Gateway default/nowhere"),
        ("lost", "ResolvedRefs", "False", "GatewayNotFound", "spec.gateways[0]"),
        ("reviews", "Accepted", "True", "Accepted", ""),
        ("reviews", "ResolvedRefs", "True", "ResolvedRefs", ""),
    ] {
        let what = format!("{condition}={status} of {name}");
        until(&what, async || {
            let Ok(object) = cluster.get(&["virtualservice", name]) else { return false };
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|c| c["type"] == condition).cloned().unwrap_or_default();
            found["status"] == status
                && found["reason"] == reason
                && found["observedGeneration"] == object["metadata"]["generation"]
                && found["message"].as_str().is_some_and(|m| m.contains(text))
        })
        .await?;
    }
    until("an event of the rule", async || {
        let said = cluster.kubectl(&["describe", "virtualservice", "broken"]).unwrap_or_default();
        said.contains("Warning") && said.contains("WrongType")
    })
    .await?;
    cluster.kubectl(&["delete", "virtualservice", "broken", "lost"])?;
    traffic.stop().await.map(drop)
}

async fn given_the_yaml_of_other_peoples_tutorials_then_it_is_accepted_as_it_is(
    cluster: &Cluster,
) -> Result<()> {
    let text = std::fs::read_to_string(cluster.path("tests/cluster/tutorial.yaml"))?;
    cluster.kubectl(&["create", "namespace", "tutorial"])?;
    cluster.run("kubectl", &["apply", "-n", "tutorial", "-f", "-"], &text)?;
    let admin = cluster.admin().await?;
    until("the rules to be read", async || {
        let Ok(page) = admin.page("/debug/configz").await else { return false };
        let objects = page["objects"].as_array().cloned().unwrap_or_default();
        let of =
            |kind: &str| objects.iter().any(|o| o["kind"] == kind && o["namespace"] == "tutorial");
        ["Service", "VirtualService", "DestinationRule"].into_iter().all(of)
    })
    .await
}

async fn given_traffic_when_the_app_is_scaled_and_rolled_then_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    for replicas in ["10", "2"] {
        let replicas = format!("--replicas={replicas}");
        cluster.kubectl(&["scale", "deployment", "reviews-v1", &replicas])?;
        cluster.rolled_out("default", "reviews-v1")?;
        traffic.take().good()?;
    }
    cluster.kubectl(&["rollout", "restart", "deployment", "reviews-v1"])?;
    cluster.rolled_out("default", "reviews-v1")?;
    // Pods that are going still answer for a while.
    sleep(Duration::from_secs(5)).await;
    traffic.stop().await.map(drop)
}

async fn given_traffic_when_the_leader_is_killed_then_another_leads_and_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    let holder = || -> Result<String> {
        let lease = cluster.get(&["lease", "heddle-leader", "-n", SYSTEM])?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    };
    let leader = holder()?;
    let killed = Instant::now();
    cluster.kubectl(&["delete", "pod", &leader, "-n", SYSTEM, "--grace-period=0", "--force"])?;
    // What is changed now must arrive by whoever is left.
    set_weights(cluster, 0, 100)?;
    only(&traffic, "v2").await?;
    cluster.rolled_out(SYSTEM, "heddle")?;
    until("another leader", async || holder().is_ok_and(|now| !now.is_empty() && now != leader))
        .await?;
    let took = killed.elapsed();
    ensure!(took < Duration::from_secs(15), "the next one led after {took:?}");
    traffic.stop().await?;
    set_weights(cluster, 90, 10)
}

async fn given_traffic_when_the_api_server_is_away_for_half_a_minute_then_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let name = std::env::var("CLUSTER")?;
    let pid = std::fs::read_to_string(format!("/run/heddle-clusters/{name}/pids/kube-apiserver"))?;
    let traffic = cluster.traffic()?;
    cluster.run("kill", &[pid.trim()], "")?;
    sleep(Duration::from_secs(30)).await;
    traffic.take().good()?;
    cluster.run(cluster.path("tests/cluster/apiserver"), &[], "")?;
    until("the API server", async || cluster.kubectl(&["get", "--raw=/readyz"]).is_ok()).await?;
    set_weights(cluster, 0, 100)?;
    let took = only(&traffic, "v2").await?;
    ensure!(took < Duration::from_secs(5), "what changed arrived after {took:?}");
    traffic.stop().await?;
    set_weights(cluster, 90, 10)
}

async fn given_traffic_when_the_chart_is_upgraded_then_no_request_fails_and_the_settings_are_in_force(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = cluster.traffic()?;
    let more = ["meshConfig.connectTimeout=3s", "logLevel=debug", "replicas=3"];
    cluster.helm("helm", "upgrade", SYSTEM, &more)?;
    // The chart knows no root, and must not take it away from the API server.
    asks(cluster, "upgraded")?;
    believed(cluster).await?;
    cluster.kubectl(&["delete", "pod", "upgraded", "-n", MESHED, "--wait=false"])?;
    cluster.rolled_out(SYSTEM, "heddle")?;
    let admin = cluster.admin().await?;
    until("the settings to be read", async || {
        let page = admin.page("/debug/configz").await.map(|p| p.to_string()).unwrap_or_default();
        page.contains("MeshConfig")
    })
    .await?;
    let level = admin.page("/debug/logging").await?;
    ensure!(level["level"] == "debug", "{level}");
    traffic.stop().await.map(drop)
}

async fn given_helm_3_when_it_installs_upgrades_rolls_back_and_uninstalls_then_each_works(
    cluster: &Cluster,
) -> Result<()> {
    // The CRDs belong to the release that stands.
    let more = ["crds.install=false", "gateway.enabled=false", "replicas=1"];
    cluster.helm("helm3", "install", "heddle-three", &more)?;
    cluster.helm("helm3", "upgrade", "heddle-three", &[&more[..], &["logLevel=debug"]].concat())?;
    let run = |args: &[&str]| cluster.run("helm3", args, "");
    run(&["rollback", "heddle", "1", "--namespace", "heddle-three", "--wait"])?;
    run(&["test", "heddle", "--namespace", "heddle-three"])?;
    run(&["uninstall", "heddle", "--namespace", "heddle-three", "--wait"])?;
    cluster.kubectl(&["delete", "namespace", "heddle-three", "--wait=false"]).map(drop)
}

async fn given_a_namespace_that_is_deleted_then_its_objects_are_gone(
    cluster: &Cluster,
) -> Result<()> {
    // Nobody listens in these pods; they need no time to end.
    cluster.kubectl(&["delete", "deployment", "--all", "-n", "tutorial"])?;
    cluster.kubectl(&[
        "delete",
        "pods",
        "--all",
        "-n",
        "tutorial",
        "--grace-period=0",
        "--force",
    ])?;
    cluster.kubectl(&["delete", "namespace", "tutorial", "--wait=false"])?;
    let admin = cluster.admin().await?;
    until("the objects to go", async || {
        let Ok(page) = admin.page("/debug/configz").await else { return false };
        let objects = page["objects"].as_array().cloned().unwrap_or_default();
        objects.iter().all(|o| o["namespace"] != "tutorial")
    })
    .await
}

async fn given_no_helm_then_heddle_install_prints_what_the_chart_holds(
    cluster: &Cluster,
) -> Result<()> {
    let chart = cluster.run(cluster.path("tests/cluster/render"), &[], "")?;
    let printed = cluster.heddle(&["install", "--no-crds"])?;
    ensure!(
        printed.trim_end().ends_with(chart.trim_end()),
        "the chart changed: run tests/cluster/render > crates/cli/src/install.yaml"
    );
    let everything = cluster.heddle(&["install"])?;
    let tried = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-"];
    let said = cluster.run("kubectl", &tried, &everything)?;
    ensure!(said.contains("virtualservices") && said.contains("deployment.apps/heddle"), "{said}");
    Ok(())
}

async fn given_an_uninstalled_chart_then_nothing_but_the_crds_and_the_root_is_left(
    cluster: &Cluster,
) -> Result<()> {
    cluster.run("helm", &["uninstall", "heddle", "--namespace", SYSTEM, "--wait"], "")?;
    let mut left = Vec::new();
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "crds",
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
    ] {
        let found = cluster.get(&[kind, "-l", "app.kubernetes.io/part-of=heddle"])?;
        let items = found["items"].as_array().cloned().unwrap_or_default();
        left.extend(items.iter().map(|o| format!("{}", o["metadata"]["name"])));
    }
    let crds = left.iter().filter(|name| name.contains(".istio.io")).count();
    ensure!(crds == left.len() && crds > 0, "{left:?}");
    let kinds = "all,configmaps,roles,secrets";
    let left = cluster.kubectl(&["get", kinds, "-n", SYSTEM, "-o", "name"])?;
    // Who installs it again is trusted by the workloads that there are.
    let stays = [
        "configmap/kube-root-ca.crt",
        "configmap/istio-ca-root-cert",
        "secret/heddle-ca-secret",
        "secret/cacerts",
    ];
    let mut lines = left.lines().filter(|line| !line.is_empty());
    ensure!(lines.all(|l| stays.contains(&l) || l.contains("pod/")), "{left}");
    // The rules outlive the control plane.
    cluster.kubectl(&["get", "virtualservice", "reviews"]).map(drop)
}
