//! Health, metrics, `/debug/`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Controller, Folder, MESH, ask};

#[test]
fn given_metrics_then_they_are_in_the_format_of_prometheus_under_the_names_we_promise() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let (status, text) = controller.public("/metrics");
    assert_eq!(status, 200);
    let mut typed = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(typed.insert(name), "{name} has two types");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (key, value) = line.rsplit_once(' ').expect("key and value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(series.insert(key), "{key} is there twice");
        let name = key.split('{').next().unwrap_or_default();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        let known = typed.contains(name) || of_histogram.is_some_and(|n| typed.contains(n));
        assert!(known, "{line} has no type");
        assert!(key == name || (key.ends_with('}') && key.matches('"').count() % 2 == 0), "{line}");
    }
    for name in [
        "pilot_xds",
        "pilot_xds_pushes",
        "pilot_total_xds_rejects",
        "pilot_services",
        "pilot_virt_services",
        "pilot_info",
        "heddle_objects",
        "heddle_problems",
        "heddle_ready",
        "heddle_batch_seconds",
        "heddle_xds_sent_bytes_total",
    ] {
        assert!(typed.contains(name), "{name} is not in:\n{text}");
    }
    for line in
        ["heddle_ready 1", "pilot_services 1", "pilot_xds 0", "heddle_objects{kind=\"Gateway\"} 1"]
    {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
}

#[test]
fn given_a_request_for_another_host_then_debug_is_forbidden() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let port = controller.admin.port();
    for host in [
        "evil.example.com",
        &format!("evil.example.com:{port}"),
        "localhost.example.com",
        "10.0.0.1",
    ] {
        for path in ["/", "/debug/", "/debug/configz", "/debug/syncz", "/debug/nothing"] {
            let (status, body) = ask(controller.admin, "GET", path, host);
            assert_eq!(
                (status, body.contains("use localhost")),
                (403, true),
                "{host} {path}: {body}"
            );
        }
        assert_eq!(ask(controller.admin, "POST", "/debug/logging?level=trace", host).0, 403);
    }
    for host in ["localhost", "127.0.0.1", "127.0.0.2", "[::1]"] {
        let host = format!("{host}:{port}");
        assert_eq!(ask(controller.admin, "GET", "/debug/configz", &host).0, 200, "{host}");
    }
    assert_eq!(controller.public("/debug/configz").0, 404, "not where everybody may look");
}

#[test]
fn given_config_dump_without_a_proxy_or_with_an_unknown_one_then_advice_is_given() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    for path in ["/debug/config_dump", "/debug/config_dump?proxyID=", "/debug/config_dump?proxy=x"]
    {
        let (status, body) = controller.debug(path);
        assert_eq!((status, body.contains("proxyID=ID")), (400, true), "{path}: {body}");
    }
    let (status, body) = controller.debug("/debug/config_dump?proxyID=nobody");
    assert_eq!(status, 404);
    assert!(body.contains("nobody") && body.contains("/debug/syncz"), "{body}");
    assert_eq!(controller.debug("/debug/syncz"), (200, "[]".to_owned()));
    for path in ["/", "/debug", "/debug/"] {
        let (status, body) = controller.debug(path);
        assert!(status == 200 && body.contains("/debug/config_dump"), "{path}: {body}");
    }
    let (status, body) = controller.debug("/debug/nothing");
    assert_eq!((status, body.contains("no page /debug/nothing; /debug/ lists")), (404, true));
}

#[test]
fn given_a_log_level_then_it_changes_while_running_and_a_bad_one_is_refused() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let level = || {
        let (_, body) = controller.debug("/debug/logging");
        let found: Value = serde_json::from_str(&body).expect("JSON");
        found["level"].as_str().unwrap_or_default().to_owned()
    };
    let set = |level: &str| {
        ask(controller.admin, "POST", &format!("/debug/logging?level={level}"), "localhost")
    };
    assert_eq!(level(), "info");
    assert_eq!(set("debug").0, 200);
    assert_eq!(level(), "debug");
    folder.write("more.yaml", super::service("more"));
    super::until("a line at the new level", || {
        controller.guard.log().contains("\"DEBUG\"").then_some(())
    });
    for bad in ["verbose", "", "info,xds=loud", "42"] {
        let (status, body) = set(bad);
        assert_eq!((status, body.contains("debug")), (400, true), "{bad}: {body}");
    }
    assert_eq!(ask(controller.admin, "POST", "/debug/logging", "localhost").0, 400);
    assert_eq!(level(), "debug", "a bad one changes nothing");
    assert_eq!(set("xds=trace,warn").0, 200);
}
