//! The bundle in every namespace, by an API server within the process.
//!
//! **Invariant:** time is virtual: pauses take none.

use std::time::SystemTime;

use identity::ca::CaSettings;
use identity::{Authority, Found, ServerIdentity};
use model::{Kind, ObjectRef};
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::event::SourceObject;
use crate::fake::{Fake, Key};
use crate::world::World;

const NAME: &str = "istio-ca-root-cert";

/// A writer that runs.
struct Writing {
    fake: Fake,
    shared: Arc<Shared>,
    ca: Arc<CertificateAuthority>,
    found: mpsc::Sender<Found>,
    _stop: watch::Sender<bool>,
}

fn authority() -> identity::CaFiles {
    let domain = "cluster.local".parse().expect("a domain");
    Authority::self_signed(&domain, SystemTime::now()).expect("made")
}

impl Writing {
    /// A writer that may write, in a cluster with these namespaces.
    fn start(fake: &Fake, namespaces: &[&str]) -> Self {
        let settings = CaSettings {
            trust_domain: "cluster.local".parse().expect("a domain"),
            server: ServerIdentity {
                id: "spiffe://cluster.local/ns/heddle-system/sa/heddle".parse().expect("an id"),
                names: Vec::new(),
            },
            lifetime: Duration::from_secs(3600),
            longest: Duration::from_secs(3600),
        };
        let ca = CertificateAuthority::start(settings, &authority(), Arc::default());
        let ca = ca.expect("it starts");
        let shared = Arc::new(Shared::default());
        shared.ready.send_replace(true);
        shared.leading.send_replace(true);
        let (stop, stopped) = watch::channel(false);
        let (found, finds) = mpsc::channel(1);
        tokio::spawn(Arc::clone(&ca).run(finds, stopped.clone()));
        let (client, ca_) = (fake.client(), Arc::clone(&ca));
        let writer = BundleWriter::new(client, NAME.to_owned(), ca_, Arc::clone(&shared));
        tokio::spawn(writer.run(stopped));
        let writing = Self { fake: fake.clone(), shared, ca, found, _stop: stop };
        writing.namespaces(namespaces);
        writing
    }

    /// What the world holds from now on.
    fn namespaces(&self, names: &[&str]) {
        let mut world = World::default();
        for name in names {
            let owner = ObjectRef {
                source: "kubernetes".into(),
                kind: Kind { group: "".into(), name: "Namespace".into() },
                namespace: "".into(),
                name: (*name).into(),
            };
            let object = SourceObject {
                written: None,
                generation: None,
                conditions: Vec::new(),
                problems: Vec::new(),
            };
            world.objects.insert_mut(Arc::new(owner), Arc::new(object));
        }
        self.shared.world.store(Arc::new(world));
    }

    /// The namespaces that have a ConfigMap, with its roots.
    fn held(&self) -> BTreeMap<String, String> {
        let state = self.fake.state();
        let maps = state.objects.get("configmaps").into_iter().flatten();
        let roots = |object: &Value| object["data"][ROOTS].as_str().unwrap_or_default().to_owned();
        maps.map(|((namespace, _), object)| (namespace.clone(), roots(object))).collect()
    }

    fn everywhere(&self, namespaces: &[&str]) -> BTreeMap<String, String> {
        let text = self.ca.authority().roots().to_pem();
        namespaces.iter().map(|namespace| ((*namespace).to_owned(), text.clone())).collect()
    }

    fn written(&self) -> usize {
        self.fake.state().written.len()
    }
}

async fn pass(seconds: u64) {
    for _ in 0..seconds * 2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn key(namespace: &str) -> Key {
    (namespace.to_owned(), NAME.to_owned())
}

#[tokio::test(start_paused = true)]
async fn given_namespaces_then_each_is_told_the_roots_once_and_those_of_the_system_are_not() {
    let fake = Fake::new();
    let writing = Writing::start(&fake, &["shop", "default", "kube-system", "kube-node-lease"]);
    pass(5).await;
    assert_eq!(writing.held(), writing.everywhere(&["default", "shop"]));
    pass(600).await;
    assert_eq!(writing.written(), 2, "only what differs is written");
    writing.namespaces(&["shop", "default", "new"]);
    pass(2).await;
    assert_eq!(writing.held(), writing.everywhere(&["default", "new", "shop"]));
    assert_eq!(writing.written(), 3);
}

#[tokio::test(start_paused = true)]
async fn given_a_config_map_that_is_deleted_or_edited_then_it_is_put_right() {
    let fake = Fake::new();
    let writing = Writing::start(&fake, &["shop", "default"]);
    pass(5).await;
    fake.state().delete("configmaps", &key("shop"));
    let mut edited = fake.state().objects["configmaps"][&key("default")].clone();
    edited["data"][ROOTS] = json!("nonsense");
    fake.state().put("configmaps", key("default"), edited);
    pass(2).await;
    assert_eq!(writing.held(), writing.everywhere(&["default", "shop"]));
    assert_eq!(writing.written(), 4);
    // While nobody watched, too.
    fake.state().cut();
    fake.state().delete("configmaps", &key("shop"));
    fake.state().compact();
    pass(60).await;
    assert_eq!(writing.held(), writing.everywhere(&["default", "shop"]));
}

#[tokio::test(start_paused = true)]
async fn given_other_roots_then_they_replace_the_old_everywhere() {
    let fake = Fake::new();
    let writing = Writing::start(&fake, &["shop", "default"]);
    pass(5).await;
    let before = writing.held();
    let mut next = authority();
    next.roots.extend(writing.ca.authority().roots().to_pem().into_bytes());
    assert!(writing.found.send(Found::Files(next)).await.is_ok());
    pass(5).await;
    assert_ne!(writing.held(), before);
    assert_eq!(writing.held(), writing.everywhere(&["default", "shop"]));
}

#[tokio::test(start_paused = true)]
async fn given_a_config_map_of_another_control_plane_then_it_is_left_alone() {
    let fake = Fake::new();
    let other = json!({
        "metadata": {"name": NAME, "namespace": "shop", "labels": labels("heddle-other")},
        "data": {ROOTS: "theirs"},
    });
    fake.state().put("configmaps", key("shop"), other);
    let istio = json!({"metadata": {"name": NAME, "namespace": "istio"}, "data": {ROOTS: "x"}});
    fake.state().put("configmaps", key("istio"), istio);
    let writing = Writing::start(&fake, &["shop", "istio", "default"]);
    pass(30).await;
    let held = writing.held();
    assert_eq!((&*held["shop"], &*held["istio"]), ("theirs", "x"));
    assert_eq!(writing.written(), 1);
}

#[tokio::test(start_paused = true)]
async fn given_a_replica_that_does_not_lead_then_it_writes_nothing() {
    let fake = Fake::new();
    let writing = Writing::start(&fake, &["shop"]);
    writing.shared.leading.send_replace(false);
    pass(30).await;
    assert_eq!(writing.written(), 0);
    writing.shared.leading.send_replace(true);
    pass(5).await;
    assert_eq!(writing.written(), 1);
    // Nor when it led before.
    writing.shared.leading.send_replace(false);
    fake.state().delete("configmaps", &key("shop"));
    pass(30).await;
    assert_eq!(writing.written(), 1);
}
