//! What was read of one kind: names and digests, so that a reconnect yields what vanished and an
//! edit that means nothing to us yields nothing.
//!
//! In: objects as the API server sends them. Out: changes for the loop.
//!
//! **Invariant:** keeps no object: what is in force is in the engine, and here is its digest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use config::yaml::Node;
use config::{Known, RawObject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use kube::core::DynamicResourceScope;
use model::{Change, ObjectRef, Severity};
use serde::{Deserialize, Deserializer};

use crate::event::SourceObject;
use crate::status::conditions;

/// Of which source every object here is.
const SOURCE: &str = "kubernetes";
/// Key of a ConfigMap that holds the mesh's settings.
const MESH_KEY: &str = "mesh";

/// An object as the API server sends it. Any JSON object is one: a field that is of the wrong type
/// is a problem of its object, never of the stream that it comes in.
#[derive(Clone, Debug)]
pub(super) struct Received {
    metadata: ObjectMeta,
    body: Node,
}

/// What a watch reads.
pub(super) enum Reading {
    /// Objects of a kind.
    Kind(&'static Known),
    /// The ConfigMap that holds the mesh's settings.
    MeshConfig {
        /// Its name.
        name: String,
    },
}

/// What the API server calls an object: namespace and name.
type Key = (String, String);

/// What was read of one kind.
pub(super) struct Index {
    source: Arc<str>,
    known: BTreeMap<Key, (Arc<ObjectRef>, u128)>,
    /// While everything is read anew: the keys that came so far.
    listed: Option<BTreeSet<Key>>,
}

/// A change for the loop.
pub(super) type Said = (Change, Option<Arc<SourceObject>>);

// === impl Received ===

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Node::deserialize(deserializer)?;
        let metadata = body.get("metadata");
        let text = |key: &str| Some(metadata?.get(key)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, body })
    }
}

impl kube::Resource for Received {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> std::borrow::Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> std::borrow::Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> std::borrow::Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> std::borrow::Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> std::borrow::Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Received {
    fn key(&self) -> Key {
        let ObjectMeta { name, namespace, .. } = &self.metadata;
        (namespace.clone().unwrap_or_default(), name.clone().unwrap_or_default())
    }
}

// === impl Reading ===

impl Reading {
    /// Kind, as people are told.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kind(known) => known.name,
            Self::MeshConfig { .. } => "MeshConfig",
        }
    }

    /// An object as the rest of the controller knows it. None when there is nothing to read; an
    /// error when it cannot be known what was meant.
    fn read(&self, source: &Arc<str>, received: Received) -> Result<Option<RawObject>, String> {
        match self {
            Self::Kind(known) => Ok(RawObject::from_api(source, known, received.body)),
            Self::MeshConfig { .. } => {
                let data = received.body.get("data").and_then(|d| d.get(MESH_KEY));
                let Some(text) = data.and_then(Node::as_str) else { return Ok(None) };
                let read = config::read_mesh_config(source, text);
                read.map(Some).map_err(|e| {
                    let (line, column) = (e.at.line, e.at.column);
                    format!("data.{MESH_KEY} line {line} column {column}: {}", e.message)
                })
            }
        }
    }
}

// === impl Index ===

impl Index {
    pub(super) fn new() -> Self {
        Self { source: Arc::from(SOURCE), known: BTreeMap::new(), listed: None }
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Everything is being read anew.
    pub(super) fn begin(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// Everything has been read: what did not come is gone.
    pub(super) fn finish(&mut self) -> Vec<Said> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        let gone: Vec<Key> = self.known.keys().filter(|k| !listed.contains(*k)).cloned().collect();
        gone.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Everything is gone.
    pub(super) fn clear(&mut self) -> Vec<Said> {
        self.begin();
        self.finish()
    }

    /// An object is gone.
    pub(super) fn deleted(&mut self, received: &Received) -> Option<Said> {
        self.remove(&received.key())
    }

    /// An object is new or has changed. None when it means the same to us.
    pub(super) fn applied(&mut self, reading: &Reading, received: Received) -> Option<Said> {
        let key = received.key();
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        let raw = match reading.read(&self.source, received) {
            Ok(Some(raw)) => raw,
            Ok(None) => return self.remove(&key),
            Err(why) => {
                let (namespace, name) = &key;
                tracing::error!(
                    "ConfigMap {namespace}/{name} {why}; what was in force stays in force"
                );
                return None;
            }
        };
        // Generation and status are part of what users see of an object that they write.
        let has_status = raw.known().is_some_and(|k| k.in_api && k.kind.spec().is_some());
        let generation = raw.generation.filter(|_| has_status);
        let conditions = if has_status { conditions::read(&raw.body) } else { Vec::new() };
        let owner = Arc::clone(&raw.owner);
        let (change, problems) = config::lower(raw);
        let object = SourceObject { written: None, generation, conditions, problems };
        let digest = object.digest(&change.rows);
        let known = self.known.insert(key, (owner, digest));
        if known.is_some_and(|(_, before)| before == digest) {
            return None;
        }
        for problem in &object.problems {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        Some((change, Some(Arc::new(object))))
    }

    fn remove(&mut self, key: &Key) -> Option<Said> {
        let (owner, _) = self.known.remove(key)?;
        Some((Change { owner, rows: Vec::new() }, None))
    }
}
