//! A real agent beside a real Envoy, with a real controller.
//!
//! In: `ENVOY_BIN`. Out: whether the proxy is served, and goes on, whatever happens to the
//! controller, to Envoy, to the certificate.
//!
//! **Invariant:** everything is done as a user would do it: by files, flags, signals, HTTP.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use house::backend::Backend;
use house::client::{Answer, Client};
use house::mesh::{Controller, Envoy, free_address};
use house::process::{Leashed, built, children};
use http::StatusCode;
use identity::{IdentityFolder, JoinTokens};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a mesh, a controller with an authority, and a gateway.
struct House {
    work: tempfile::TempDir,
    envoy: PathBuf,
    xds: SocketAddr,
    secure: SocketAddr,
    gateway: SocketAddr,
}

/// A running agent.
struct Agent {
    process: Leashed,
    admin: SocketAddr,
    status: SocketAddr,
    metrics: SocketAddr,
    folder: PathBuf,
}

/// Requests, one after the other, until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, Vec<String>)>,
}

// === impl House ===

impl House {
    fn build(envoy: &Path) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let [xds, secure, gateway] = [free_address()?, free_address()?, free_address()?];
        std::fs::create_dir(work.path().join("mesh"))?;
        let mesh = format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
             selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {}, name: http, \
             protocol: HTTP}}\n    bind: 127.0.0.1\n    hosts: [\"*\"]\n---\napiVersion: \
             networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: tea}}\nspec:\n  hosts: \
             [tea.example.com]\n  gateways: [edge]\n  http:\n  - directResponse: {{status: 418}}\n",
            gateway.port()
        );
        std::fs::write(work.path().join("mesh/mesh.yaml"), mesh)?;
        // The authority is there before any controller: agents know it by its roots.
        let folder = IdentityFolder::open(&work.path().join("identity"))?;
        let files = folder.self_signed(&"cluster.local".parse()?, SystemTime::now())?;
        std::fs::write(work.path().join("roots.pem"), files.roots)?;
        Ok(Self { work, envoy: envoy.to_owned(), xds, secure, gateway })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    async fn controller(&self) -> Result<Controller> {
        let binary = built(env!("CARGO"), "heddle-controller")?;
        let more = [
            "--identity-directory".to_owned(),
            self.path("identity").display().to_string(),
            "--secure-address".to_owned(),
            self.secure.to_string(),
            "--gateway-identity".to_owned(),
            "default/gateway".to_owned(),
        ];
        let (mesh, log) = (self.path("mesh"), self.path("controller.log"));
        let mut controller = Controller::launch_at(&binary, &mesh, &log, self.xds, &more)?;
        controller.ready().await?;
        Ok(controller)
    }

    /// Start an agent by a file with these settings beside the usual ones.
    fn agent(&self, more: &str) -> Result<Agent> {
        let tokens = JoinTokens::new(
            &IdentityFolder::open(&self.path("identity"))?,
            "cluster.local".parse()?,
        );
        let id = "spiffe://cluster.local/ns/default/sa/gateway".parse()?;
        let token = tokens.create(&id, Duration::from_secs(600), SystemTime::now())?;
        std::fs::write(self.path("token"), token.as_bytes())?;
        let [admin, status, metrics] = [free_address()?, free_address()?, free_address()?];
        let folder = self.path("proxy");
        let settings = format!(
            "role: router\npodName: gateway\nnamespace: default\nserviceAccount: gateway\n\
             address: 127.0.0.1\nlabels: {{istio: ingressgateway}}\nxdsAddress: {}\n\
             joinTokenFile: {}\nroots: {}\nenvoy: {}\nfolder: {}\nconcurrency: 1\n\
             adminPort: {}\nstatusPort: {}\nmetricsPort: {}\n{more}",
            self.secure,
            self.path("token").display(),
            self.path("roots.pem").display(),
            self.envoy.display(),
            folder.display(),
            admin.port(),
            status.port(),
            metrics.port(),
        );
        let file = self.path("agent.yaml");
        std::fs::write(&file, settings)?;
        let args = ["run".to_owned(), "--config".to_owned(), file.display().to_string()];
        let binary = built(env!("CARGO"), "heddle-agent")?;
        let process = Leashed::start("heddle-agent", &binary, &args, &self.path("agent.log"))?;
        Ok(Agent { process, admin, status, metrics, folder })
    }

    /// Whether the gateway answers by the rule.
    async fn serves(&self, client: &mut Client) -> Result<()> {
        let answer = client.get("tea.example.com", "/").await?;
        ensure!(answer.status == StatusCode::IM_A_TEAPOT, "{answer:?}");
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, gateway) = (Arc::clone(&stop), self.gateway);
        let task = tokio::spawn(async move {
            let (mut client, mut count, mut failed) = (Client::new(gateway), 0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                count += 1;
                match client.get("tea.example.com", "/").await {
                    Ok(answer) if answer.status == StatusCode::IM_A_TEAPOT => {}
                    other => failed.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (count, failed)
        });
        Traffic { stop, task }
    }
}

// === impl Traffic ===

impl Traffic {
    /// How many there were; fails if one of them did.
    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let (count, failed) = self.task.await?;
        ensure!(failed.is_empty(), "{} of {count} failed: {}", failed.len(), failed[0]);
        Ok(count)
    }
}

// === impl Agent ===

impl Agent {
    async fn get(&self, address: SocketAddr, path: &str) -> Result<Answer> {
        Client::new(address).get(&address.to_string(), path).await
    }

    /// Status and text of readiness; nothing while nobody answers.
    async fn readiness(&self) -> Option<(StatusCode, String)> {
        let answer = self.get(self.status, "/healthz/ready").await.ok()?;
        Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// Wait until it is ready, or says this.
    async fn until(&mut self, says: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = self.readiness().await;
            if last.as_ref().is_some_and(|(_, text)| text.contains(says)) {
                return Ok(());
            }
            self.process.check()?;
            if Instant::now() > deadline {
                bail!("{says:?} is not said, but {last:?}\n{}", self.process.log_end());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ready(&mut self) -> Result<()> {
        self.until("ready\n").await
    }

    /// Its own metric.
    async fn metric(&self, name: &str) -> Result<u64> {
        let page = self.get(self.metrics, "/stats/prometheus").await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.split(' ').next_back()?.parse().ok());
        value.with_context(|| format!("no metric {name} in {text}"))
    }

    fn envoy(&self) -> Result<u32> {
        children(self.process.child()?)?.into_iter().next().context("no Envoy runs")
    }

    /// Wait until it ends; its log.
    async fn ended(mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        while self.process.check().is_ok() {
            ensure!(Instant::now() < deadline, "it does not end\n{}", self.process.log_end());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let log = std::fs::read_to_string(self.process.log())?;
        let status = self.process.stop()?;
        ensure!(status.success(), "it ended with {status}\n{log}");
        Ok(log)
    }
}

fn signal(name: &str, process: u32) -> Result<()> {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status()?;
    ensure!(sent.success(), "kill -{name} {process}");
    Ok(())
}

fn run(test: impl AsyncFnOnce(House) -> Result<()>) {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let house = House::build(&envoy).expect("a house");
    runtime.block_on(test(house)).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn given_no_controller_at_first_then_the_agent_waits_and_afterwards_outlives_it() {
    run(async |house| {
        let mut agent = house.agent("drainDuration: 1s\n")?;
        agent.until("there is no certificate yet: connecting to").await?;
        let (status, text) = agent.readiness().await.context("no answer")?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        ensure!(text.contains("Envoy is not started yet"), "{text}");
        ensure!(agent.envoy().is_err(), "Envoy runs without a certificate");

        let controller = house.controller().await?;
        agent.ready().await?;
        house.serves(&mut Client::new(house.gateway)).await?;

        // Without it.
        let traffic = house.traffic();
        controller.stop()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        agent.ready().await?;
        ensure!(traffic.stop().await? > 500, "hardly any traffic");

        // And with it again: Envoy that dies is back with everything.
        let _controller = house.controller().await?;
        let first = agent.envoy()?;
        signal("KILL", first)?;
        agent.until("it ended with signal: 9").await?;
        agent.ready().await?;
        ensure!(agent.envoy()? != first, "the same Envoy");
        house.serves(&mut Client::new(house.gateway)).await?;
        ensure!(agent.metric("heddle_agent_envoy_restarts_total").await? == 1, "not counted");

        // It is asked to end, and serves on for the time of draining.
        let traffic = house.traffic();
        let asked = Instant::now();
        signal("TERM", agent.process.child()?)?;
        agent.until("the proxy is ending").await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        house.serves(&mut Client::new(house.gateway)).await.context("while draining")?;
        ensure!(traffic.stop().await? > 50, "hardly any traffic");
        let log = agent.ended().await?;
        ensure!(asked.elapsed() >= Duration::from_secs(1), "it did not drain");
        ensure!(log.contains("Envoy ended with exit status: 0"), "{log}");
        ensure!(!log.contains("PRIVATE"), "{log}");
        Ok(())
    });
}

#[test]
fn given_a_short_lifetime_then_the_certificate_is_renewed_under_traffic() {
    run(async |house| {
        let _controller = house.controller().await?;
        let mut agent = house.agent("certificateLifetime: 4s\ndrainDuration: 0\n")?;
        agent.ready().await?;
        let traffic = house.traffic();
        let first = agent.metric("heddle_agent_certificate_expiry_timestamp_seconds").await?;
        tokio::time::sleep(Duration::from_secs(7)).await;
        agent.ready().await?;
        let last = agent.metric("heddle_agent_certificate_expiry_timestamp_seconds").await?;
        ensure!(last > first, "{first} {last}");
        let obtained = agent.metric("heddle_agent_certificates_obtained_total").await?;
        ensure!(obtained >= 4, "{obtained} certificates");
        ensure!(agent.metric("heddle_agent_certificate_failures_total").await? == 0, "failures");
        ensure!(traffic.stop().await? > 500, "hardly any traffic");
        // What Envoy holds is what the agent has got.
        let page = Client::new(agent.admin).json("/certs").await?;
        let end = page["certificates"][0]["cert_chain"][0]["expiration_time"].to_string();
        ensure!(end.len() > 10, "{page}");
        signal("INT", agent.process.child()?)?;
        agent.ended().await?;
        Ok(())
    });
}

#[test]
fn given_an_application_then_its_probes_and_metrics_are_the_agents_and_it_may_end_the_proxy() {
    run(async |house| {
        let _controller = house.controller().await?;
        let backend = Backend::start((Ipv4Addr::LOCALHOST, 0).into(), "app").await?;
        let (port, closed) = (backend.address.port(), free_address()?.port());
        let probes = format!(
            "appProbes:\n  /app-health/app/livez: {{httpGet: {{path: /live, port: {port}, \
             httpHeaders: [{{name: Host, value: app.test}}]}}}}\n  \
             /app-health/app/readyz: {{tcpSocket: {{port: {port}}}}}\n  \
             /app-health/app/startupz: {{httpGet: {{port: {closed}}}}}\n  \
             /app-health/rpc/livez: {{grpc: {{port: {port}}}}}\n\
             appMetrics: {{port: {port}, path: /metrics}}\ndrainDuration: 0\n"
        );
        let mut agent = house.agent(&probes)?;
        agent.ready().await?;
        for (probe, expected, says) in [
            ("app/livez", StatusCode::OK, "ok"),
            ("app/readyz", StatusCode::OK, "ok"),
            ("app/startupz", StatusCode::SERVICE_UNAVAILABLE, "refused"),
            // It speaks HTTP/2, and no gRPC.
            ("rpc/livez", StatusCode::SERVICE_UNAVAILABLE, "fails"),
            ("other/livez", StatusCode::NOT_FOUND, "/app-health/other/livez"),
        ] {
            let answer = agent.get(agent.metrics, &format!("/app-health/{probe}")).await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(answer.status == expected && text.contains(says), "{probe}: {answer:?}");
        }
        // One page of all; the application's own page is no metric, but it is there.
        let page = agent.get(agent.metrics, "/stats/prometheus").await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        for part in [
            "\nenvoy_server_live",
            "\"path\":\"/metrics\"",
            "heddle_agent_scrape_failures_total{part=\"application\"} 0",
        ] {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        drop(backend);
        let page = agent.get(agent.metrics, "/stats/prometheus").await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        ensure!(text.contains("\nenvoy_server_live"), "{text}");
        ensure!(text.contains("failures_total{part=\"application\"} 1"), "{text}");

        // Roots that come later are given to Envoy.
        let roots = house.path("roots.pem");
        let more = identity::Authority::self_signed(&"cluster.local".parse()?, SystemTime::now())?;
        let all = [std::fs::read(&roots)?, more.roots].concat();
        std::fs::write(&roots, all)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = Client::new(agent.admin).json("/certs").await?;
            let known = page["certificates"].as_array().into_iter().flatten();
            if known.filter_map(|c| c["ca_cert"].as_array()).any(|roots| roots.len() == 2) {
                break;
            }
            ensure!(Instant::now() < deadline, "Envoy has not two roots: {page}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        stranger(&agent)?;

        // Only asked for by a POST.
        let answer = agent.get(agent.metrics, "/quitquitquit").await?;
        ensure!(answer.status == StatusCode::METHOD_NOT_ALLOWED, "{answer:?}");
        let mut connection = TcpStream::connect(agent.metrics)?;
        connection
            .write_all(b"POST /quitquitquit HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        agent.ended().await?;
        Ok(())
    });
}

/// Nobody else gets the key: not by the files' modes, and not past them.
fn stranger(agent: &Agent) -> Result<()> {
    let socket = agent.folder.join("sds.sock");
    let mode =
        |path: &Path| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(mode(&agent.folder)? == 0o700, "the folder is open");
    ensure!(mode(&socket)? == 0o600, "the socket is open");
    ensure!(mode(&agent.folder.join("envoy.pb"))? == 0o600, "the bootstrap is open");
    let files: Vec<_> = std::fs::read_dir(&agent.folder)?.flatten().map(|f| f.path()).collect();
    let on_disk = std::fs::metadata(&agent.folder)?.dev() == std::fs::metadata("/")?.dev();
    ensure!(!on_disk || files.len() == 2, "there is more on disk: {files:?}");
    // A process of the same user is answered. One of another user who may pass by all modes is not:
    // the kernel's word keeps it out.
    ensure!(ask(&socket, &[])? == 0, "its own user is refused");
    let caps = "+dac_override,+dac_read_search";
    let other = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"];
    let other = [&other[..], &["--inh-caps", caps, "--ambient-caps", caps]].concat();
    if !Command::new(other[0]).args(&other[1..]).arg("true").status()?.success() {
        eprintln!("SKIPPED: `setpriv --reuid` does not work here; it needs root");
        return Ok(());
    }
    let code = ask(&socket, &other)?;
    // An empty answer, or a connection that breaks: not "permission denied".
    ensure!(matches!(code, 52 | 55 | 56), "curl ends with {code} as another user");
    let log = std::fs::read_to_string(agent.process.log())?;
    ensure!(log.contains("refused to give secrets user=12345"), "{log}");
    Ok(())
}

/// Ask for something at the socket; the exit code of curl.
fn ask(socket: &Path, by: &[&str]) -> Result<i32> {
    let args = ["curl", "-sS", "-m", "5", "--http2-prior-knowledge", "http://x/", "--unix-socket"];
    let all = [by, &args].concat();
    let output = Command::new(all[0]).args(&all[1..]).arg(socket).output()?;
    output.status.code().with_context(|| format!("{output:?}"))
}

#[test]
fn given_a_malformed_file_then_the_end_names_the_field() {
    let binary = built(env!("CARGO"), "heddle-agent").expect("built");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    for (text, says) in [
        ("podNme: a\n", "podNme"),
        ("appProbes:\n  /app-health/a/livez: {httpGet: {port: x}}\n", "appProbes"),
        ("drainDuration: soon\n", "drainDuration: \"soon\" is no time"),
        ("podName: a\nnamespace: b\naddress: 10.0.0.1\n", "--xds-address is needed"),
        ("a: [", "agent.yaml"),
    ] {
        std::fs::write(&file, text).expect("written");
        let output = Command::new(&binary).arg("run").arg("--config").arg(&file).output();
        let output = output.expect("it runs");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && log.contains(says), "{text:?}: {log}");
    }
}
