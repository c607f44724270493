//! HTTP: health and metrics for everybody, `/debug/` for the operator on this machine.
//!
//! **Invariant:** reads published values only; `/debug/` answers nobody whose request names
//! another host, so that a web page cannot read it through a browser.

mod dump;

pub(crate) use self::dump::rfc3339;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use xds::Streams;

use crate::logging::Level;
use crate::metrics::Metrics;
use crate::world::Shared;

/// What `/debug/` reads.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) level: Level,
}

#[derive(Deserialize)]
struct ProxyQuery {
    #[serde(rename = "proxyID")]
    proxy_id: Option<String>,
}

#[derive(Deserialize)]
struct LevelQuery {
    level: Option<String>,
}

const PAGES: [(&str, &str); 7] = [
    ("/debug/syncz", "connected proxies: per type what was sent, accepted, rejected"),
    ("/debug/configz", "accepted objects and what is wrong with them"),
    ("/debug/config_dump?proxyID=", "what a proxy is offered, in the shape of Envoy's own dump"),
    (
        "/debug/pushz",
        "the last batches: what came in, what ran again, what differed, who was woken",
    ),
    ("/debug/sourcez", "the watches of the cluster: what was read, and since when one is stale"),
    ("/debug/ca", "the certificate authority: who it is, what it issued and refused"),
    ("/debug/logging", "log level; POST /debug/logging?level=debug changes it"),
];

/// Health and metrics.
pub(crate) fn public(shared: Arc<Shared>, metrics: Arc<Metrics>) -> Router {
    let ready = move || {
        let missing = shared.missing();
        async move {
            match missing {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
            }
        }
    };
    let metrics = move || {
        let text = metrics.text();
        async move {
            match text {
                Ok(text) => {
                    let format = "text/plain; version=0.0.4; charset=utf-8";
                    ([(header::CONTENT_TYPE, format)], text).into_response()
                }
                Err(error) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
                }
            }
        }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// `/debug/`.
pub(crate) fn private(admin: Admin) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/debug", get(index))
        .route("/debug/", get(index))
        .route("/debug/syncz", get(syncz))
        .route("/debug/configz", get(configz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/pushz", get(pushz))
        .route("/debug/sourcez", get(sourcez))
        .route("/debug/ca", get(ca))
        .route("/debug/logging", get(level).post(set_level))
        .layer(from_fn(only_loopback_names))
        .with_state(admin)
}

/// Refuse requests for another host: a page that a browser shows could else make it ask us under
/// a name of its own (DNS rebinding).
async fn only_loopback_names(request: Request, next: Next) -> Response {
    let host =
        request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if is_loopback(host) {
        return next.run(request).await;
    }
    let message = format!("host {host:?} is not this machine's loopback; use localhost\n");
    (StatusCode::FORBIDDEN, message).into_response()
}

/// Whether a `Host` header names this machine's loopback: `localhost`, or an address of it.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, p)| p.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name);
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn index() -> Html<String> {
    let items: String = PAGES
        .iter()
        .map(|(path, what)| format!("<li><a href=\"{path}\"><code>{path}</code></a>: {what}</li>"))
        .collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><title>heddle-controller</title>\
         <h1>heddle-controller {}</h1><ul>{items}</ul></html>\n",
        env!("CARGO_PKG_VERSION")
    ))
}

async fn syncz(State(admin): State<Admin>) -> Json<Value> {
    Json(dump::syncz(&admin))
}

async fn configz(State(admin): State<Admin>) -> Json<Value> {
    Json(dump::configz(&admin.shared.world.load()))
}

async fn pushz(State(admin): State<Admin>) -> Json<Value> {
    Json(dump::pushz(&admin.shared.world.load()))
}

async fn sourcez(State(admin): State<Admin>) -> Json<Value> {
    Json(dump::sourcez(&admin.shared.sources))
}

async fn config_dump(State(admin): State<Admin>, Query(query): Query<ProxyQuery>) -> Response {
    let Some(proxy) = query.proxy_id.filter(|id| !id.is_empty()) else {
        let message = "name a proxy: /debug/config_dump?proxyID=ID; /debug/syncz lists them\n";
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    match dump::config_dump(&admin, &proxy) {
        Some(dump) => Json(dump).into_response(),
        None => {
            let message = format!("no proxy {proxy:?} is connected; /debug/syncz lists them\n");
            (StatusCode::NOT_FOUND, message).into_response()
        }
    }
}

async fn ca(State(admin): State<Admin>) -> Response {
    let message = match admin.shared.ca.get() {
        Some(ca) => return Json(dump::ca(ca)).into_response(),
        None if admin.shared.secured => "there is no certificate authority yet; the log says why\n",
        None => {
            "there is no certificate authority; start with --identity-directory, or in a cluster \
             with --identity-cluster\n"
        }
    };
    (StatusCode::NOT_FOUND, message).into_response()
}

async fn level(State(admin): State<Admin>) -> Json<Value> {
    Json(json!({ "level": admin.level.get() }))
}

async fn set_level(State(admin): State<Admin>, Query(query): Query<LevelQuery>) -> Response {
    let Some(level) = query.level else {
        let message = "name a level: POST /debug/logging?level=debug\n";
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    match admin.level.set(&level) {
        Ok(()) => {
            tracing::info!(%level, "log level changed");
            Json(json!({ "level": admin.level.get() })).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_are_let_in() {
        for good in [
            "localhost",
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:1",
            "127.0.0.2",
            "[::1]:8080",
            "[::1]",
            "",
        ] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "example.com",
            "localhost.example.com",
            "10.0.0.1:8080",
            "127.0.0.1.example.com:80",
            "[::2]",
            "localhost:x",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
