//! Compares what we believe of Envoy with a real one.
//!
//! In: the binary that `ENVOY_BIN` names; skipped aloud without. Out: differences.
//!
//! **Invariant:** needs no network.

#![allow(clippy::expect_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use envoy_api::bootstrap::{Bootstrap, Protocol};
use envoy_api::{check, envoy::config::bootstrap::v3 as wire, json};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::{DescriptorProto, FileDescriptorProto};
use serde_json::{Value, json};

fn envoy() -> Option<PathBuf> {
    let envoy = std::env::var_os("ENVOY_BIN");
    if envoy.is_none() {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
    }
    envoy.map(PathBuf::from)
}

/// Whether Envoy would start with this configuration, and its log.
fn verdict(envoy: &PathBuf, bootstrap: &Value) -> (bool, String) {
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--base-id", "77", "--config-yaml"])
        .arg(bootstrap.to_string())
        .output()
        .expect("Envoy starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn bootstrap() -> Bootstrap {
    Bootstrap {
        node_id: "node".to_owned(),
        cluster: "cluster".to_owned(),
        xds_host: "127.0.0.1".to_owned(),
        xds_port: 15010,
        ..Default::default()
    }
}

#[test]
fn given_a_real_envoy_then_it_accepts_the_bootstrap() {
    let Some(envoy) = envoy() else { return };
    for (host, protocol) in [("127.0.0.1", Protocol::Delta), ("localhost", Protocol::Sotw)] {
        let mut bootstrap = Bootstrap {
            xds_host: host.to_owned(),
            admin_address: Some(("127.0.0.1".to_owned(), 0)),
            protocol,
            ..bootstrap()
        };
        bootstrap.metadata.insert("LABELS".to_owned(), json!({ "app": "a", "n": 1 }));
        bootstrap.runtime.insert("a.key.of.ours".to_owned(), json!(true));
        let (accepted, log) = verdict(&envoy, &bootstrap.to_json());
        assert!(accepted, "{log}");
        assert!(!log.contains("deprecated"), "{log}");
    }
}

#[test]
fn given_faulty_resources_then_we_refuse_what_envoy_refuses() {
    let Some(envoy) = envoy() else { return };
    for (accepted, cluster) in [
        (true, json!({})),
        (true, json!({ "connect_timeout": "0.001s" })),
        (false, json!({ "connect_timeout": "0s" })),
        (false, json!({ "name": "" })),
        (false, json!({ "lb_policy": 77 })),
        (false, json!({ "outlier_detection": { "max_ejection_percent": 101 } })),
        (false, json!({ "circuit_breakers": { "thresholds": [{ "priority": 9 }] } })),
        (false, json!({ "health_checks": [{}] })),
    ] {
        let mut with_name = json!({ "name": "c" });
        for (key, value) in cluster.as_object().expect("an object") {
            with_name[key] = value.clone();
        }
        agree(&envoy, accepted, "clusters", with_name);
    }
    for (accepted, route) in [
        (true, json!({})),
        (true, json!({ "request_headers_to_remove": ["a b"] })),
        (false, json!({ "request_headers_to_remove": ["a\nb"] })),
        (false, json!({ "request_headers_to_remove": [""] })),
        (false, json!({ "match": {} })),
        (false, json!({ "match": { "path_separated_prefix": "/a/" } })),
        (false, json!({ "match": { "safe_regex": { "regex": "(a" } } })),
        (true, json!({ "match": { "safe_regex": { "regex": "/[a-z]{1,63}/{id}" } } })),
        (false, json!({ "direct_response": { "status": 700 } })),
    ] {
        let mut whole = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } });
        for (key, value) in route.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        agree(&envoy, accepted, "listeners", listener(&whole));
    }
}

fn listener(route: &Value) -> Value {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": "l",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "http",
            "typed_config": {
                "@type": format!("{filters}.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "p",
                "route_config": { "virtual_hosts": [{
                    "name": "h", "domains": ["*"], "routes": [route],
                }]},
                "http_filters": [{
                    "name": "router",
                    "typed_config": { "@type": format!("{filters}.http.router.v3.Router") },
                }],
            },
        }]}],
    })
}

/// Ask both, with the resource among the static ones of a bootstrap.
fn agree(envoy: &PathBuf, accepted: bool, kind: &str, resource: Value) {
    let mut file = bootstrap().to_json();
    match &mut file["static_resources"][kind] {
        Value::Array(list) => list.push(resource.clone()),
        other => *other = json!([resource]),
    }
    let (envoys, log) = verdict(envoy, &file);
    assert_eq!(envoys, accepted, "Envoy on {resource}: {log}");
    let message = json::from_json::<wire::Bootstrap>(&file).expect("well-formed JSON");
    let ours = check::violations(&message);
    assert_eq!(ours.is_empty(), accepted, "we on {resource}: {ours:?}");
}

/// Our fields and those that the binary itself carries in its embedded descriptors.
#[test]
fn given_a_real_envoy_then_it_knows_every_field_that_we_know() {
    let Some(envoy) = envoy() else { return };
    let binary = std::fs::read(envoy).expect("the binary is readable");
    let ours = DescriptorPool::decode(envoy_api::json::DESCRIPTORS).expect("descriptors");
    let ours: BTreeMap<_, _> = ours
        .files()
        .filter(|file| file.package_name().starts_with("envoy."))
        .map(|file| (file.name().to_owned(), file.file_descriptor_proto().clone()))
        .collect();
    let mut theirs = BTreeMap::new();
    for (at, _) in binary.iter().enumerate().filter(|(_, byte)| **byte == 0x0a) {
        // Field 1 of a FileDescriptorProto is the path of the file.
        let len = usize::from(binary.get(at + 1).copied().unwrap_or(0));
        let name = binary.get(at + 2..at + 2 + len).unwrap_or(&[]);
        if let Ok(name) = std::str::from_utf8(name)
            && ours.contains_key(name)
            && let Some(file) = file_at(&binary[at..])
        {
            theirs.insert(name.to_owned(), file);
        }
    }
    let mut missing = Vec::new();
    // A file that Envoy does not link, such as that of the status service, is no drift.
    for (name, theirs) in &theirs {
        missing.extend(fields(&ours[name]).difference(&fields(theirs)).cloned());
    }
    assert!(theirs.len() > 100, "found only {} descriptors in the binary", theirs.len());
    eprintln!("compared {} files of {}", theirs.len(), ours.len());
    assert_eq!(missing, Vec::<String>::new(), "Envoy does not know these fields");
}

/// The descriptor that starts here. Its length is not written: it ends before the first byte
/// that can be no field of it.
fn file_at(bytes: &[u8]) -> Option<FileDescriptorProto> {
    let mut end = 0;
    while let Some(key) = bytes.get(end) {
        if !matches!(key, 0x0a | 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42 | 0x4a | 0x62) {
            break;
        }
        let mut rest = bytes.get(end + 1..)?;
        let before = rest.len();
        let len = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
        if rest.len() < len {
            break;
        }
        end += 1 + (before - rest.len()) + len;
        if *key == 0x62 {
            // The syntax comes last.
            break;
        }
    }
    FileDescriptorProto::decode(&bytes[..end]).ok()
}

/// `package.Message.field = number` of every field.
fn fields(file: &FileDescriptorProto) -> BTreeSet<String> {
    fn walk(scope: &str, messages: &[DescriptorProto], out: &mut BTreeSet<String>) {
        for message in messages {
            let scope = format!("{scope}.{}", message.name());
            out.extend(
                message.field.iter().map(|f| format!("{scope}.{} = {}", f.name(), f.number())),
            );
            walk(&scope, &message.nested_type, out);
        }
    }
    let mut out = BTreeSet::new();
    walk(file.package(), &file.message_type, &mut out);
    out
}
