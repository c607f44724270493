//! The gate, with an API server within the process.

use std::time::SystemTime;

use axum::body::Body;
use http_body_util::BodyExt as _;
use identity::authenticate::Verdict;
use identity::{Method, TokenSource, Verified};
use tower::ServiceExt as _;
use xds::Streams;

use super::*;
use crate::fake::Fake;
use crate::logging;
use crate::world::Shared;

/// Believes that a token is the name of a ServiceAccount of `ops`.
struct Names;

impl TokenSource for Names {
    fn verify<'a>(&'a self, token: &'a str) -> Option<Verdict<'a>> {
        let id = format!("spiffe://cluster.local/ns/ops/sa/{token}").parse();
        let now = SystemTime::now();
        let end = now + Duration::from_secs(600);
        let verified = match id {
            Ok(id) => Verified::new(id, Method::ServiceAccount, end, now),
            Err(_) => Err(Refusal::TokenSignature),
        };
        Some(Box::pin(std::future::ready(verified)))
    }
}

fn pages_of(fake: &Fake) -> Router {
    let admin = Admin {
        shared: Arc::new(Shared::default()),
        streams: Arc::new(Streams::default()),
        level: logging::Level::of_nothing(),
    };
    let authenticator = Authenticator::new(vec![Arc::new(Names)], Arc::default());
    remote(admin, Gate::new(Arc::new(authenticator), fake.client()))
}

async fn ask(pages: &Router, verb: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = Request::builder().method(verb).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Body::empty()).expect("a request");
    let answer = pages.clone().oneshot(request).await.expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(start_paused = true)]
async fn given_who_may_get_a_page_then_that_page_is_served_and_no_other() {
    let fake = Fake::new();
    let user = "system:serviceaccount:ops:viewer".to_owned();
    fake.state().allowed.insert((user, "get".to_owned(), "/debug/sourcez".to_owned()));
    let pages = pages_of(&fake);
    let (status, body) = ask(&pages, "GET", "/debug/sourcez", Some("viewer")).await;
    assert_eq!(status, 200, "{body}");
    for (verb, path, token, status, says) in [
        ("GET", "/debug/syncz", Some("viewer"), 403, "nonResourceURLs"),
        ("POST", "/debug/logging?level=debug", Some("viewer"), 403, "may not post /debug/logging"),
        ("GET", "/debug/sourcez", Some("other"), 403, "ns/ops/sa/other"),
        ("GET", "/debug/sourcez", Some("../x"), 401, "token"),
        ("GET", "/debug/sourcez", None, 401, "no credential"),
        ("GET", "/debug/nothing", Some("viewer"), 403, "may not get"),
    ] {
        let (got, body) = ask(&pages, verb, path, token).await;
        assert!(got == status && body.contains(says), "{verb} {path} {token:?}: {got} {body}");
    }
    // Not knowing is no.
    fake.state().down = true;
    let (status, body) = ask(&pages, "GET", "/debug/sourcez", Some("viewer")).await;
    assert_eq!(status, 503, "{body}");
}
