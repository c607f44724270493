//! Injection into objects that hold pods: what `heddle inject` does to a file.
//!
//! In: any object. Out: the object with its pod injected, and what is to be told.
//!
//! **Invariant:** the same patch as the webhook's, applied to the pod's template; an object that
//! holds no pod is left as it is.

use serde_json::Value;

use crate::decide::Namespace;
use crate::inject::{Outcome, inject_as};
use crate::names::NAMESPACE_INJECTION;
use crate::pod::Pod;
use crate::proxy_config::ProxyConfig;
use crate::refusal::{Fault, Refusal};
use crate::settings::Settings;

/// What became of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Whether anything changed.
    pub changed: bool,
    /// What people should know: object and message.
    pub notes: Vec<String>,
}

/// Kinds that hold a template of pods: group, kind, where the template is.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// Inject the pods of an object, of the items of a list too. Who calls this asks for it: every
/// namespace counts as one that is labelled. `namespace`: of objects that name none.
pub fn inject_object(
    object: &mut Value,
    namespace: &str,
    settings: &Settings,
    mesh: &ProxyConfig,
) -> Result<Injected, Refusal> {
    let mut out = Injected::default();
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind.ends_with("List")
        && let Some(items) = object.get_mut("items").and_then(Value::as_array_mut)
    {
        for item in items {
            let of_item = inject_object(item, namespace, settings, mesh)?;
            out.changed |= of_item.changed;
            out.notes.extend(of_item.notes);
        }
        return Ok(out);
    }
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let Some((.., at)) = TEMPLATES.iter().find(|(g, k, _)| (*g, *k) == (group, &*kind)) else {
        return Ok(out);
    };
    let metadata = object["metadata"].clone();
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str());
    let place = format!("{kind} {}", name.unwrap_or_default());
    let mut settled = Namespace {
        name: metadata["namespace"].as_str().unwrap_or(namespace).to_owned(),
        ..Namespace::default()
    };
    settled.labels.insert(NAMESPACE_INJECTION.to_owned(), "enabled".to_owned());
    let Some(pod) = object.pointer_mut(at) else { return Ok(out) };
    let workload = match at.is_empty() {
        true => Pod(pod).workload().map(str::to_owned),
        false => name.map(str::to_owned),
    };
    let told = |message: String| format!("{place}: {message}");
    match inject_as(pod, workload.as_deref(), &settled, settings, mesh) {
        Ok(Outcome::Skipped(why)) => out.notes.push(told(format!("not injected: {why}"))),
        Ok(Outcome::Injected { patch, warnings }) => {
            json_patch::patch(pod, &patch)
                .map_err(|error| Fault::field(&place, error.to_string()))?;
            out.changed = true;
            out.notes.extend(warnings.into_iter().map(told));
        }
        Err(Refusal(faults)) => {
            let of_object = |fault: Fault| Fault { place: told(fault.place), ..fault };
            return Err(Refusal(faults.into_iter().map(of_object).collect()));
        }
    }
    Ok(out)
}
