//! Tests of settings.

use super::values::{Action, Scheme};
use super::*;

fn args(text: &str) -> Args {
    serde_yaml::from_str(text).expect("settings")
}

/// The least that there must be.
const LEAST: &str =
    "podName: web-1\nnamespace: shop\naddress: 10.0.0.1\nxdsAddress: heddle:15012\n";

fn refused(text: &str) -> String {
    format!("{:#}", Settings::resolve(args(text)).expect_err(text))
}

fn file(text: &str) -> Result<Settings> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, text)?;
    Settings::resolve(Args { config: Some(file), ..Args::default() })
}

#[test]
fn the_least_gives_the_rest() {
    let settings = Settings::resolve(args(LEAST)).expect("settings");
    assert_eq!(settings.node.id(), "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local");
    assert_eq!(settings.certificates.address, "heddle:15012");
    assert_eq!(settings.certificates.id.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(settings.status.port(), 15021);
    assert!(settings.status.ip().is_unspecified());
    assert_eq!(settings.envoy.concurrency, Some(2));
    assert_eq!(settings.envoy.drain, Duration::from_secs(5));
    // A workload of loopback is served there.
    let loopback = args(LEAST.replace("10.0.0.1", "127.0.0.2").as_str());
    let loopback = Settings::resolve(loopback).expect("settings");
    assert_eq!(loopback.status, "127.0.0.2:15021".parse().expect("an address"));
}

#[test]
fn what_is_missing_or_bad_is_named_as_the_flag_that_it_is() {
    for (field, flag) in [
        ("podName", "--pod-name"),
        ("namespace", "--namespace"),
        ("address", "--address"),
        ("xdsAddress", "--xds-address"),
    ] {
        let without: String = LEAST
            .lines()
            .filter(|line| !line.starts_with(field))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(refused(&without).contains(flag), "{field}");
    }
    for (more, says) in [
        ("caAddress: heddle", "--ca-address takes HOST:PORT, not \"heddle\""),
        ("trustDomain: A", "--trust-domain"),
        ("serviceAccount: a/b", "--service-account"),
        ("adminPort: 15021", "three ports"),
        ("labelsFile: /nowhere/labels", "--labels-file /nowhere/labels"),
        ("tokenFile: a\njoinTokenFile: b", "exclude each other"),
    ] {
        let error = refused(&format!("{LEAST}{more}\n"));
        assert!(error.contains(says), "{error} does not say {says}");
    }
}

#[test]
fn a_file_is_refused_by_the_field() {
    for (more, says) in [
        ("podNme: x", "podNme"),
        ("adminPort: many", "adminPort"),
        ("drainDuration: soon", "drainDuration"),
        ("role: king", "role"),
        ("interceptionMode: redirect", "interceptionMode"),
        ("labels: [a]", "labels"),
        ("appProbes: {/app-health/a/livez: {httpGet: {path: /}}}", "appProbes"),
        ("appProbes: {/other: {tcpSocket: {port: 1}}}", "/app-health/CONTAINER/livez"),
        ("appMetrics: {port: 0}", "appMetrics"),
        ("config: again", "config"),
    ] {
        let error = format!("{:#}", file(&format!("{LEAST}{more}\n")).expect_err(more));
        assert!(error.contains(says) && error.contains("--config"), "{error} does not say {says}");
    }
    assert!(file(&format!("{LEAST}labels: {{app: web}}\n")).is_ok());
}

#[test]
fn a_flag_goes_before_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, format!("{LEAST}serviceAccount: file\n")).expect("written");
    let flags =
        Args { config: Some(path), service_account: Some("flag".to_owned()), ..Args::default() };
    let settings = Settings::resolve(flags).expect("settings");
    assert_eq!((&*settings.node.service_account, &*settings.node.pod), ("flag", "web-1"));
}

#[test]
fn values_are_read_as_they_are_written_elsewhere() {
    let time = |text: &str| text.parse::<Time>().map(|Time(time)| time.as_millis());
    for (text, expected) in [("5s", 5000), ("0", 0), ("0s", 0), ("250ms", 250), ("24h", 86_400_000)]
    {
        assert_eq!(time(text), Ok(expected), "{text}");
    }
    for bad in ["", "5", "s", "-1s", "1.5s", "5 s", "99999999999999999999s", "4000d"] {
        assert!(time(bad).is_err(), "{bad}");
    }
    let labels =
        Labels::of_downward_api("app=\"web\"\nversion=\"v1\"\nempty=\"\"\n").expect("labels");
    assert_eq!(labels, "app=web,version=v1,empty=".parse().expect("labels"));
    assert!(Labels::of_downward_api("app=web").is_err());
    assert!("app".parse::<Labels>().is_err());
    let probes: Probes = r#"{"/app-health/web/livez": {"httpGet": {"path": "/a", "port": 80,
        "scheme": "HTTPS"}, "timeoutSeconds": 3, "periodSeconds": 9},
        "/app-health/web/readyz": {"grpc": {"port": 5, "service": null, "later": 1}}}"#
        .parse()
        .expect("probes");
    let get = &probes.0["/app-health/web/livez"];
    assert_eq!(get.timeout_seconds, 3);
    assert!(matches!(&get.action, Action::HttpGet(get) if get.scheme == Scheme::Https));
    assert_eq!(probes.0["/app-health/web/readyz"].timeout_seconds, 0);
    let metrics: AppMetrics = r#"{"port": "9090", "path": "m"}"#.parse().expect("metrics");
    assert_eq!((metrics.port, &*metrics.path), (9090, "/m"));
}

#[test]
fn the_samples_are_settings() {
    let samples =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/samples/sidecars/agents");
    for (file, id) in [
        ("client", "sidecar~127.0.0.1~client-0.default~default.svc.cluster.local"),
        ("catalog", "sidecar~127.0.0.2~catalog-0.default~default.svc.cluster.local"),
    ] {
        let file = samples.join(format!("{file}.yaml"));
        let settings = Settings::resolve(Args { config: Some(file), ..Args::default() });
        let settings = settings.expect("a sample");
        assert_eq!(settings.node.id(), id);
        assert!(matches!(settings.certificates.token, TokenFile::Once { .. }));
    }
}
