//! A pod as JSON, and the few fields of it that matter here.
//!
//! **Invariant:** reads only; a field of another type than the API's counts as absent, but for
//! those that injection extends: `check` finds them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::refusal::Fault;

/// A pod, or the template of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a>(pub(crate) &'a Value);

/// A container and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Container<'a> {
    /// `containers` or `initContainers`.
    pub(crate) list: &'static str,
    /// Place in that list.
    pub(crate) index: usize,
    /// The container.
    pub(crate) body: &'a Value,
}

/// The list of containers that run for the pod's life.
pub(crate) const CONTAINERS: &str = "containers";
/// The list of containers that come before.
pub(crate) const INIT_CONTAINERS: &str = "initContainers";

// === impl Pod ===

impl<'a> Pod<'a> {
    pub(crate) fn spec(self) -> &'a Value {
        &self.0["spec"]
    }

    pub(crate) fn label(self, key: &str) -> Option<&'a str> {
        self.0["metadata"]["labels"].get(key)?.as_str()
    }

    pub(crate) fn annotation(self, key: &str) -> Option<&'a str> {
        self.0["metadata"]["annotations"].get(key)?.as_str()
    }

    pub(crate) fn annotations(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0["metadata"]["annotations"].as_object();
        all.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
    }

    /// Every container, those that come before first.
    pub(crate) fn containers(self) -> impl Iterator<Item = Container<'a>> {
        [INIT_CONTAINERS, CONTAINERS].into_iter().flat_map(move |list| {
            let all = self.spec()[list].as_array();
            let all = all.into_iter().flatten().enumerate();
            all.map(move |(index, body)| Container { list, index, body })
        })
    }

    /// The items of a list of the spec.
    pub(crate) fn list(self, key: &str) -> &'a [Value] {
        self.spec()[key].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The name of the workload that this is a pod of: what its owner is called, without what a
    /// controller adds.
    pub(crate) fn workload(self) -> Option<&'a str> {
        let metadata = &self.0["metadata"];
        let owners = metadata["ownerReferences"].as_array();
        let owner = owners.into_iter().flatten().find(|o| o["controller"] == true);
        if let Some(owner) = owner
            && let Some(name) = owner["name"].as_str()
        {
            let stem = name.rsplit_once('-').map(|(stem, last)| (stem, Some(last)));
            let (stem, last) = stem.unwrap_or((name, None));
            return Some(match owner["kind"].as_str() {
                Some("ReplicaSet") if last.is_some() && last == self.label("pod-template-hash") => {
                    stem
                }
                // Of a CronJob: the time, in minutes since the epoch.
                Some("Job") if last.is_some_and(is_minutes) => stem,
                _ => name,
            });
        }
        let generated = || metadata["generateName"].as_str().map(|n| n.trim_end_matches('-'));
        metadata["name"].as_str().or_else(generated)
    }

    /// What must have its place and type before anything can be added.
    pub(crate) fn check(self) -> Result<(), Fault> {
        let is = |value: &Value, right: fn(&Value) -> bool| value.is_null() || right(value);
        let wrong = |place: String, what: &str| Err(Fault::field(place, format!("must be {what}")));
        if !self.spec().is_object() {
            return wrong("spec".to_owned(), "the specification of a pod");
        }
        for list in [CONTAINERS, INIT_CONTAINERS, "volumes", "imagePullSecrets"] {
            let value = &self.spec()[list];
            let items = |v: &Value| v.as_array().is_some_and(|a| a.iter().all(Value::is_object));
            if !is(value, items) {
                return wrong(format!("spec.{list}"), "a list of objects");
            }
        }
        if self.list(CONTAINERS).is_empty() {
            return wrong("spec.containers".to_owned(), "a list of at least one container");
        }
        for key in ["labels", "annotations"] {
            let texts = |v: &Value| v.as_object().is_some_and(|m| m.values().all(Value::is_string));
            if !is(&self.0["metadata"][key], texts) {
                return wrong(format!("metadata.{key}"), "a map of texts");
            }
        }
        Ok(())
    }
}

fn is_minutes(text: &str) -> bool {
    text.len() >= 8 && text.bytes().all(|b| b.is_ascii_digit())
}

// === impl Container ===

impl<'a> Container<'a> {
    pub(crate) fn name(self) -> &'a str {
        self.body["name"].as_str().unwrap_or_default()
    }

    /// Whether it runs as long as the pod does.
    pub(crate) fn stays(self) -> bool {
        self.list == CONTAINERS || self.body["restartPolicy"] == "Always"
    }

    /// Where it stands, as messages say it.
    pub(crate) fn place(self) -> String {
        format!("spec.{}[{}] ({})", self.list, self.index, self.name())
    }

    /// Its ports by name.
    pub(crate) fn ports(self) -> BTreeMap<&'a str, u16> {
        let all = self.body["ports"].as_array();
        let port = |p: &'a Value| Some((p["name"].as_str()?, port_of(&p["containerPort"])?));
        all.into_iter().flatten().filter_map(port).collect()
    }
}

/// A port number.
pub(crate) fn port_of(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

/// An object of these fields, without those that are null.
pub(crate) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(fields.map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}
