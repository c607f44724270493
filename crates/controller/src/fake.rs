//! An API server within the process: enough of one for discovery, lists, watches, writes and
//! reviews of tokens, and for everything that can go wrong with them.
//!
//! **Invariant:** answers as a real one does; what it holds is what the source must come to.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Resources that are served: group, plural.
pub(crate) const BUILT_IN: [(&str, &str); 8] = [
    ("", "namespaces"),
    ("", "nodes"),
    ("", "services"),
    ("", "pods"),
    ("", "configmaps"),
    ("", "secrets"),
    ("events.k8s.io", "events"),
    ("discovery.k8s.io", "endpointslices"),
];
pub(crate) const ISTIO: &str = "networking.istio.io";

/// A response, whole or as a stream.
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// The server.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

/// What becomes of a list that is asked for as a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Streaming {
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
pub(crate) struct State {
    /// By plural.
    pub(crate) objects: BTreeMap<String, BTreeMap<Key, Value>>,
    /// CRDs: plurals of Istio's group that are installed.
    pub(crate) installed: BTreeSet<String>,
    /// Whether every request fails.
    pub(crate) down: bool,
    /// Whether discovery fails.
    pub(crate) undiscoverable: bool,
    pub(crate) streaming: Streaming,
    /// What a review of a token says; of any other it says no.
    pub(crate) reviews: BTreeMap<String, Value>,
    /// The keys of tokens; none = they are not shown.
    pub(crate) keys: Option<Value>,
    /// How often they were read.
    pub(crate) keys_read: usize,
    /// Reviews that were asked for.
    pub(crate) reviewed: usize,
    /// Who may do what: user, verb, path.
    pub(crate) allowed: BTreeSet<(String, String, String)>,
    /// Objects that were written by clients: plural, namespace, name.
    pub(crate) written: Vec<(String, Key)>,
    /// Creations of what was there already.
    pub(crate) conflicts: usize,
    revision: u64,
    /// Revisions up to here are forgotten: who resumes from them must list again.
    compacted: u64,
    /// What happened: revision, plural, type, object.
    log: Vec<(u64, String, &'static str, Value)>,
    watchers: Vec<(Selector, mpsc::UnboundedSender<Bytes>)>,
}

/// Which objects are asked for.
#[derive(Clone)]
struct Selector {
    plural: String,
    namespace: Option<String>,
    /// Fields, as `spec.nodeName`: whether each must be equal to a value, or must not.
    fields: Vec<(String, bool, String)>,
}

// === impl Selector ===

impl Selector {
    fn new(plural: &str, namespace: Option<String>, query: Option<&String>) -> Self {
        let query = query.map(String::as_str).unwrap_or_default();
        let query = query.replace("%3D", "=").replace("%2C", ",").replace("%21", "!");
        let field = |part: &str| {
            let (field, value) = part.split_once('=').expect("a selector");
            let name = field.trim_end_matches('!');
            (name.to_owned(), name == field, value.to_owned())
        };
        let fields = query.split(',').filter(|part| !part.is_empty()).map(field).collect();
        Self { plural: plural.to_owned(), namespace, fields }
    }

    fn selects(&self, plural: &str, object: &Value) -> bool {
        let in_place = |n: &String| object["metadata"]["namespace"] == **n;
        let is = |(field, equal, value): &(String, bool, String)| {
            let found = field.split('.').fold(object, |object, part| &object[part]);
            (*found == **value) == *equal
        };
        self.plural == plural
            && self.namespace.as_ref().is_none_or(in_place)
            && self.fields.iter().all(is)
    }
}

// === impl Fake ===

impl Fake {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                // Others may be served while this travels.
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(fake.answer(&head, &body))
            }
        });
        Client::new(service, "heddle-system")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    fn answer(&self, head: &Parts, body: &[u8]) -> Answer {
        let path = head.uri.path().trim_start_matches('/').to_owned();
        let query: BTreeMap<String, String> = head
            .uri
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
        let written = || serde_json::from_slice::<Value>(body).expect("JSON");
        match parts.as_slice() {
            ["version"] => success(&json!({
                "major": "1", "minor": "34+", "gitVersion": "v1.34.0", "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            })),
            ["openid", "v1", "jwks"] => {
                state.keys_read += 1;
                match &state.keys {
                    Some(keys) => success(keys),
                    None => failure(StatusCode::FORBIDDEN, "not for you"),
                }
            }
            ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => state.review(written()),
            ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"] => {
                state.authorize(written())
            }
            ["api", "v1", "namespaces", namespace, plural, rest @ ..]
            | ["apis", _, _, "namespaces", namespace, plural, rest @ ..]
                if head.method != Method::GET =>
            {
                state.write(&head.method, namespace, plural, rest.first().copied(), written())
            }
            ["api", "v1", "namespaces", namespace, plural, name] => {
                state.object(plural, &((*namespace).to_owned(), (*name).to_owned()))
            }
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
    pub(crate) fn put(&mut self, plural: &str, key: Key, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let before = self.objects.entry(plural.to_owned()).or_default().insert(key, object.clone());
        self.tell(plural, if before.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    /// Delete an object.
    pub(crate) fn delete(&mut self, plural: &str, key: &Key) {
        let Some(mut object) = self.objects.get_mut(plural).and_then(|o| o.remove(key)) else {
            return;
        };
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.tell(plural, "DELETED", object);
    }

    /// What a review answers.
    fn review(&mut self, mut review: Value) -> Answer {
        self.reviewed += 1;
        let token = review["spec"]["token"].as_str().expect("a token").to_owned();
        assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
        let unknown = || json!({"authenticated": false, "error": "[invalid bearer token]"});
        review["status"] = self.reviews.get(&token).cloned().unwrap_or_else(unknown);
        success(&review)
    }

    /// What a review of access answers.
    fn authorize(&self, mut review: Value) -> Answer {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let spec = &review["spec"];
        let what = &spec["nonResourceAttributes"];
        let asked = (text(&spec["user"]), text(&what["verb"]), text(&what["path"]));
        review["status"] = json!({"allowed": self.allowed.contains(&asked)});
        success(&review)
    }

    /// Create an object, or apply one.
    fn write(
        &mut self,
        method: &Method,
        namespace: &str,
        plural: &str,
        name: Option<&str>,
        mut object: Value,
    ) -> Answer {
        let name = name.or_else(|| object["metadata"]["name"].as_str()).expect("a name");
        let key = (namespace.to_owned(), name.to_owned());
        let there = self.objects.get(plural).is_some_and(|objects| objects.contains_key(&key));
        if *method == Method::POST && there {
            self.conflicts += 1;
            return failure(StatusCode::CONFLICT, "it exists");
        }
        object["metadata"]["namespace"] = json!(namespace);
        self.written.push((plural.to_owned(), key.clone()));
        self.put(plural, key, object.clone());
        success(&object)
    }

    fn object(&self, plural: &str, key: &Key) -> Answer {
        match self.objects.get(plural).and_then(|objects| objects.get(key)) {
            Some(object) => success(object),
            None => failure(StatusCode::NOT_FOUND, "not found"),
        }
    }

    /// Cut every connection. What happens next is seen by who comes back, if it is remembered.
    pub(crate) fn cut(&mut self) {
        self.watchers.clear();
    }

    /// Forget the past.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
    }

    /// Remove a CRD: its objects go, then its watches end.
    pub(crate) fn uninstall(&mut self, plural: &str) {
        let keys: Vec<Key> =
            self.objects.get(plural).map(|o| o.keys().cloned().collect()).unwrap_or_default();
        for key in &keys {
            self.delete(plural, key);
        }
        self.installed.remove(plural);
        self.watchers.retain(|(watched, _)| watched.plural != plural);
    }

    fn tell(&mut self, plural: &str, what: &'static str, object: Value) {
        let line = line(what, &object);
        self.watchers.retain(|(watched, to)| {
            !watched.selects(plural, &object) || to.send(line.clone()).is_ok()
        });
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
        let selector = Selector::new(plural, namespace, query.get("fieldSelector"));
        let objects = self.objects.get(plural).into_iter().flat_map(|o| o.values());
        let objects: Vec<Value> =
            objects.filter(|o| selector.selects(plural, o)).cloned().collect();
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
            let missed = self.log.iter().filter(|(r, p, _, o)| *r > from && selector.selects(p, o));
            for (_, _, what, object) in missed {
                let _ = send.send(line(what, object));
            }
        }
        self.watchers.push((selector, send));
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
