//! A controller and an Envoy on loopback.
//!
//! In: a directory of YAML, binaries. Out: guards with the addresses of both, and what they say
//! about themselves.
//!
//! **Invariant:** talks to either only as a user could: files, flags, HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use envoy_api::bootstrap::{Bootstrap, Protocol};
use http::StatusCode;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::process::Leashed;

/// The node id that gateways have here unless they say otherwise.
pub const GATEWAY_NODE: &str = "router~127.0.0.1~gateway.default~default.svc.cluster.local";

/// Labels of that gateway.
pub const GATEWAY_LABELS: &[(&str, &str)] = &[("istio", "ingressgateway")];

/// Time that something may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    process: Leashed,
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
    /// Debug pages.
    pub admin: SocketAddr,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Leashed,
    /// Its admin pages.
    pub admin: SocketAddr,
}

/// How a controller sees one proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    /// Whether it says that nothing is left to do.
    pub synced: bool,
    /// Responses sent.
    pub sent: u64,
    /// Responses rejected.
    pub rejected: u64,
    /// Text of the last rejections.
    pub errors: Vec<String>,
    /// The page itself.
    pub page: Value,
}

// === impl Controller ===

impl Controller {
    /// Start a controller on a directory, and wait until it is ready.
    pub async fn start(binary: &Path, directory: &Path, log: &Path) -> Result<Self> {
        let mut controller = Self::launch(binary, directory, log)?;
        controller.ready().await?;
        Ok(controller)
    }

    /// Start a controller on a directory.
    pub fn launch(binary: &Path, directory: &Path, log: &Path) -> Result<Self> {
        Self::launch_with(binary, directory, log, &[])
    }

    /// Start a controller on a directory with more arguments.
    pub fn launch_with(
        binary: &Path,
        directory: &Path,
        log: &Path,
        more: &[String],
    ) -> Result<Self> {
        Self::launch_at(binary, directory, log, free_address()?, more)
    }

    /// Start a controller on a directory, where proxies connect to `xds`.
    pub fn launch_at(
        binary: &Path,
        directory: &Path,
        log: &Path,
        xds: SocketAddr,
        more: &[String],
    ) -> Result<Self> {
        let [http, admin] = [free_address()?, free_address()?];
        let mut args = vec![
            "--source".to_owned(),
            format!("directory={}", directory.display()),
            "--xds-address".to_owned(),
            xds.to_string(),
            "--http-address".to_owned(),
            http.to_string(),
            "--admin-address".to_owned(),
            admin.to_string(),
        ];
        args.extend_from_slice(more);
        let process = Leashed::start("heddle-controller", binary, &args, log)?;
        Ok(Self { process, xds, http, admin })
    }

    /// Wait until `/readyz` says so.
    pub async fn ready(&mut self) -> Result<()> {
        until_ok(&mut self.process, self.http, "/readyz").await
    }

    /// What `/debug/syncz` says of a proxy; nothing before it is connected.
    pub async fn sync_state(&self, client: &mut Client, node: &str) -> Result<Option<SyncState>> {
        Ok(self.sync_states(client).await?.into_iter().find(|state| state.page["proxy"] == node))
    }

    /// What `/debug/syncz` says of every stream.
    pub async fn sync_states(&self, client: &mut Client) -> Result<Vec<SyncState>> {
        let page = client.json("/debug/syncz").await?;
        Ok(page.as_array().into_iter().flatten().map(SyncState::read).collect())
    }

    /// Whether `/readyz` says so now; fails if it has ended.
    pub async fn is_ready(&mut self) -> Result<bool> {
        self.process.check()?;
        let answer = Client::new(self.http).get(&self.http.to_string(), "/readyz").await;
        Ok(answer.is_ok_and(|answer| answer.status == StatusCode::OK))
    }

    /// Wait until a proxy is sent more than `sent` responses and is synced.
    pub async fn synced(&mut self, node: &str, sent: u64) -> Result<SyncState> {
        let mut client = Client::new(self.admin);
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            let state = self.sync_state(&mut client, node).await?;
            if let Some(state) = state {
                if state.synced && state.sent > sent {
                    return Ok(state);
                }
                last = Some(state);
            }
            self.process.check()?;
            if Instant::now() > deadline {
                bail!(
                    "{node} is not synced after {PATIENCE:?} (more than {sent} responses were \
                     awaited); /debug/syncz says {last:#?}\n{}",
                    self.process.log_end()
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// How often what it serves has changed.
    pub async fn revision(&self, client: &mut Client) -> Result<u64> {
        let page = client.json("/debug/configz").await?;
        page["revision"].as_u64().context("/debug/configz has no revision")
    }

    /// Wait until it has taken up a change after `revision`, and the proxy has ACKed it all.
    pub async fn settled(&mut self, node: &str, revision: u64) -> Result<SyncState> {
        let mut client = Client::new(self.admin);
        let deadline = Instant::now() + PATIENCE;
        while self.revision(&mut client).await? <= revision {
            self.process.check()?;
            if Instant::now() > deadline {
                bail!(
                    "the controller saw no change within {PATIENCE:?}\n{}",
                    self.process.log_end()
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.synced(node, 0).await
    }

    /// Fail if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Its process.
    pub fn process(&self) -> &Leashed {
        &self.process
    }

    /// End it without a warning, as a machine does that fails.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }

    /// End it, and fail unless it ends well.
    pub fn stop(self) -> Result<()> {
        let log = self.process.log_end();
        let status = self.process.stop()?;
        if !status.success() {
            bail!("the controller ended with {status}\n{log}");
        }
        Ok(())
    }
}

// === impl Envoy ===

impl Envoy {
    /// The binary that `ENVOY_BIN` names, if any.
    pub fn binary() -> Option<PathBuf> {
        std::env::var_os("ENVOY_BIN").map(PathBuf::from)
    }

    /// The binary that `ENVOY_OLD_BIN` names, if any: an Envoy older than 1.40.
    pub fn old_binary() -> Option<PathBuf> {
        std::env::var_os("ENVOY_OLD_BIN").map(PathBuf::from)
    }

    /// Start a gateway proxy and wait until it answers on its admin port.
    pub async fn start(binary: &Path, xds: SocketAddr, work: &Path) -> Result<Self> {
        let labels: Map<String, Value> =
            GATEWAY_LABELS.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
        let bootstrap = Bootstrap {
            node_id: GATEWAY_NODE.to_owned(),
            cluster: "gateway".to_owned(),
            metadata: Map::from_iter([("LABELS".to_owned(), Value::Object(labels))]),
            xds_host: xds.ip().to_string(),
            xds_port: xds.port(),
            protocol: Protocol::Delta,
            ..Default::default()
        };
        Self::launch(binary, bootstrap, free_address()?, work).await
    }

    /// Start a proxy with this bootstrap and its admin pages there.
    pub async fn launch(
        binary: &Path,
        bootstrap: Bootstrap,
        admin: SocketAddr,
        work: &Path,
    ) -> Result<Self> {
        let admin_address = Some((admin.ip().to_string(), admin.port()));
        let bootstrap = Bootstrap { admin_address, ..bootstrap };
        let file = work.join("envoy.json");
        std::fs::write(&file, bootstrap.to_json().to_string())?;
        Self::from_file(binary, &file, admin, work).await
    }

    /// Start a proxy with a bootstrap file, whose admin port is `admin`.
    pub async fn from_file(
        binary: &Path,
        file: &Path,
        admin: SocketAddr,
        work: &Path,
    ) -> Result<Self> {
        let args = [
            "-c",
            &file.to_string_lossy(),
            "--use-dynamic-base-id",
            "--concurrency",
            "2",
            "--log-level",
            "warning",
            // Ends at once when asked to: nothing here drains connections.
            "--parent-shutdown-time-s",
            "1",
            "--drain-time-s",
            "1",
        ];
        let args = args.map(str::to_owned);
        let process = Leashed::start("envoy", binary, &args, &work.join("envoy.log"))?;
        let mut envoy = Self { process, admin };
        envoy.up().await?;
        Ok(envoy)
    }

    /// A page of its admin port.
    pub async fn page(&self, path: &str) -> Result<Value> {
        Client::new(self.admin).json(path).await
    }

    /// Names of everything that is warming, which after a change that is done must be nothing.
    pub async fn warming(&self) -> Result<Vec<String>> {
        let dump = self.page("/config_dump?include_eds").await?;
        let mut found = Vec::new();
        for config in dump["configs"].as_array().map(Vec::as_slice).unwrap_or_default() {
            for (key, value) in config.as_object().into_iter().flatten() {
                if key.starts_with("dynamic_warming")
                    && value.as_array().is_some_and(|a| !a.is_empty())
                {
                    found.push(format!("{key}: {value}"));
                }
            }
            for listener in config["dynamic_listeners"].as_array().into_iter().flatten() {
                if listener.get("warming_state").is_some() || listener.get("error_state").is_some()
                {
                    found.push(format!("listener {}", listener["name"]));
                }
            }
        }
        Ok(found)
    }

    /// What it was sent, as it stands.
    pub async fn state(&self) -> Result<BTreeMap<String, Value>> {
        Ok(state(&self.page("/config_dump?include_eds").await?))
    }

    /// A counter or gauge; 0 if there is none of this name.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let page = self.page(&format!("/stats?format=json&filter=^{name}$")).await?;
        Ok(page["stats"][0]["value"].as_u64().unwrap_or(0))
    }

    /// Fail if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Its process.
    pub fn process(&self) -> &Leashed {
        &self.process
    }

    async fn up(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut client = Client::new(self.admin);
        let host = self.admin.to_string();
        while client.get(&host, "/server_info").await.is_err() {
            self.process.check()?;
            if Instant::now() > deadline {
                bail!("envoy does not answer at {host}\n{}", self.process.log_end());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

// === impl SyncState ===

impl SyncState {
    fn read(stream: &Value) -> Self {
        let types = stream["types"].as_object();
        let sum = |key: &str| {
            types.into_iter().flatten().filter_map(|(_, t)| t[key].as_u64()).sum::<u64>()
        };
        let errors = types.into_iter().flatten();
        let errors = errors.filter_map(|(name, t)| Some((name, t["error"].as_str()?)));
        Self {
            synced: stream["synced"] == true,
            sent: sum("sent"),
            rejected: sum("rejected"),
            errors: errors
                .filter(|(_, e)| !e.is_empty())
                .map(|(n, e)| format!("{n}: {e}"))
                .collect(),
            page: stream.clone(),
        }
    }
}

/// What a `/config_dump` holds, of a proxy or of what a controller offers to one: clusters,
/// listeners, routes with their hosts, endpoints, each by its name. Equal however it was sent.
pub fn state(dump: &Value) -> BTreeMap<String, Value> {
    let mut state = BTreeMap::new();
    for config in dump["configs"].as_array().into_iter().flatten() {
        for (list, path, key) in [
            ("dynamic_active_clusters", "/cluster", "name"),
            ("dynamic_listeners", "/active_state/listener", "name"),
            ("dynamic_route_configs", "/route_config", "name"),
            ("dynamic_endpoint_configs", "/endpoint_config", "cluster_name"),
        ] {
            for entry in config[list].as_array().into_iter().flatten() {
                let mut body = entry.pointer(path).cloned().unwrap_or_default();
                // Hosts come on their own, or within.
                body.as_object_mut().and_then(|fields| fields.remove("vhds"));
                if let Some(hosts) = body.get_mut("virtual_hosts").and_then(Value::as_array_mut) {
                    hosts.sort_by_key(|host| host["name"].to_string());
                }
                if list == "dynamic_endpoint_configs" {
                    forget_defaults(&mut body);
                    // Envoy shows one for clusters that are no matter of endpoints too.
                    if body.get("endpoints").is_none() {
                        continue;
                    }
                }
                state.insert(format!("{list} {}", body[key]), body);
            }
        }
    }
    state
}

/// Take away what Envoy adds to the endpoints of a cluster when it shows them. It shows no weights
/// of localities that it does not use.
fn forget_defaults(assignment: &mut Value) {
    let forget = |within: &mut Value, key: &str, default: Option<Value>| {
        let fields = within.as_object_mut();
        let fields = fields.filter(|f| default.is_none_or(|default| f.get(key) == Some(&default)));
        fields.and_then(|fields| fields.remove(key));
    };
    forget(assignment, "policy", Some(json!({ "overprovisioning_factor": 140 })));
    let localities = assignment.get_mut("endpoints").and_then(Value::as_array_mut);
    for locality in localities.into_iter().flatten() {
        forget(locality, "load_balancing_weight", None);
        forget(locality, "locality", Some(json!({})));
        for endpoint in locality["lb_endpoints"].as_array_mut().into_iter().flatten() {
            forget(&mut endpoint["endpoint"], "health_check_config", Some(json!({})));
        }
    }
}

async fn until_ok(process: &mut Leashed, address: SocketAddr, path: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = Client::new(address);
    loop {
        let answer = client.get(&address.to_string(), path).await;
        if answer.as_ref().is_ok_and(|a| a.status == StatusCode::OK) {
            return Ok(());
        }
        process.check()?;
        if Instant::now() > deadline {
            bail!("{path} at {address} does not answer 200: {answer:?}\n{}", process.log_end());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A port of 127.0.0.1 on which nobody listens.
pub fn free_address() -> Result<SocketAddr> {
    free_address_of(Ipv4Addr::LOCALHOST)
}

/// A port of a loopback address on which nobody listens, and which nobody was given before.
///
/// Below the ports that the system gives to clients: one of those could be taken by the next
/// connection before the server opens it.
pub fn free_address_of(address: Ipv4Addr) -> Result<SocketAddr> {
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..100 {
        let port = rand::rng().random_range(10_000..32_000);
        let candidate = SocketAddr::new(IpAddr::V4(address), port);
        if TcpListener::bind(candidate).is_ok() && given.insert(candidate) {
            return Ok(candidate);
        }
    }
    bail!("no port of {address} is free")
}

/// Replace a file in one step, as editors do.
pub fn replace(file: &Path, content: &str) -> Result<()> {
    let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    let beside = file.with_file_name(format!(".{name}.new"));
    std::fs::write(&beside, content).with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, file).with_context(|| format!("renaming to {}", file.display()))
}
