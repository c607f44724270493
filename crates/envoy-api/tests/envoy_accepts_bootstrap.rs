//! Asks a real Envoy whether it would start with our bootstrap.
//!
//! In: the binary that `ENVOY_BIN` names; skipped aloud without. Out: its verdict.
//!
//! **Invariant:** needs no network.

use std::process::Command;

use envoy_api::bootstrap::{Bootstrap, Protocol};
use serde_json::json;

#[test]
#[allow(clippy::expect_used, clippy::print_stderr, clippy::disallowed_methods)]
fn given_a_real_envoy_then_it_accepts_the_bootstrap() {
    let Some(envoy) = std::env::var_os("ENVOY_BIN") else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    for (host, protocol) in [("127.0.0.1", Protocol::Delta), ("localhost", Protocol::Sotw)] {
        let mut bootstrap = Bootstrap {
            node_id: "node".to_owned(),
            cluster: "cluster".to_owned(),
            xds_host: host.to_owned(),
            xds_port: 15010,
            admin_address: Some(("127.0.0.1".to_owned(), 0)),
            protocol,
            ..Default::default()
        };
        bootstrap.metadata.insert("LABELS".to_owned(), json!({ "app": "a", "n": 1 }));
        bootstrap.runtime.insert("a.key.of.ours".to_owned(), json!(true));
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "--base-id", "77", "--config-yaml"])
            .arg(bootstrap.to_json().to_string())
            .output()
            .expect("Envoy starts");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert!(!log.contains("deprecated"), "{log}");
    }
}
