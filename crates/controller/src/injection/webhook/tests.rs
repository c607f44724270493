//! The webhook, asked as an API server and as a stranger asks it.
//!
//! **Invariant:** time is virtual: pauses take none.

use axum::body::Body;
use futures::stream;
use http::Method;
use tower::ServiceExt as _;

use super::*;
use crate::fake::Fake;

const NAME: &str = "heddle";

/// A webhook, in a cluster with the namespace `shop`.
struct Asked {
    fake: Fake,
    routes: Router,
    metrics: InjectionMetrics,
    known: Arc<Known>,
}

// === impl Asked ===

impl Asked {
    fn new(settings: &str) -> Self {
        let fake = Fake::new();
        let known = Arc::new(Known::new(fake.client()));
        let metrics = InjectionMetrics::new().expect("metrics");
        let routes = routes(Arc::clone(&known), metrics.clone());
        let asked = Self { fake, routes, metrics, known };
        asked.settings(settings);
        asked.label("enabled");
        asked
    }

    /// One that follows settings and namespaces.
    async fn following(settings: &str) -> Self {
        let asked = Self::new(settings);
        tokio::spawn(Arc::clone(&asked.known).follow(NAME.to_owned()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        asked
    }

    fn settings(&self, text: &str) {
        let map = json!({
            "metadata": {"name": NAME, "namespace": "heddle-system"}, "data": {"injector": text},
        });
        let key = ("heddle-system".to_owned(), NAME.to_owned());
        self.fake.state().put("configmaps", key, map);
    }

    fn label(&self, injection: &str) {
        let labels = json!({"istio-injection": injection});
        let namespace = json!({"metadata": {"name": "shop", "labels": labels}});
        self.fake.state().put("namespaces", (String::new(), "shop".to_owned()), namespace);
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Body,
    ) -> (StatusCode, String) {
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, kind).body(body).expect("a request");
        let response = self.routes.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn review(&self, review: &Value) -> (StatusCode, String) {
        let body = Body::from(review.to_string());
        self.call(Method::POST, "/inject?timeout=10s", "application/json", body).await
    }

    /// What comes of a pod with these annotations.
    async fn pod(&self, annotations: Value) -> Value {
        let (status, answer) = self.review(&review(annotations)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["response"]["uid"], "one");
        answer["response"].clone()
    }
}

fn review(annotations: Value) -> Value {
    json!({
        "apiVersion": VERSION,
        "kind": "AdmissionReview",
        "request": {
            "uid": "one",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "namespace": "shop",
            "operation": "CREATE",
            "object": {
                "metadata": {"generateName": "web-", "annotations": annotations},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    })
}

fn patch_of(response: &Value) -> String {
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().expect("a patch")).expect("base64");
    String::from_utf8(patch).expect("text")
}

#[tokio::test(start_paused = true)]
async fn given_a_pod_of_a_labelled_namespace_then_it_is_patched_as_the_settings_say() {
    let asked = Asked::following("image: other/proxy:7").await;
    let response = asked.pod(json!({"sidecar.istio.io/agentLogLevel": "debug"})).await;
    let patch = patch_of(&response);
    assert!(patch.contains("heddle-init") && patch.contains("other/proxy:7"), "{patch}");
    // The version of the cluster decides.
    assert!(patch.contains("\"restartPolicy\":\"Always\""), "{patch}");
    assert!(response["warnings"][0].as_str().is_some_and(|w| w.contains("agentLogLevel")));
    asked.settings("{image: 'other/proxy:8', nativeSidecars: disabled}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let patch = patch_of(&asked.pod(json!({})).await);
    assert!(patch.contains("other/proxy:8") && !patch.contains("restartPolicy"), "{patch}");
    let counts = [&asked.metrics.requests, &asked.metrics.successes].map(|counter| counter.get());
    assert_eq!(counts, [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn given_a_pod_that_says_no_or_nonsense_then_it_is_let_through_or_refused_by_name() {
    let asked = Asked::following("").await;
    let response = asked.pod(json!({"sidecar.istio.io/inject": "false"})).await;
    assert_eq!(response, json!({"uid": "one", "allowed": true}));
    let response = asked.pod(json!({"sidecar.istio.io/proxyCPU": "lots"})).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(422)));
    let why = response["status"]["message"].as_str().expect("a message");
    assert!(why.starts_with("annotation sidecar.istio.io/proxyCPU: \"lots\""), "{why}");
    let counts = [&asked.metrics.skipped, &asked.metrics.failures].map(|counter| counter.get());
    assert_eq!(counts, [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn given_a_namespace_that_the_watch_does_not_know_yet_then_the_api_server_is_asked() {
    let asked = Asked::following("").await;
    asked.label("disabled");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(asked.pod(json!({})).await, json!({"uid": "one", "allowed": true}));
    // What was followed once, and is behind now.
    let late = Asked::new("");
    late.label("disabled");
    let follow = tokio::spawn(Arc::clone(&late.known).follow(NAME.to_owned()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    follow.abort();
    late.label("enabled");
    patch_of(&late.pod(json!({})).await);
}

#[tokio::test(start_paused = true)]
async fn given_settings_that_cannot_be_read_then_nobody_is_injected_by_guesswork() {
    let asked = Asked::following("imge: a").await;
    let (status, why) = asked.review(&review(json!({}))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{why}");
    asked.settings("image: good:1");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(patch_of(&asked.pod(json!({})).await).contains("good:1"));
    asked.settings("image: [");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(patch_of(&asked.pod(json!({})).await).contains("good:1"));
}

#[tokio::test(start_paused = true)]
async fn given_strangers_then_they_learn_nothing_and_cost_little() {
    let asked = Asked::following("").await;
    let json = "application/json";
    let other = |edit: fn(&mut Value)| {
        let mut review = review(json!({}));
        edit(&mut review);
        Body::from(review.to_string())
    };
    let pending = stream::pending::<Result<Bytes, std::io::Error>>();
    for (method, path, kind, body, want) in [
        (Method::GET, "/inject", json, Body::empty(), 405),
        (Method::POST, "/", json, Body::empty(), 404),
        (Method::POST, "/debug/syncz", json, Body::empty(), 404),
        (Method::POST, "/inject/", json, Body::empty(), 404),
        (Method::POST, "/inject", "text/plain", Body::empty(), 415),
        (Method::POST, "/inject", json, Body::empty(), 400),
        (Method::POST, "/inject", json, Body::from("[".repeat(100_000)), 400),
        (Method::POST, "/inject", json, Body::from("{}"), 400),
        (Method::POST, "/inject", json, other(|r| r["apiVersion"] = json!("v1beta1")), 400),
        (Method::POST, "/inject", json, other(|r| r["request"] = Value::Null), 400),
        (
            Method::POST,
            "/inject",
            json,
            other(|r| r["request"]["uid"] = json!("x".repeat(999))),
            400,
        ),
        (Method::POST, "/inject", json, Body::from(vec![b' '; LONGEST + 1]), 413),
        (Method::POST, "/inject", json, Body::from_stream(pending), 408),
    ] {
        let (status, why) = asked.call(method, path, kind, body).await;
        assert_eq!(status.as_u16(), want, "{path} {why}");
        assert!(why.len() < 100, "{why}");
    }
    // What is no creation of a pod is not looked at.
    for edit in [
        (|r| r["request"]["operation"] = json!("UPDATE")) as fn(&mut Value),
        |r| r["request"]["kind"]["kind"] = json!("Secret"),
        |r| r["request"]["kind"]["group"] = json!("example.com"),
    ] {
        let mut review = review(json!({"sidecar.istio.io/proxyCPU": "lots"}));
        edit(&mut review);
        let (status, answer) = asked.review(&review).await;
        assert_eq!(status, StatusCode::OK);
        assert!(answer.contains("\"allowed\":true") && !answer.contains("patch"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn given_more_reviews_at_once_than_may_be_then_the_last_are_told_to_come_back() {
    let asked = Asked::following("").await;
    let slow = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let calls =
        (0..AT_ONCE).map(|_| asked.call(Method::POST, "/inject", "application/json", slow()));
    let mut calls = Box::pin(futures::future::join_all(calls));
    assert!(futures::poll!(&mut calls).is_pending());
    let (status, _) = asked.review(&review(json!({}))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    // They are not waited for for long.
    let ended = calls.await;
    assert!(ended.iter().all(|(status, _)| *status == StatusCode::REQUEST_TIMEOUT));
    patch_of(&asked.pod(json!({})).await);
}
