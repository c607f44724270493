//! What the sidecar sees: its own memory, its token, the roots of the mesh, the pod's labels.
//!
//! **Invariant:** no key is on a disk: what the agent writes is in memory.

use serde_json::{Value, json};

use crate::settings::Settings;

/// Memory of the agent: its socket, Envoy's bootstrap.
const MEMORY: (&str, &str) = ("heddle-envoy", "/etc/heddle/proxy");
/// Token by which the pod proves its ServiceAccount to the certificate authority.
const TOKEN: (&str, &str) = ("heddle-token", "/var/run/secrets/tokens");
/// The roots of the mesh, to know the controller by.
const ROOTS: (&str, &str) = ("heddle-roots", "/var/run/secrets/heddle");
/// The pod's labels.
const LABELS: (&str, &str) = ("heddle-podinfo", "/etc/podinfo");

/// The volumes of a pod.
pub(crate) fn volumes(settings: &Settings) -> Vec<Value> {
    let token = json!({
        "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token",
    });
    let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
    vec![
        json!({"name": MEMORY.0, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
        json!({"name": TOKEN.0, "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": ROOTS.0, "configMap": {"name": settings.root_config_map}}),
        json!({"name": LABELS.0, "downwardAPI": {"items": [labels]}}),
    ]
}

/// Where the sidecar sees them.
pub(crate) fn mounts() -> Vec<Value> {
    let mount = |(name, path): (&str, &str)| json!({"name": name, "mountPath": path});
    let read = |at| {
        let mut mount = mount(at);
        mount["readOnly"] = Value::from(true);
        mount
    };
    vec![mount(MEMORY), read(TOKEN), read(ROOTS), read(LABELS)]
}
