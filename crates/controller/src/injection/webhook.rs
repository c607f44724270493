//! `POST /inject`: reviews of pods that are to be created.
//!
//! In: an AdmissionReview (v1) of the API server. Out: the same with a patch, or with a refusal
//! that names what is wrong.
//!
//! The API server presents no certificate unless it is set up to, so anybody in the cluster may
//! call. What comes back is a function of what the caller sent, of labels of one namespace and of
//! settings that hold no secret; why a pod is passed over stands in the log only. What a call may
//! cost is bounded in bytes, in time and in number.
//!
//! **Invariant:** what is no creation of a pod is let through untouched; nothing is kept.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use injector::{Namespace, Outcome, Refusal, Skip, inject};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::known::{InForce, Known};
use crate::metrics::InjectionMetrics;

/// Longest body. An API server takes no larger object than 3 MiB, and wraps it.
const LONGEST: usize = 4 << 20;
/// Reviews at once, from the first byte of the body on; whoever comes then is told to come back.
const AT_ONCE: usize = 64;
/// Time for a body to come in.
const PATIENCE: Duration = Duration::from_secs(5);
/// What reviews are of.
const VERSION: &str = "admission.k8s.io/v1";
/// Longest uid that is given back.
const UID: usize = 128;

/// What answers.
struct Webhook {
    known: Arc<Known>,
    metrics: InjectionMetrics,
    at_once: Semaphore,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Admission,
}

#[derive(Deserialize)]
struct Admission {
    uid: String,
    kind: Kind,
    #[serde(default)]
    namespace: String,
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize, PartialEq, Eq)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

/// Why there is no answer.
struct Unanswered(StatusCode, &'static str);

/// The page.
pub(super) fn routes(known: Arc<Known>, metrics: InjectionMetrics) -> Router {
    let webhook = Webhook { known, metrics, at_once: Semaphore::new(AT_ONCE) };
    Router::new().route("/inject", post(answer)).with_state(Arc::new(webhook))
}

async fn answer(State(webhook): State<Arc<Webhook>>, request: Request) -> Response {
    webhook.metrics.requests.inc();
    let timer = webhook.metrics.time.start_timer();
    let answered = webhook.answer(request).await;
    timer.observe_duration();
    match answered {
        Ok(review) => axum::Json(review).into_response(),
        Err(Unanswered(status, why)) => {
            webhook.metrics.failures.inc();
            (status, format!("{why}\n")).into_response()
        }
    }
}

// === impl Webhook ===

impl Webhook {
    async fn answer(&self, request: Request) -> Result<Value, Unanswered> {
        let bad = |why| Unanswered(StatusCode::BAD_REQUEST, why);
        let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
        if !kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
            let why = "send a review as application/json";
            return Err(Unanswered(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let busy = Unanswered(StatusCode::TOO_MANY_REQUESTS, "too many reviews at once; try again");
        let Ok(_permit) = self.at_once.try_acquire() else { return Err(busy) };
        let body = body(request).await?;
        let review: Review =
            serde_json::from_slice(&body).map_err(|_| bad("the body is no AdmissionReview"))?;
        drop(body);
        if review.api_version != VERSION || review.kind != "AdmissionReview" {
            return Err(bad("only AdmissionReview of admission.k8s.io/v1 is understood"));
        }
        if review.request.uid.len() > UID {
            return Err(bad("the uid is too long"));
        }
        let response = self.review(&review.request).await?;
        Ok(json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response}))
    }

    async fn review(&self, request: &Admission) -> Result<Value, Unanswered> {
        let Admission { uid, kind, namespace, operation, object } = request;
        let untouched = json!({"uid": uid, "allowed": true});
        let pod = |k: &Kind| k.group.is_empty() && k.version == "v1" && k.kind == "Pod";
        if !pod(kind) || operation != "CREATE" {
            return Ok(untouched);
        }
        let not_yet = Unanswered(
            StatusCode::SERVICE_UNAVAILABLE,
            "the settings of injection are not known yet; the log of the controller says why",
        );
        let Some(in_force) = self.known.in_force() else { return Err(not_yet) };
        let name = object["metadata"]["name"].as_str();
        let name = name.or(object["metadata"]["generateName"].as_str()).unwrap_or_default();
        match self.decide(object, namespace, &in_force).await {
            Ok(Outcome::Skipped(why)) => {
                self.metrics.skipped.inc();
                tracing::debug!(namespace, pod = name, "not injected: {why}");
                Ok(untouched)
            }
            Ok(Outcome::Injected { patch, warnings }) => {
                let failed = "the patch cannot be written";
                let failed = |_| Unanswered(StatusCode::INTERNAL_SERVER_ERROR, failed);
                let patch = serde_json::to_vec(&patch).map_err(failed)?;
                self.metrics.successes.inc();
                tracing::debug!(namespace, pod = name, "injected");
                Ok(json!({
                    "uid": uid, "allowed": true, "patchType": "JSONPatch",
                    "patch": STANDARD.encode(patch), "warnings": warnings,
                }))
            }
            Err(refusal) => {
                self.metrics.failures.inc();
                tracing::info!(namespace, pod = name, "injection refused: {refusal}");
                let status =
                    json!({"code": 422, "reason": "Invalid", "message": refusal.to_string()});
                Ok(json!({"uid": uid, "allowed": false, "status": status}))
            }
        }
    }

    async fn decide(
        &self,
        pod: &Value,
        name: &str,
        in_force: &InForce,
    ) -> Result<Outcome, Refusal> {
        let InForce { settings, proxy } = in_force;
        let unknown = || Namespace { name: name.to_owned(), ..Namespace::default() };
        let namespace = self.known.namespace(name).await.unwrap_or_else(unknown);
        let outcome = inject(pod, &namespace, settings, proxy)?;
        let of_namespace = [Skip::NotAsked, Skip::NamespaceDisabled, Skip::OtherRevision];
        if !matches!(outcome, Outcome::Skipped(why) if of_namespace.contains(&why)) {
            return Ok(outcome);
        }
        // The API server called, so it has other labels than we do.
        match self.known.ask(name).await.filter(|now| *now != namespace) {
            Some(now) => inject(pod, &now, settings, proxy),
            None => Ok(outcome),
        }
    }
}

async fn body(request: Request) -> Result<Bytes, Unanswered> {
    let too_long =
        Unanswered(StatusCode::PAYLOAD_TOO_LARGE, "a review must not be longer than 4 MiB");
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > LONGEST) {
        return Err(too_long);
    }
    match timeout(PATIENCE, to_bytes(request.into_body(), LONGEST)).await {
        Ok(Ok(body)) => Ok(body),
        // It ends early, or is longer than it said.
        Ok(Err(_)) => Err(too_long),
        Err(_) => Err(Unanswered(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s")),
    }
}

#[cfg(test)]
mod tests;
