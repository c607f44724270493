//! HTTP: health and metrics for everybody, `/debug/` for the operator on this machine, and over
//! TLS for callers whom the API server lets.
//!
//! **Invariant:** reads published values only; on loopback `/debug/` answers nobody whose request
//! names another host, so that a web page cannot read it through a browser.

mod dump;
mod index;
mod mesh;
mod remote;

pub(crate) use self::dump::rfc3339;
pub(crate) use self::remote::{Gate, remote};

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
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

/// What a browser may load for a page of ours.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

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

/// `/debug/`, on this machine.
pub(crate) fn private(admin: Admin) -> Router {
    pages(admin).layer(from_fn(only_loopback_names))
}

/// `/debug/`, for whoever is let in.
fn pages(admin: Admin) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/debug", get(index))
        .route("/debug/", get(index))
        .route("/debug/syncz", get(syncz))
        .route("/debug/configz", get(configz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/scopez", get(scopez))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/pushz", get(pushz))
        .route("/debug/sourcez", get(sourcez))
        .route("/debug/ca", get(ca))
        .route("/debug/logging", get(level).post(set_level))
        .fallback(nothing)
        .layer(from_fn(inert))
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

/// Nothing that a page shows may become a script, or be read by another page.
async fn inert(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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

async fn index(State(admin): State<Admin>) -> Html<String> {
    Html(index::html(&admin))
}

async fn nothing(request: Request) -> Response {
    let message = format!("there is no page {}; /debug/ lists them\n", request.uri().path());
    (StatusCode::NOT_FOUND, message).into_response()
}

async fn registryz(State(admin): State<Admin>) -> Json<Value> {
    Json(mesh::registryz(&admin.shared.world.load()))
}

async fn endpointz(State(admin): State<Admin>) -> Json<Value> {
    Json(mesh::endpointz(&admin.shared.world.load()))
}

async fn scopez(State(admin): State<Admin>, Query(query): Query<ProxyQuery>) -> Response {
    of_proxy("/debug/scopez", query, |proxy| mesh::scopez(&admin, proxy))
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
    of_proxy("/debug/config_dump", query, |proxy| dump::config_dump(&admin, proxy))
}

/// A page about one proxy.
fn of_proxy(path: &str, query: ProxyQuery, page: impl FnOnce(&str) -> Option<Value>) -> Response {
    let Some(proxy) = query.proxy_id.filter(|id| !id.is_empty()) else {
        let message = format!("name a proxy: {path}?proxyID=ID; /debug/syncz lists them\n");
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    match page(&proxy) {
        Some(page) => Json(page).into_response(),
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
