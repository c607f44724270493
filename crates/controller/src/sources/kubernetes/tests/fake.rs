//! An API server within the process: enough of one for discovery, lists, watches, and for
//! everything that can go wrong with them.
//!
//! **Invariant:** answers as a real one does; what it holds is what the source must come to.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Resources that are served: group, plural.
pub(super) const BUILT_IN: [(&str, &str); 6] = [
    ("", "namespaces"),
    ("", "nodes"),
    ("", "services"),
    ("", "pods"),
    ("", "configmaps"),
    ("discovery.k8s.io", "endpointslices"),
];
pub(super) const ISTIO: &str = "networking.istio.io";

/// A response, whole or as a stream.
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Namespace and name.
type Key = (String, String);

/// The server.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

/// What becomes of a list that is asked for as a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Streaming {
    /// It comes.
    #[default]
    Works,
    /// It is refused, as by older servers.
    Refused,
    /// It fails, as with an older etcd.
    Fails,
}

/// What it holds, and how it is doing.
#[derive(Default)]
pub(super) struct State {
    /// By plural.
    pub(super) objects: BTreeMap<String, BTreeMap<Key, Value>>,
    /// CRDs: plurals of Istio's group that are installed.
    pub(super) installed: BTreeSet<String>,
    /// Whether every request fails.
    pub(super) down: bool,
    /// Whether discovery fails.
    pub(super) undiscoverable: bool,
    pub(super) streaming: Streaming,
    revision: u64,
    /// Revisions up to here are forgotten: who resumes from them must list again.
    compacted: u64,
    /// What happened: revision, plural, type, object.
    log: Vec<(u64, String, &'static str, Value)>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
}

// === impl Fake ===

impl Fake {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(&request)) }
        });
        Client::new(service, "heddle-system")
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let mut state = self.state();
        if state.down {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "the server is not ready");
        }
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["apis"] | ["apis", _, _] if state.undiscoverable => {
                failure(StatusCode::INTERNAL_SERVER_ERROR, "etcd is away")
            }
            ["apis"] => state.groups(),
            ["apis", group, version] => state.resources(group, version),
            ["api", "v1", rest @ ..] => state.resource("", rest, &query),
            ["apis", group, _, rest @ ..] => state.resource(group, rest, &query),
            _ => failure(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}

// === impl State ===

impl State {
    /// Write an object.
    pub(super) fn put(&mut self, plural: &str, key: Key, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let before = self.objects.entry(plural.to_owned()).or_default().insert(key, object.clone());
        self.tell(plural, if before.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    /// Delete an object.
    pub(super) fn delete(&mut self, plural: &str, key: &Key) {
        let Some(mut object) = self.objects.get_mut(plural).and_then(|o| o.remove(key)) else {
            return;
        };
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.tell(plural, "DELETED", object);
    }

    /// Cut every connection. What happens next is seen by who comes back, if it is remembered.
    pub(super) fn cut(&mut self) {
        self.watchers.clear();
    }

    /// Forget the past.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
    }

    /// Remove a CRD: its objects go, then its watches end.
    pub(super) fn uninstall(&mut self, plural: &str) {
        let keys: Vec<Key> =
            self.objects.get(plural).map(|o| o.keys().cloned().collect()).unwrap_or_default();
        for key in &keys {
            self.delete(plural, key);
        }
        self.installed.remove(plural);
        self.watchers.retain(|(watched, _)| watched != plural);
    }

    fn tell(&mut self, plural: &str, what: &'static str, object: Value) {
        let line = line(what, &object);
        self.watchers.retain(|(watched, to)| watched != plural || to.send(line.clone()).is_ok());
        self.log.push((self.revision, plural.to_owned(), what, object));
    }

    fn groups(&self) -> Answer {
        let group = |name: &str, versions: &[&str]| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
                .collect();
            json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
        };
        let mut groups = vec![group("discovery.k8s.io", &["v1"])];
        if !self.installed.is_empty() {
            groups.push(group(ISTIO, &["v1", "v1beta1"]));
        }
        success(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
    }

    fn resources(&self, group: &str, version: &str) -> Answer {
        let built_in = BUILT_IN.iter().filter(|(g, _)| *g == group).map(|(_, p)| (*p).to_owned());
        let custom = self.installed.iter().filter(|_| group == ISTIO).cloned();
        let resources: Vec<Value> = built_in
            .chain(custom)
            .map(|plural| {
                json!({"name": plural, "singularName": "", "namespaced": true, "kind": "X",
                       "verbs": ["list", "watch"]})
            })
            .collect();
        if resources.is_empty() {
            return failure(StatusCode::NOT_FOUND, "404 page not found");
        }
        success(&json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("{group}/{version}"), "resources": resources,
        }))
    }

    fn resource(&mut self, group: &str, rest: &[&str], query: &BTreeMap<String, String>) -> Answer {
        let (namespace, plural) = match rest {
            ["namespaces", namespace, plural] => (Some((*namespace).to_owned()), *plural),
            [plural] => (None, *plural),
            _ => return failure(StatusCode::NOT_FOUND, "404 page not found"),
        };
        let there = match group {
            ISTIO => self.installed.contains(plural),
            _ => BUILT_IN.contains(&(group, plural)),
        };
        if !there {
            return failure(StatusCode::NOT_FOUND, "404 page not found");
        }
        let name = query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name%3D"));
        let selected = |object: &Value| {
            let metadata = &object["metadata"];
            namespace.as_ref().is_none_or(|n| metadata["namespace"] == **n)
                && name.is_none_or(|n| metadata["name"] == n)
        };
        let objects = self.objects.get(plural).into_iter().flat_map(|o| o.values());
        let objects: Vec<Value> = objects.filter(|o| selected(o)).cloned().collect();
        let revision = self.revision.to_string();
        if !query.contains_key("watch") {
            return success(&json!({
                "kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": revision}, "items": objects,
            }));
        }
        let (send, receive) = mpsc::unbounded_channel();
        let from = query.get("resourceVersion").map_or(0, |v| v.parse().expect("a revision"));
        if query.contains_key("sendInitialEvents") {
            match self.streaming {
                Streaming::Works => {}
                Streaming::Refused => {
                    let message = "sendInitialEvents: Forbidden: forbidden for watch";
                    return failure(StatusCode::UNPROCESSABLE_ENTITY, message);
                }
                Streaming::Fails => {
                    let message = "the required storage feature RequestWatchProgress is disabled";
                    let _ = send.send(line("ERROR", &status(500, message)));
                    return stream(receive);
                }
            }
            for object in &objects {
                let _ = send.send(line("ADDED", object));
            }
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let metadata = json!({"resourceVersion": revision, "annotations": annotations});
            let bookmark = json!({"kind": "X", "apiVersion": "v1", "metadata": metadata});
            let _ = send.send(line("BOOKMARK", &bookmark));
        } else if from < self.compacted {
            let _ = send.send(line("ERROR", &status(410, "too old resource version")));
            return stream(receive);
        } else {
            let missed =
                self.log.iter().filter(|(r, p, _, o)| *r > from && p == plural && selected(o));
            for (_, _, what, object) in missed {
                let _ = send.send(line(what, object));
            }
        }
        self.watchers.push((plural.to_owned(), send));
        stream(receive)
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": what, "object": object})))
}

fn stream(receive: mpsc::UnboundedReceiver<Bytes>) -> Answer {
    use tokio_stream::StreamExt as _;
    let frames =
        UnboundedReceiverStream::new(receive).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn success(body: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync())
}

fn failure(code: StatusCode, message: &str) -> Answer {
    let mut response = success(&status(code.as_u16(), message));
    *response.status_mut() = code;
    response
}

fn status(code: u16, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Unknown", "code": code,
    })
}
