//! Probes of the application, asked in kubelet's place.
//!
//! Kubelet has no certificate, so it cannot reach an application that only takes mutual TLS. It
//! asks the agent, which is not redirected, and the agent asks the application as kubelet would.
//!
//! In: a probe. Out: whether it succeeds, and why not.
//!
//! **Invariant:** succeeds only after the application did; never takes longer than the probe says.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::call;
use crate::settings::values::{Action, Grpc, HttpGet, Probe, Scheme, TcpSocket};

/// Pages that lead to other pages: as many as kubelet follows.
const REDIRECTS: usize = 10;

/// Ask the application at `address`. `asked`: the headers of kubelet's own request.
pub(crate) async fn run(probe: &Probe, address: IpAddr, asked: &HeaderMap) -> Result<()> {
    let patience = Duration::from_secs(probe.timeout_seconds.max(1));
    let asking = async {
        match &probe.action {
            Action::HttpGet(get) => http_get(get, address, asked, patience).await,
            Action::TcpSocket(TcpSocket { port, host }) => {
                let to = target(host, *port, address).await?;
                call::connect(to).await.map(|_| ())
            }
            Action::Grpc(grpc) => health(grpc, address).await,
        }
    };
    let asked = tokio::time::timeout(patience, asking).await;
    asked.with_context(|| format!("no answer within {patience:?}"))?
}

/// Where a probe goes: to the application, unless it names another host.
async fn target(host: &str, port: u16, address: IpAddr) -> Result<SocketAddr> {
    if host.is_empty() {
        return Ok((address, port).into());
    }
    let mut found = tokio::net::lookup_host((host, port)).await.with_context(|| host.to_owned())?;
    found.next().with_context(|| format!("{host} has no address"))
}

async fn http_get(
    get: &HttpGet,
    address: IpAddr,
    asked: &HeaderMap,
    patience: Duration,
) -> Result<()> {
    let to = target(&get.host, get.port, address).await?;
    let headers = headers(get, to, asked)?;
    let mut path =
        if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    for _ in 0..=REDIRECTS {
        let mut request = Request::get(&path).body(Empty::new())?;
        *request.headers_mut() = headers.clone();
        let answer = call::send(to, get.scheme == Scheme::Https, request, patience).await?;
        let status = answer.status();
        ensure!(status.is_success() || status.is_redirection(), "{path} answers {status}");
        match next(&answer, &path, &headers) {
            Some(next) => path = next,
            None => return Ok(()),
        }
    }
    bail!("more than {REDIRECTS} redirects")
}

/// Headers as kubelet sends them.
fn headers(get: &HttpGet, to: SocketAddr, asked: &HeaderMap) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let host =
        if get.host.is_empty() { to.to_string() } else { format!("{}:{}", get.host, get.port) };
    headers.insert(header::HOST, HeaderValue::from_str(&host)?);
    let agent = asked.get(header::USER_AGENT).cloned();
    headers.insert(header::USER_AGENT, agent.unwrap_or(HeaderValue::from_static("kube-probe/1")));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let mut own = HeaderMap::new();
    for header in &get.http_headers {
        let bad = || format!("the probe's header {:?}", header.name);
        let name = HeaderName::from_bytes(header.name.as_bytes()).with_context(bad)?;
        let value = HeaderValue::from_str(&header.value).with_context(bad)?;
        own.append(name, value);
    }
    // Those of the probe go before the usual ones; one name may stand there more than once.
    headers.extend(own);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

/// The page that an answer leads to; none: it is the last, or leads elsewhere, which is no failure.
fn next<T>(answer: &http::Response<T>, path: &str, headers: &HeaderMap) -> Option<String> {
    if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
        return None;
    }
    let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
    if location.starts_with('/') {
        return Some(location.to_owned());
    }
    if location.contains("://") {
        let uri: Uri = location.parse().ok()?;
        let own = headers.get(header::HOST)?.to_str().ok()?;
        let own = own.rsplit_once(':').map_or(own, |(host, _)| host);
        let path = || uri.path_and_query().map_or("/".to_owned(), ToString::to_string);
        return (uri.host() == Some(own)).then(path);
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{folder}/{location}"))
}

async fn health(grpc: &Grpc, address: IpAddr) -> Result<()> {
    let to = SocketAddr::from((address, grpc.port));
    let dial = tower::service_fn(move |_: Uri| async move {
        call::connect(to).await.map(TokioIo::new).map_err(std::io::Error::other)
    });
    let channel =
        Endpoint::from_shared(format!("http://{to}"))?.connect_with_connector(dial).await?;
    let request = HealthCheckRequest { service: grpc.service.clone() };
    let answer = HealthClient::new(channel).check(request).await;
    let answer =
        answer.map_err(|status| anyhow::anyhow!("{}: {}", status.code(), status.message()))?;
    let status = answer.into_inner().status();
    ensure!(status == ServingStatus::Serving, "it says {}", status.as_str_name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(json: &str) -> HttpGet {
        serde_json::from_str(json).expect("a probe")
    }

    #[test]
    fn a_probe_says_what_it_is_told_and_else_what_kubelet_says() {
        let to: SocketAddr = "10.0.0.1:8080".parse().expect("an address");
        let mut asked = HeaderMap::new();
        asked.insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.33"));
        let plain = headers(&get(r#"{"port": 8080}"#), to, &asked).expect("headers");
        assert_eq!(plain[header::HOST], "10.0.0.1:8080");
        assert_eq!(plain[header::USER_AGENT], "kube-probe/1.33");
        let told =
            get(r#"{"port": 8080, "httpHeaders": [{"name": "Host", "value": "app.example.com"},
                {"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]}"#);
        let told = headers(&told, to, &asked).expect("headers");
        assert_eq!(told.get_all(header::HOST).iter().collect::<Vec<_>>(), ["app.example.com"]);
        assert_eq!(told.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        let bad = get(r#"{"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}"#);
        let error = headers(&bad, to, &asked).expect_err("no header");
        assert!(format!("{error:#}").contains("\"a b\""), "{error:#}");
    }

    #[test]
    fn an_answer_that_leads_elsewhere_ends_the_probe_well() {
        let to: SocketAddr = "10.0.0.1:8080".parse().expect("an address");
        let headers = headers(&get(r#"{"port": 8080}"#), to, &HeaderMap::new()).expect("headers");
        let leads = |status: u16, location: &str| {
            let answer = http::Response::builder().status(status).header("location", location);
            next(&answer.body(()).expect("an answer"), "/a/b", &headers)
        };
        assert_eq!(leads(302, "/login?x=1").as_deref(), Some("/login?x=1"));
        assert_eq!(leads(302, "c").as_deref(), Some("/a/c"));
        assert_eq!(leads(301, "http://10.0.0.1:8080/d").as_deref(), Some("/d"));
        assert_eq!(leads(302, "https://sso.example.com/"), None);
        assert_eq!(leads(200, "/x"), None);
    }
}
