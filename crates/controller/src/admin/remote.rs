//! `/debug/` for operators who are not on this machine.
//!
//! In: a request, and what its connection or its token proves. Out: the page, if the API server
//! lets the caller's ServiceAccount have it: by RBAC for `nonResourceURLs`, as `/debug/syncz`.
//!
//! **Invariant:** nobody is let in whom the API server was not asked about for this very request;
//! not knowing is no.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use identity::{Authenticator, Peer, Refusal, SpiffeId};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Admin, pages};

/// Questions to the API server at once; whoever comes then waits.
const AT_ONCE: usize = 4;
/// Time for waiting and for the answer, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets callers in.
pub(crate) struct Gate {
    authenticator: Arc<Authenticator>,
    api: Api<SubjectAccessReview>,
    at_once: Semaphore,
}

/// `/debug/` behind a gate.
pub(crate) fn remote(admin: Admin, gate: Gate) -> Router {
    pages(admin).layer(from_fn_with_state(Arc::new(gate), check))
}

async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let caller = gate.authenticator.authenticate(peer.as_ref(), request.headers()).await;
    let caller = match caller {
        Ok(verified) => verified.id,
        Err(refusal @ Refusal::Unavailable(_)) => return unavailable(&refusal.to_string()),
        Err(refusal) => {
            let mut answer = (StatusCode::UNAUTHORIZED, format!("{refusal}\n")).into_response();
            let bearer = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            return answer;
        }
    };
    let path = request.uri().path().to_owned();
    let verb = request.method().as_str().to_ascii_lowercase();
    match gate.lets(&caller, &verb, &path).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            tracing::info!(%caller, verb, path, "admin page refused");
            let message = format!(
                "{caller} may not {verb} {path}; a ClusterRole with nonResourceURLs lets it\n"
            );
            (StatusCode::FORBIDDEN, message).into_response()
        }
        Err(why) => unavailable(&why),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

// === impl Gate ===

impl Gate {
    /// Ask the API server of this client about callers whom `authenticator` believes.
    pub(crate) fn new(authenticator: Arc<Authenticator>, client: Client) -> Self {
        Self { authenticator, api: Api::all(client), at_once: Semaphore::new(AT_ONCE) }
    }

    async fn lets(&self, caller: &SpiffeId, verb: &str, path: &str) -> Result<bool, String> {
        let late = |_| format!("the API server did not answer within {PATIENCE:?}");
        let permit = timeout(PATIENCE, self.at_once.acquire()).await.map_err(late)?;
        let _permit = permit.map_err(|error| error.to_string())?;
        let (namespace, account) = (caller.namespace(), caller.service_account());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{namespace}:{account}")),
                groups: Some(vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ]),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let parameters = PostParams::default();
        let asked = timeout(PATIENCE, self.api.create(&parameters, &review)).await.map_err(late)?;
        let status = asked.map_err(|error| error.to_string())?.status;
        Ok(status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

#[cfg(test)]
mod tests;
