//! The two containers that are injected.
//!
//! In: what is wished, settings. Out: the container that captures, and that of the proxy.
//!
//! **Invariant:** both meet the *restricted* Pod Security Standard, but for what capturing takes:
//! root and the capabilities NET_ADMIN and NET_RAW, in a container that ends before the
//! application starts.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::annotations::{Wishes, amount};
use crate::names::{INIT, PROXY};
use crate::pod::object;
use crate::refusal::Fault;
use crate::settings::{NativeSidecars, Resources, Settings};
use crate::volumes;

/// User and group of the proxy, whose own connections are not captured.
pub(crate) const PROXY_ID: u64 = 1337;
/// The agent.
const AGENT: &str = "/usr/local/bin/heddle-agent";
/// Port that says whether the proxy is ready.
const STATUS_PORT: u16 = 15021;
/// Longest text that Linux lets an environment variable be, with room to spare.
const LONGEST_VARIABLE: usize = 100 * 1024;
/// Worker threads where nobody says how many: a proxy per pod must not take every core.
const CONCURRENCY: u32 = 2;

/// What the agent is told of the application.
pub(crate) struct Application {
    /// Probes to ask.
    pub(crate) probes: Map<String, Value>,
    /// Where its metrics are.
    pub(crate) metrics: Option<Value>,
}

/// Whether the sidecar is an init container that stays.
pub(crate) fn is_native(wishes: &Wishes, settings: &Settings) -> bool {
    wishes.native.unwrap_or(settings.native_sidecars != NativeSidecars::Disabled)
}

/// The container that captures what goes out and comes in.
pub(crate) fn init(wishes: &Wishes, settings: &Settings, resources: &Value) -> Value {
    let mut args = vec!["init".to_owned()];
    args.extend(wishes.capture.iter().map(|(flag, value)| format!("{flag}={value}")));
    // Root, because only root may write rules.
    let security = security(0, &["NET_ADMIN", "NET_RAW"]);
    container(INIT, args, wishes, settings, resources, [("securityContext", security)])
}

/// The proxy.
pub(crate) fn proxy(
    wishes: &Wishes,
    settings: &Settings,
    resources: &Value,
    application: &Application,
    faults: &mut Vec<Fault>,
) -> Value {
    let native = is_native(wishes, settings);
    let level = wishes.log_level.as_ref().unwrap_or(&settings.log_level);
    let mut args = vec!["run".to_owned(), format!("--log-level={level}")];
    let components = wishes.component_log_level.iter();
    args.extend(components.map(|levels| format!("--component-log-level={levels}")));
    let mut mounts = volumes::mounts();
    for mount in &wishes.volume_mounts {
        if mounts.iter().any(|ours| ours["mountPath"] == mount["mountPath"]) {
            let message =
                format!("{} is the sidecar's own; mount it elsewhere", mount["mountPath"]);
            faults.push(Fault::field("annotation sidecar.istio.io/userVolumeMount", message));
        }
        mounts.push(mount.clone());
    }
    let holds = wishes.proxy.hold_application_until_proxy_starts != Some(false);
    let hold = json!({"postStart": {"exec": {"command": [AGENT, "wait"]}}});
    let ready = |period: u32, failures: u32| {
        json!({
            "httpGet": {"path": "/healthz/ready", "port": STATUS_PORT},
            "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
        })
    };
    let more = [
        ("env", environment(wishes, settings, resources, application, faults)),
        ("restartPolicy", if native { "Always".into() } else { Value::Null }),
        // Containers after it start when it is over; it waits ten minutes for a controller.
        ("startupProbe", ready(1, 600)),
        ("readinessProbe", ready(15, 4)),
        ("lifecycle", if !native && holds { hold } else { Value::Null }),
        ("securityContext", security(PROXY_ID, &[])),
        ("volumeMounts", mounts.into()),
    ];
    container(PROXY, args, wishes, settings, resources, more)
}

/// A container that runs the agent, and what else is said of it.
fn container<const N: usize>(
    name: &str,
    args: Vec<String>,
    wishes: &Wishes,
    settings: &Settings,
    resources: &Value,
    more: [(&str, Value); N],
) -> Value {
    let mut container = object([
        ("name", name.into()),
        ("image", image(wishes, settings)),
        ("imagePullPolicy", pull_policy(settings)),
        ("command", json!([AGENT])),
        ("args", args.into()),
        ("resources", resources.clone()),
    ]);
    if let (Some(container), Value::Object(more)) = (container.as_object_mut(), object(more)) {
        container.extend(more);
    }
    container
}

/// As little as this user and group need, and these capabilities.
fn security(id: u64, capabilities: &[&str]) -> Value {
    let add = if capabilities.is_empty() { Value::Null } else { json!(capabilities) };
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": object([("add", add), ("drop", json!(["ALL"]))]),
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": id,
        "runAsNonRoot": id != 0,
        "runAsUser": id,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Resources of either container.
pub(crate) fn resources(wishes: &Wishes, settings: &Settings, faults: &mut Vec<Fault>) -> Value {
    let Resources { mut requests, mut limits } = settings.resources.clone();
    for (name, (request, limit)) in &wishes.resources {
        let amounts = [request, limit].map(|a| a.as_deref().and_then(amount));
        if let ([Some(least), Some(most)], Some(request)) = (amounts, request)
            && least > most
        {
            let annotation = if *name == "cpu" { "proxyCPU" } else { "proxyMemory" };
            let message = format!("{request} is more than {annotation}Limit allows");
            let place = format!("annotation sidecar.istio.io/{annotation}");
            faults.push(Fault::field(place, message));
        }
        for (all, amount) in [(&mut requests, request), (&mut limits, limit)] {
            all.remove(*name);
            all.extend(amount.iter().map(|a| ((*name).to_owned(), Value::from(a.as_str()))));
        }
    }
    let map = |all: BTreeMap<String, Value>| match all.is_empty() {
        true => Value::Null,
        false => Value::Object(all.into_iter().collect()),
    };
    object([("requests", map(requests)), ("limits", map(limits))])
}

fn image(wishes: &Wishes, settings: &Settings) -> Value {
    wishes.image.as_ref().unwrap_or(&settings.image).as_str().into()
}

fn pull_policy(settings: &Settings) -> Value {
    match settings.image_pull_policy.as_str() {
        "" => Value::Null,
        policy => policy.into(),
    }
}

/// The environment by which the agent learns what it is beside.
fn environment(
    wishes: &Wishes,
    settings: &Settings,
    resources: &Value,
    application: &Application,
    faults: &mut Vec<Fault>,
) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("INSTANCE_IP", "status.podIP"),
    ];
    let mut text = |name: &str, value: String| env.push(json!({"name": name, "value": value}));
    let proxy = &wishes.proxy;
    let address = proxy.discovery_address.as_ref().unwrap_or(&settings.xds_address);
    text("XDS_ADDRESS", address.clone());
    text("TRUST_DOMAIN", settings.trust_domain.clone());
    if !settings.cluster_id.is_empty() {
        text("CLUSTER_ID", settings.cluster_id.clone());
    }
    let mode = if wishes.captures() { "REDIRECT" } else { "NONE" };
    text("INTERCEPTION_MODE", mode.to_owned());
    let threads = proxy.concurrency.unwrap_or_else(|| threads(&resources["limits"]["cpu"]));
    text("CONCURRENCY", threads.to_string());
    if let Some(seconds) = proxy.drain_seconds() {
        text("TERMINATION_DRAIN_DURATION", format!("{seconds}s"));
    }
    if !application.probes.is_empty() {
        let probes = Value::from(application.probes.clone()).to_string();
        if probes.len() > LONGEST_VARIABLE {
            let message = format!(
                "its {} probes are too much for the sidecar to be told; set the annotation \
                 sidecar.istio.io/rewriteAppHTTPProbers to \"false\", or shorten them",
                application.probes.len()
            );
            faults.push(Fault::field("spec.containers", message));
        }
        text("APP_PROBES", probes);
    }
    if let Some(metrics) = &application.metrics {
        text("APP_METRICS", metrics.to_string());
    }
    for (name, value) in &proxy.proxy_metadata {
        if env.iter().any(|variable| variable["name"] == name.as_str()) {
            let message = format!("{name} is set by the injector; leave it out");
            faults.push(Fault::field("proxyMetadata of proxy.istio.io/config", message));
        }
        env.push(json!({"name": name, "value": value}));
    }
    env.into()
}

/// Worker threads by the limit of CPU: as many as it may keep busy.
fn threads(limit: &Value) -> u32 {
    let amount = match limit {
        Value::String(text) => amount(text),
        limit => limit.as_f64(),
    };
    match amount {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded and within bounds"
        )]
        Some(cores) if cores > 0.0 => cores.ceil().clamp(1.0, 1024.0) as u32,
        _ => CONCURRENCY,
    }
}
