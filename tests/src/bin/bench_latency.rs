//! Part of `make bench`: the time that two sidecars add to a request, beside two bare Envoys.
//!
//! In: `ENVOY_BIN`, the binaries beside this one, built for release. Out: a table; the bar stands
//! beside and is not asserted: on a machine with other work it says little.
//!
//! All paths lead to one application by HTTP/1.1, one request after the other: straight; through two
//! sidecars with agents, as they are configured by the controller; and through two stock Envoys with
//! the least that does the same, a router and mutual TLS with certificates from files, or no TLS.
//! The paths take turns, so that what else the machine does hits all alike.
//!
//! **Invariant:** every path is measured as often as the others, in the same minutes.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use house::agents::{Binaries, Pair, Standalone};
use house::backend::Backend;
use house::client::Client;
use house::mesh::{Envoy, free_address};
use house::process::{Leashed, sibling};
use house::static_file::certificates;
use house::statistics::percentile;
use serde_json::{Value, json};

const ROUNDS: usize = 150;
/// Requests of a path in a round.
const REQUESTS: usize = 100;
/// Added latency beside that of bare Envoys.
const BAR: f64 = 1.1;

/// A way to the application, and how long requests took on it.
struct Way {
    name: &'static str,
    client: Client,
    times: Vec<Duration>,
}

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench_latency: this is a debug build; use `make bench`");
    }
    tokio::runtime::Runtime::new()?.block_on(bench())
}

async fn bench() -> Result<()> {
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make bench`")?;
    let (controller, agent) = (sibling("heddle-controller")?, sibling("heddle-agent")?);
    let pair = Pair::new()?;
    let binaries = Binaries { controller, agent, envoy: envoy.clone() };
    let house = Standalone::new(binaries, &pair.mesh()?)?;
    let controller = house.controller().await?;
    let _application = Backend::start(pair.application, "app").await?;
    let mut server = house.agent(Pair::CATALOG, Pair::SETTINGS)?;
    let mut client = house.agent(Pair::CLIENT, Pair::SETTINGS)?;
    server.ready().await?;
    client.ready().await?;
    let work = tempfile::tempdir()?;
    let bare = |name, tls| Bare::start(&envoy, work.path(), name, pair.application, tls);
    let (sealed, open) = (bare("sealed", true)?, bare("open", false)?);

    let way = |name, address| Way { name, client: Client::new(address), times: Vec::new() };
    let mut ways = [
        way("straight", pair.application),
        way("two bare Envoys, plain text", open.address),
        way("two bare Envoys, mutual TLS", sealed.address),
        way("two sidecars, mutual TLS", pair.entry),
    ];
    for way in &mut ways {
        way.connected().await?;
    }
    for round in 0..ROUNDS {
        for turn in 0..ways.len() {
            // Whoever goes first now goes last next.
            ways[(round + turn) % ways.len()].requests().await?;
        }
    }
    println!("{} requests by each way", ROUNDS * REQUESTS);
    println!("{:<32} {:>9} {:>9} {:>9}", "way", "p50", "p90", "p99");
    let mut seen = Vec::new();
    for Way { name, times, .. } in &mut ways {
        let times = [50, 90, 99].map(|percent| percentile(times, percent).as_secs_f64() * 1e6);
        println!("{name:<32} {:>6.0} us {:>6.0} us {:>6.0} us", times[0], times[1], times[2]);
        seen.push(times);
    }
    let [straight, _, bare, sidecars] = seen[..] else { anyhow::bail!("four ways") };
    for (at, percent) in [(0, 50), (2, 99)] {
        let whole = sidecars[at] / bare[at];
        println!("request, sidecars / bare with mutual TLS, p{percent}: {whole:.2}");
    }
    let added = (sidecars[0] - straight[0]) / (bare[0] - straight[0]);
    println!("added latency, sidecars / bare with mutual TLS, p50: {added:.2} (bar <= {BAR})");
    drop((client, server, sealed, open));
    controller.stop()
}

// === impl Way ===

impl Way {
    /// Wait until it leads to the application, and is warm.
    async fn connected(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.client.get(Pair::HOST, "/").await {
                Ok(answer) if answer.status.is_success() => break,
                other => ensure!(began.elapsed().as_secs() < 20, "{}: {other:?}", self.name),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.requests().await?;
        self.times.clear();
        Ok(())
    }

    async fn requests(&mut self) -> Result<()> {
        for _ in 0..REQUESTS {
            let answer = self.client.get(Pair::HOST, "/").await?;
            ensure!(answer.status.is_success(), "{}: {answer:?}", self.name);
            self.times.push(answer.ended - answer.began);
        }
        Ok(())
    }
}

/// Two stock Envoys in a row, configured by hand.
struct Bare {
    /// The first.
    address: SocketAddr,
    _processes: [Leashed; 2],
}

// === impl Bare ===

impl Bare {
    /// Start them, with mutual TLS between them or without.
    fn start(envoy: &Path, work: &Path, name: &str, to: SocketAddr, tls: bool) -> Result<Self> {
        let (address, middle) = (free_address()?, free_address()?);
        // Both sides have the same certificate, and trust what signed it.
        let ours = certificates()?;
        let side = |side: Side| tls.then(|| side.transport_socket(&ours));
        let start = |name: String, file: Value| -> Result<Leashed> {
            let path = work.join(format!("{name}.json"));
            std::fs::write(&path, file.to_string())?;
            let path = path.display().to_string();
            let args =
                ["-c", &path, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
            let log = work.join(format!("{name}.log"));
            Leashed::start("envoy", envoy, &args.map(str::to_owned), &log)
        };
        let first =
            start(format!("{name}-first"), proxy(address, None, middle, side(Side::Client)))?;
        let second = start(format!("{name}-second"), proxy(middle, side(Side::Server), to, None))?;
        Ok(Self { address, _processes: [first, second] })
    }
}

/// A side of mutual TLS.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// The least that passes HTTP on.
fn proxy(listens: SocketAddr, takes: Option<Value>, to: SocketAddr, sends: Option<Value>) -> Value {
    let socket = |address: SocketAddr| {
        json!({"socket_address": {
            "address": address.ip().to_string(), "port_value": address.port(),
        }})
    };
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3\
                   .HttpConnectionManager";
    let mut chain = json!({"filters": [{
        "name": "http",
        "typed_config": {
            "@type": manager,
            "stat_prefix": "http",
            "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next", "timeout": "0s"}}],
            }]},
        },
    }]});
    let mut cluster = json!({
        "name": "next",
        "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket(to)}},
        ]}]},
    });
    for (part, tls) in [(&mut chain, takes), (&mut cluster, sends)] {
        if let Some(tls) = tls {
            part["transport_socket"] = tls;
        }
    }
    json!({"static_resources": {
        "listeners": [{"name": "in", "address": socket(listens), "filter_chains": [chain]}],
        "clusters": [cluster],
    }})
}

// === impl Side ===

impl Side {
    fn transport_socket(self, of: &BTreeMap<&str, Value>) -> Value {
        let own = json!({
            "certificate_chain": of["certificate_chain"], "private_key": of["private_key"],
        });
        let mut context = json!({"common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [own],
            "validation_context": {"trusted_ca": of["trusted_ca"]},
        }});
        let kind = match self {
            Self::Client => "UpstreamTlsContext",
            Self::Server => {
                context["require_client_certificate"] = true.into();
                "DownstreamTlsContext"
            }
        };
        let name = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
        context["@type"] = format!("{name}.{kind}").into();
        json!({"name": "tls", "typed_config": context})
    }
}
