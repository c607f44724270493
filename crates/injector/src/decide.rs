//! Whether a pod gets a sidecar.
//!
//! In: labels and annotations of the pod and of its namespace. Out: yes, or why not.
//!
//! The words of two meshes are understood. What the pod says counts more than what its namespace
//! says; a namespace that says no, or that belongs to another control plane, is final.
//!
//! **Invariant:** a function of labels, annotations and a few fields: the selectors and conditions
//! of the webhook in the chart say the same, so that nobody else's pod waits for us.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::names::{INJECT, LINKERD_INJECT, NAMESPACE_INJECTION, PROXY, REVISION, STATUS};
use crate::pod::Pod;
use crate::refusal::{Fault, Refusal};
use crate::settings::Settings;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Whether a pod gets a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Inject,
    /// No.
    Skip(Skip),
}

/// Why a pod gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Its namespace belongs to the cluster or to the control plane.
    SystemNamespace,
    /// It uses the network of its node.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It has one.
    Injected,
    /// It has one of another mesh.
    InjectedByAnother,
    /// Its namespace says no.
    NamespaceDisabled,
    /// It says no.
    PodDisabled,
    /// It, or its namespace, asks for another control plane.
    OtherRevision,
    /// Neither it nor its namespace asks for one.
    NotAsked,
}

/// Whether this pod gets a sidecar; a label or annotation that says neither yes nor no is refused.
pub fn decide(pod: &Value, namespace: &Namespace, settings: &Settings) -> Result<Verdict, Refusal> {
    let pod = Pod(pod);
    let skip = |why| Ok(Verdict::Skip(why));
    if settings.is_system(&namespace.name) {
        return skip(Skip::SystemNamespace);
    }
    if pod.spec()["hostNetwork"] == true {
        return skip(Skip::HostNetwork);
    }
    if pod.spec()["os"]["name"] == "windows" {
        return skip(Skip::Windows);
    }
    if let Some(why) = injected(pod) {
        return skip(why);
    }
    let label = |key: &str| namespace.labels.get(key).map(String::as_str);
    let asked = match (label(NAMESPACE_INJECTION), label(REVISION)) {
        (Some("disabled"), _) => return skip(Skip::NamespaceDisabled),
        (Some("enabled"), _) => true,
        (_, Some(revision)) if revision == settings.revision => true,
        (_, Some(_)) => return skip(Skip::OtherRevision),
        (_, None) => {
            let said = namespace.annotations.get(LINKERD_INJECT);
            said.is_some_and(|said| linkerd(said) == Some(true))
        }
    };
    match says(pod)? {
        Some(true) => return Ok(Verdict::Inject),
        Some(false) => return skip(Skip::PodDisabled),
        None => {}
    }
    match pod.label(REVISION) {
        Some(revision) if revision == settings.revision => Ok(Verdict::Inject),
        Some(_) => skip(Skip::OtherRevision),
        None if asked => Ok(Verdict::Inject),
        None => skip(Skip::NotAsked),
    }
}

/// Whether there is a sidecar already.
fn injected(pod: Pod<'_>) -> Option<Skip> {
    let marked = pod.annotation(STATUS).is_some();
    pod.containers().find_map(|container| match container.name() {
        PROXY if marked => Some(Skip::Injected),
        // With `image: auto` it only says how the sidecar is to be.
        "istio-proxy" if marked && container.body["image"] != "auto" => {
            Some(Skip::InjectedByAnother)
        }
        "linkerd-proxy" => Some(Skip::InjectedByAnother),
        _ => None,
    })
}

/// What the pod itself says.
fn says(pod: Pod<'_>) -> Result<Option<bool>, Refusal> {
    let found = pod.label(INJECT).map(|value| ("label", value));
    let found = found.or_else(|| pod.annotation(INJECT).map(|value| ("annotation", value)));
    if let Some((what, value)) = found {
        return match value.to_ascii_lowercase().as_str() {
            "true" | "yes" | "y" | "on" => Ok(Some(true)),
            "false" | "no" | "n" | "off" => Ok(Some(false)),
            // What a label that is set to nothing means elsewhere.
            "" => Ok(None),
            _ => {
                let place = format!("{what} {INJECT}");
                let value = crate::refusal::quoted(value);
                Err(Fault::field(place, format!("{value} is neither true nor false")).into())
            }
        };
    }
    match pod.annotation(LINKERD_INJECT) {
        None => Ok(None),
        Some(value) => match linkerd(value) {
            Some(said) => Ok(Some(said)),
            None => {
                let allowed = "use enabled, ingress or disabled";
                Err(Fault::annotation(LINKERD_INJECT, value, allowed).into())
            }
        },
    }
}

fn linkerd(value: &str) -> Option<bool> {
    match value {
        "enabled" | "ingress" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

// === impl Skip ===

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SystemNamespace => "its namespace is one of the system",
            Self::HostNetwork => "it uses the network of its node",
            Self::Windows => "it runs on Windows",
            Self::Injected => "it has a sidecar",
            Self::InjectedByAnother => "it has a sidecar of another mesh",
            Self::NamespaceDisabled => "its namespace is labelled istio-injection=disabled",
            Self::PodDisabled => "it says that it wants none",
            Self::OtherRevision => "it belongs to another revision of the control plane",
            Self::NotAsked => "neither it nor its namespace asks for a sidecar",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn given_labels_and_annotations_then_the_pod_counts_more_and_a_namespace_that_says_no_is_final()
    {
        use Skip::*;
        use Verdict::{Inject, Skip as No};
        let inject = |v: &'static str| vec![(INJECT, v)];
        let none = Vec::<(&str, &str)>::new;
        let ns = |v: &'static str| vec![(NAMESPACE_INJECTION, v)];
        // Labels and annotations of the namespace, then of the pod.
        for (ns_labels, ns_notes, labels, notes, want) in [
            (none(), none(), none(), none(), No(NotAsked)),
            (ns("enabled"), none(), none(), none(), Inject),
            (ns("enabled"), none(), inject("false"), none(), No(PodDisabled)),
            (ns("enabled"), none(), none(), inject("no"), No(PodDisabled)),
            (ns("enabled"), none(), inject("true"), inject("false"), Inject),
            (ns("enabled"), none(), inject(""), none(), Inject),
            (ns("disabled"), none(), inject("true"), none(), No(NamespaceDisabled)),
            (none(), none(), inject("true"), none(), Inject),
            (none(), none(), none(), inject("TRUE"), Inject),
            (vec![(REVISION, "default")], none(), none(), none(), Inject),
            (vec![(REVISION, "next")], none(), inject("true"), none(), No(OtherRevision)),
            (vec![(REVISION, "next"), ns("enabled")[0]], none(), none(), none(), Inject),
            (none(), none(), vec![(REVISION, "default")], none(), Inject),
            (ns("enabled"), none(), vec![(REVISION, "next")], none(), No(OtherRevision)),
            (none(), vec![(LINKERD_INJECT, "enabled")], none(), none(), Inject),
            (none(), vec![(LINKERD_INJECT, "ingress")], none(), none(), Inject),
            (none(), vec![(LINKERD_INJECT, "disabled")], none(), none(), No(NotAsked)),
            (none(), none(), none(), vec![(LINKERD_INJECT, "enabled")], Inject),
            (ns("enabled"), none(), none(), vec![(LINKERD_INJECT, "disabled")], No(PodDisabled)),
        ] {
            let namespace = Namespace {
                name: "shop".to_owned(),
                labels: map(&ns_labels),
                annotations: map(&ns_notes),
            };
            let pod = json!({"metadata": {"labels": map(&labels), "annotations": map(&notes)}});
            let verdict = decide(&pod, &namespace, &Settings::default());
            assert_eq!(verdict, Ok(want), "{namespace:?} {pod}");
        }
    }

    #[test]
    fn given_pods_that_never_are_then_no_label_helps() {
        let asks = json!({"labels": {INJECT: "true"}, "annotations": {STATUS: "{}"}});
        let pod = |spec: Value| json!({"metadata": asks, "spec": spec});
        for (name, spec, want) in [
            ("kube-system", json!({}), Skip::SystemNamespace),
            ("kube-public", json!({}), Skip::SystemNamespace),
            ("kube-node-lease", json!({}), Skip::SystemNamespace),
            ("heddle-system", json!({}), Skip::SystemNamespace),
            ("shop", json!({"hostNetwork": true}), Skip::HostNetwork),
            ("shop", json!({"os": {"name": "windows"}}), Skip::Windows),
            ("shop", json!({"containers": [{"name": PROXY}]}), Skip::Injected),
            ("shop", json!({"initContainers": [{"name": PROXY}]}), Skip::Injected),
            (
                "shop",
                json!({"containers": [{"name": "istio-proxy", "image": "x"}]}),
                Skip::InjectedByAnother,
            ),
            ("shop", json!({"containers": [{"name": "linkerd-proxy"}]}), Skip::InjectedByAnother),
        ] {
            let namespace = Namespace { name: name.to_owned(), ..Namespace::default() };
            let verdict = decide(&pod(spec), &namespace, &Settings::default());
            assert_eq!(verdict, Ok(Verdict::Skip(want)));
        }
        let namespace = Namespace { name: "shop".to_owned(), ..Namespace::default() };
        // The mark alone, as in a template that somebody copied, is no sidecar.
        let verdict = decide(&pod(json!({})), &namespace, &Settings::default());
        assert_eq!(verdict, Ok(Verdict::Inject));
    }

    #[test]
    fn given_a_word_that_says_neither_then_it_is_refused_by_name() {
        for (metadata, says) in [
            (json!({"labels": {INJECT: "maybe"}}), "label sidecar.istio.io/inject: \"maybe\""),
            (json!({"annotations": {INJECT: "1"}}), "annotation sidecar.istio.io/inject: \"1\""),
            (
                json!({"annotations": {LINKERD_INJECT: "on"}}),
                "annotation linkerd.io/inject: \"on\" is not understood: use enabled, ingress or",
            ),
        ] {
            let pod = json!({"metadata": metadata});
            let refused = decide(&pod, &Namespace::default(), &Settings::default()).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}
