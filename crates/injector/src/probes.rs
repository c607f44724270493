//! Probes of the application, asked by way of the agent.
//!
//! In: probes as they were written. Out: probes that ask the agent's port, and what the agent must
//! then ask the application.
//!
//! Kubelet speaks plain text, from outside of the mesh: where only mutual TLS is let in, nobody
//! else could answer it.
//!
//! **Invariant:** a probe that does not ask this pod over the network is left as it is.

use json_patch::{PatchOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use crate::inject::pointer;
use crate::pod::{Container, Pod, object, port_of};

/// Port of the agent that answers for the application.
const PORT: u16 = 15020;

/// Fields of a container, and what the agent calls them.
const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];

/// Rewritten probes.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// How the pod changes.
    pub(crate) changes: Vec<PatchOperation>,
    /// What the agent asks: path on its port → probe.
    pub(crate) asked: Map<String, Value>,
}

/// Rewrite the probes of a pod, but for those of containers of these names.
pub(crate) fn rewrite(pod: Pod<'_>, but: &[&str]) -> Probes {
    let mut out = Probes::default();
    for container in pod.containers().filter(|c| c.stays() && !but.contains(&c.name())) {
        for (field, name) in PROBES {
            let Some(probe) = container.body[field].as_object() else { continue };
            let Some(asked) = asked(container, probe) else { continue };
            let path = format!("/app-health/{}/{name}", container.name());
            let mut changed = probe.clone();
            for action in ["httpGet", "tcpSocket", "grpc"] {
                changed.remove(action);
            }
            changed.insert("httpGet".to_owned(), json!({"path": path, "port": PORT}));
            let index = container.index.to_string();
            out.changes.push(PatchOperation::Replace(ReplaceOperation {
                path: pointer(&["spec", container.list, &index, field]),
                value: Value::Object(changed),
            }));
            out.asked.insert(path, asked);
        }
    }
    out
}

/// What the agent asks in place of kubelet; none = leave the probe as it is.
fn asked(container: Container<'_>, probe: &Map<String, Value>) -> Option<Value> {
    // Another host than the pod.
    let elsewhere = |action: &Value| action["host"].as_str().is_some_and(|h| !h.is_empty());
    let actions = ["httpGet", "tcpSocket", "grpc"];
    let (name, action) = actions.iter().find_map(|a| Some((*a, probe.get(*a)?)))?;
    if !action.is_object() || elsewhere(action) {
        return None;
    }
    let mut action = action.clone();
    action["port"] = Value::from(number(container, &action["port"])?);
    // What an API server fills in, so that a file gives the same.
    let default = |action: &mut Value, field: &str, value: &str| {
        if action[field].is_null() {
            action[field] = Value::from(value);
        }
    };
    match name {
        "httpGet" => {
            default(&mut action, "path", "/");
            default(&mut action, "scheme", "HTTP");
        }
        "grpc" => default(&mut action, "service", ""),
        _ => {}
    }
    let timeout = probe.get("timeoutSeconds").cloned().unwrap_or(Value::from(1));
    Some(object([(name, action), ("timeoutSeconds", timeout)]))
}

/// The number of a port that may be named.
fn number(container: Container<'_>, port: &Value) -> Option<u16> {
    let name = match port {
        Value::String(name) => name,
        port => return port_of(port),
    };
    let named = container.ports().get(name.as_str()).copied();
    named.or_else(|| name.parse().ok().filter(|n| *n > 0))
}
