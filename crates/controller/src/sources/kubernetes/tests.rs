//! The source against an API server that does everything to it that a real one does.
//!
//! **Invariant:** time is virtual: pauses take none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{KINDS, RawObject};
use model::Row;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::Kubernetes;
use crate::event::Event;
use crate::fake::{self, Fake, ISTIO, Streaming};
use crate::sources::{SourceState, SourceStates};

/// A source that runs, and what it said.
struct Running {
    fake: Fake,
    inbox: mpsc::Receiver<Event>,
    states: Arc<SourceStates>,
    synced: usize,
    /// Events that brought objects.
    updates: usize,
    rows: BTreeMap<String, Vec<Row>>,
    _stop: watch::Sender<bool>,
}

impl Running {
    fn start(fake: &Fake) -> Self {
        let (sender, inbox) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let states = Arc::new(SourceStates::default());
        let source = Kubernetes {
            client: fake.client(),
            mesh_config_map: "heddle".to_owned(),
            states: Arc::clone(&states),
        };
        tokio::spawn(source.run(sender, stopped));
        Self {
            fake: fake.clone(),
            inbox,
            states,
            synced: 0,
            updates: 0,
            rows: BTreeMap::new(),
            _stop: stop,
        }
    }

    async fn synced(fake: &Fake) -> Self {
        let mut running = Self::start(fake);
        running.until("everything to be read", |r| r.synced == 1).await;
        running
    }

    /// Let this much time pass, and take in what is said.
    async fn pass(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.inbox.recv()).await {
            match event {
                Event::Source(update) => {
                    self.updates += 1;
                    for (change, object) in update.objects {
                        let name = change.owner.to_string();
                        match object {
                            Some(_) => {
                                self.rows.insert(name, change.rows);
                            }
                            None => {
                                assert!(self.rows.remove(&name).is_some(), "{name} was not there");
                            }
                        }
                    }
                }
                Event::Synced => self.synced += 1,
                other => panic!("a source says nothing like {other}"),
            }
        }
    }

    async fn until(&mut self, what: &str, met: impl Fn(&Self) -> bool) {
        for _ in 0..120 {
            self.pass(Duration::from_millis(500)).await;
            if met(self) {
                return;
            }
        }
        panic!("waited a minute for {what}; {:?}", self.states.list());
    }

    fn state(&self, kind: &str) -> SourceState {
        self.states.list()[kind].state
    }

    fn names(&self) -> Vec<&str> {
        self.rows.keys().map(String::as_str).collect()
    }

    /// What must have been said of what the server holds.
    fn expected(&self) -> BTreeMap<String, Vec<Row>> {
        let source = Arc::from("kubernetes");
        let state = self.fake.state();
        let mut out = BTreeMap::new();
        for known in KINDS.iter().filter(|k| k.in_api) {
            for object in state.objects.get(known.plural).into_iter().flat_map(|o| o.values()) {
                let body = serde_json::from_value(object.clone()).expect("any JSON is a tree");
                let Some(raw) = RawObject::from_api(&source, known, body) else { continue };
                let (change, _) = config::lower(raw);
                out.insert(change.owner.to_string(), change.rows);
            }
        }
        out
    }
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(test);
}

fn key(name: &str) -> (String, String) {
    ("default".to_owned(), name.to_owned())
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default",
            "managedFields": [{"manager": "kubectl"}]},
        "spec": {"ports": [{"port": port, "name": "http"}], "selector": {"app": name}},
    })
}

fn rule(name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default", "generation": 1,
            "creationTimestamp": "2026-01-31T12:00:00Z"},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]},
    })
}

fn installed() -> Fake {
    let fake = Fake::new();
    for known in KINDS.iter().filter(|k| k.group == ISTIO) {
        fake.state().installed.insert(known.plural.to_owned());
    }
    fake
}

#[test]
fn given_a_cluster_when_everything_is_read_then_that_is_said_once() {
    run(async {
        let fake = installed();
        fake.state().put("services", key("a"), service("a", 80));
        fake.state().put("virtualservices", key("r"), rule("r", "a"));
        let mut source = Running::synced(&fake).await;
        assert_eq!(source.names(), ["Service default/a", "VirtualService default/r"]);
        let Row::RouteRules(rules) = &source.rows["VirtualService default/r"][0] else {
            panic!("rules")
        };
        assert_eq!(rules.created, Some(1_769_860_800), "precedence goes by creation time");
        source.pass(Duration::from_secs(600)).await;
        assert_eq!(source.synced, 1);
    });
}

#[test]
fn given_a_server_that_cannot_stream_lists_then_it_is_listed() {
    for streaming in [Streaming::Refused, Streaming::Fails] {
        run(async move {
            let fake = installed();
            fake.state().streaming = streaming;
            fake.state().put("services", key("a"), service("a", 80));
            let mut source = Running::synced(&fake).await;
            assert_eq!(source.names(), ["Service default/a"]);
            fake.state().put("services", key("b"), service("b", 80));
            source.until("the new service", |s| s.rows.len() == 2).await;
            assert_eq!(source.state("Service"), SourceState::Watching);
        });
    }
}

#[test]
fn given_an_object_that_vanished_while_nobody_looked_then_it_is_gone() {
    run(async {
        let fake = installed();
        fake.state().put("services", key("a"), service("a", 80));
        fake.state().put("services", key("b"), service("b", 80));
        let mut source = Running::synced(&fake).await;
        fake.state().cut();
        fake.state().delete("services", &key("a"));
        fake.state().compact();
        source.until("the deletion", |s| s.names() == ["Service default/b"]).await;
        assert_eq!(source.state("Service"), SourceState::Watching);
    });
}

#[test]
fn given_an_edit_that_means_nothing_to_us_then_nothing_is_said() {
    run(async {
        let fake = installed();
        fake.state().put("services", key("a"), service("a", 80));
        let mut source = Running::synced(&fake).await;
        let before = source.updates;
        let mut edited = service("a", 80);
        edited["metadata"]["annotations"] = json!({"note": "hello"});
        edited["metadata"]["managedFields"] = json!([{"manager": "somebody"}]);
        edited["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
        fake.state().put("services", key("a"), edited);
        source.pass(Duration::from_secs(5)).await;
        assert_eq!(source.updates, before);
        fake.state().put("services", key("a"), service("a", 81));
        source.until("an edit that does mean something", |s| s.updates == before + 1).await;
    });
}

#[test]
fn r89_given_a_server_that_is_away_then_what_was_read_stays_and_the_state_says_since_when() {
    run(async {
        let fake = installed();
        fake.state().put("services", key("a"), service("a", 80));
        let mut source = Running::synced(&fake).await;
        fake.state().down = true;
        fake.state().cut();
        source.pass(Duration::from_secs(30)).await;
        assert_eq!(source.names(), ["Service default/a"]);
        let stale = &source.states.list()["Service"];
        assert_eq!(stale.state, SourceState::Stale);
        assert!(stale.error.as_ref().is_some_and(|e| e.contains("not ready")), "{stale:?}");
        fake.state().put("services", key("b"), service("b", 80));
        fake.state().down = false;
        let back = tokio::time::Instant::now();
        source.until("what changed meanwhile", |s| s.rows.len() == 2).await;
        assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
        source.until("the state", |s| s.state("Pod") == SourceState::Watching).await;
    });
}

#[test]
fn given_a_server_that_is_away_at_the_start_then_nothing_counts_as_read() {
    run(async {
        let fake = installed();
        fake.state().down = true;
        let mut source = Running::start(&fake);
        source.pass(Duration::from_secs(120)).await;
        assert_eq!(source.synced, 0);
        fake.state().down = false;
        source.until("everything to be read", |s| s.synced == 1).await;
    });
}

#[test]
fn given_no_crd_then_the_kind_counts_as_read_and_is_found_once_it_is_installed() {
    run(async {
        let fake = Fake::new();
        let mut source = Running::synced(&fake).await;
        assert_eq!(source.state("VirtualService"), SourceState::Absent);
        fake.state().installed.insert("virtualservices".to_owned());
        fake.state().put("virtualservices", key("r"), rule("r", "a"));
        source.until("the rule", |s| s.names() == ["VirtualService default/r"]).await;
        assert_eq!(source.state("Gateway"), SourceState::Absent);
    });
}

#[test]
fn given_a_crd_that_is_removed_while_nobody_looked_then_its_objects_are_gone() {
    run(async {
        let fake = installed();
        fake.state().put("virtualservices", key("r"), rule("r", "a"));
        let mut source = Running::synced(&fake).await;
        fake.state().cut();
        fake.state().uninstall("virtualservices");
        fake.state().compact();
        source.until("the rule to go", |s| s.rows.is_empty()).await;
        assert_eq!(source.state("VirtualService"), SourceState::Absent);
    });
}

#[test]
fn r89_given_a_resource_that_is_not_found_while_discovery_fails_then_what_was_read_stays() {
    run(async {
        let fake = installed();
        fake.state().put("virtualservices", key("r"), rule("r", "a"));
        let mut source = Running::synced(&fake).await;
        {
            let mut state = fake.state();
            state.undiscoverable = true;
            state.installed.clear();
            state.cut();
        }
        source.pass(Duration::from_secs(60)).await;
        assert_eq!(source.names(), ["VirtualService default/r"]);
        assert_eq!(source.state("VirtualService"), SourceState::Stale);
    });
}

#[test]
fn given_mesh_settings_in_a_config_map_then_they_follow_it() {
    let map = |name: &str, text: &str| json!({"metadata": {"name": name, "namespace": "heddle-system"}, "data": {"mesh": text}});
    let at = |name: &str| ("heddle-system".to_owned(), name.to_owned());
    let timeout = |s: &Running| match s.rows.get("MeshConfig mesh").map(Vec::as_slice) {
        Some([Row::Mesh(mesh)]) => Some(mesh.connect_timeout),
        _ => None,
    };
    run(async move {
        let fake = installed();
        fake.state().put("configmaps", at("heddle"), map("heddle", "connectTimeout: 3s"));
        fake.state().put("configmaps", at("other"), map("other", "connectTimeout: 4s"));
        let mut source = Running::synced(&fake).await;
        assert_eq!(timeout(&source), Some(Duration::from_secs(3)));
        fake.state().put("configmaps", at("heddle"), map("heddle", "connectTimeout: ["));
        source.pass(Duration::from_secs(5)).await;
        assert_eq!(timeout(&source), Some(Duration::from_secs(3)), "no YAML: it stays");
        fake.state().put("configmaps", at("heddle"), map("heddle", "connectTimeout: 5s"));
        source.until("the new setting", |s| timeout(s) == Some(Duration::from_secs(5))).await;
        fake.state().delete("configmaps", &at("heddle"));
        source.until("the defaults", |s| timeout(s).is_none()).await;
    });
}

#[test]
fn given_very_large_objects_then_they_are_read_like_any_other() {
    run(async {
        let fake = installed();
        for slice in 0..10 {
            let endpoints: Vec<Value> = (0..1000)
                .map(|n| json!({"addresses": [format!("10.{slice}.{}.{}", n / 250, n % 250)]}))
                .collect();
            let name = format!("a-{slice}");
            let object = json!({
                "metadata": {"name": name, "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "a"}},
                "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
            });
            fake.state().put("endpointslices", key(&name), object);
        }
        let mut large = rule("r", "a");
        large["metadata"]["annotations"] = json!({"note": "x".repeat(1_500_000)});
        fake.state().put("virtualservices", key("r"), large);
        let source = Running::synced(&fake).await;
        assert_eq!(source.rows, source.expected());
        let endpoints = source.rows.values().flatten().map(|row| match row {
            Row::EndpointSlice(slice) => slice.endpoints.len(),
            _ => 0,
        });
        assert_eq!(endpoints.sum::<usize>(), 10_000);
    });
}

#[test]
fn given_a_status_that_we_wrote_then_it_is_known_and_only_that_is_news() {
    run(async {
        let fake = installed();
        fake.state().put("virtualservices", key("r"), rule("r", "a"));
        let mut source = Running::synced(&fake).await;
        let before = source.updates;
        let mut written = rule("r", "a");
        written["status"] = json!({"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
             "observedGeneration": 1, "lastTransitionTime": "2026-01-31T12:00:00Z"}]});
        fake.state().put("virtualservices", key("r"), written.clone());
        source.until("our status", |s| s.updates == before + 1).await;
        // What others say in the status of an object is not our business.
        let conditions = written["status"]["conditions"].as_array_mut().expect("a list");
        conditions.push(json!({"type": "Reconciled", "status": "True"}));
        fake.state().put("virtualservices", key("r"), written);
        source.pass(Duration::from_secs(5)).await;
        assert_eq!(source.updates, before + 1);
    });
}

/// Something that happens to a cluster.
#[derive(Clone, Debug)]
enum Step {
    Put { plural: &'static str, name: usize, object: Value },
    Delete { plural: &'static str, name: usize },
    Cut,
    Compact,
    Down(bool),
    Undiscoverable(bool),
    Streaming(Streaming),
    Uninstall(&'static str),
    Install(&'static str),
    Pass(u64),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn plural() -> impl Strategy<Value = &'static str> {
    let all: Vec<_> = KINDS.iter().filter(|k| k.in_api).map(|k| k.plural).collect();
    proptest::sample::select(all)
}

fn custom() -> impl Strategy<Value = &'static str> {
    let all: Vec<_> = KINDS.iter().filter(|k| k.group == ISTIO).map(|k| k.plural).collect();
    proptest::sample::select(all)
}

/// Any JSON, with the names that matter among its keys.
fn json_value() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 14] = [
        "spec",
        "ports",
        "port",
        "name",
        "selector",
        "hosts",
        "http",
        "route",
        "endpoints",
        "addresses",
        "conditions",
        "status",
        "podIPs",
        "labels",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u16..1000).prop_map(Value::from),
        proptest::sample::select(vec!["", "a", "10.0.0.1", "fd00::1", "80", "~", "*", "\u{0}é"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(proptest::sample::select(&KEYS[..]), inner, 0..4)
                .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

/// An object that an API server could hold, well or badly filled.
fn object() -> impl Strategy<Value = Value> {
    let whole = prop_oneof![
        (1_u16..5).prop_map(|port| service("x", port)["spec"].clone()),
        Just(rule("x", "a")["spec"].clone()),
        json_value(),
    ];
    (whole, json_value(), json_value(), json_value()).prop_map(|(spec, status, ports, labels)| {
        json!({
            "metadata": {"labels": labels, "generation": 3}, "spec": spec, "status": status,
            "ports": ports, "endpoints": [{"addresses": ["10.0.0.1"], "conditions": status}],
            "addressType": "IPv4",
        })
    })
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        6 => (plural(), name(), object())
            .prop_map(|(plural, name, object)| Step::Put { plural, name, object }),
        3 => (plural(), name()).prop_map(|(plural, name)| Step::Delete { plural, name }),
        2 => Just(Step::Cut),
        1 => Just(Step::Compact),
        1 => any::<bool>().prop_map(Step::Down),
        1 => any::<bool>().prop_map(Step::Undiscoverable),
        1 => proptest::sample::select(vec![Streaming::Works, Streaming::Refused, Streaming::Fails])
            .prop_map(Step::Streaming),
        1 => custom().prop_map(Step::Uninstall),
        2 => custom().prop_map(Step::Install),
        3 => (0_u64..20_000).prop_map(Step::Pass),
    ]
}

fn take(fake: &Fake, step: Step) {
    let mut state = fake.state();
    let served = |state: &fake::State, plural: &str| {
        fake::BUILT_IN.iter().any(|(_, p)| *p == plural) || state.installed.contains(plural)
    };
    let at = |plural: &str, name: usize| {
        let namespace = if plural == "namespaces" { "" } else { "default" };
        (namespace.to_owned(), NAMES[name].to_owned())
    };
    match step {
        Step::Put { plural, name, mut object } => {
            if served(&state, plural) {
                object["metadata"]["name"] = json!(NAMES[name]);
                if plural != "namespaces" {
                    object["metadata"]["namespace"] = json!("default");
                }
                state.put(plural, at(plural, name), object);
            }
        }
        Step::Delete { plural, name } => state.delete(plural, &at(plural, name)),
        Step::Cut => state.cut(),
        Step::Compact => state.compact(),
        Step::Down(down) => {
            state.down = down;
            if down {
                state.cut();
            }
        }
        Step::Undiscoverable(yes) => state.undiscoverable = yes,
        Step::Streaming(streaming) => state.streaming = streaming,
        Step::Uninstall(plural) => state.uninstall(plural),
        Step::Install(plural) => {
            state.installed.insert(plural.to_owned());
        }
        Step::Pass(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_server_in_the_end_exactly_what_it_holds_is_known(
        steps in prop::collection::vec(step(), 1..24)
    ) {
        run(async move {
            let fake = installed();
            let mut source = Running::start(&fake);
            for step in steps {
                if let Step::Pass(milliseconds) = step {
                    source.pass(Duration::from_millis(milliseconds)).await;
                }
                take(&fake, step);
            }
            {
                let mut state = fake.state();
                (state.down, state.undiscoverable) = (false, false);
                // Who was cut off by the failures of before is told by the end of its stream.
                state.cut();
            }
            let met = |s: &Running| s.synced == 1 && s.rows == s.expected();
            source.until("what the server holds", met).await;
        });
    }
}
