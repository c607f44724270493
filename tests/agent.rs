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
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use house::agents::{Agent, Binaries, Pair, Standalone, Workload, signal};
use house::backend::Backend;
use house::client::Client;
use house::load::Traffic;
use house::mesh::{Envoy, free_address};
use house::process::{Leashed, built};
use house::static_file::certificates;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;

const PATIENCE: Duration = Duration::from_secs(20);

const GATEWAY: Workload<'static> = Workload {
    role: "router",
    name: "gateway",
    address: Ipv4Addr::LOCALHOST,
    label: "istio: ingressgateway",
};

/// A gateway that answers by itself.
fn gateway_mesh(port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {port}, name: http, \
         protocol: HTTP}}\n    bind: 127.0.0.1\n    hosts: [\"*\"]\n---\napiVersion: \
         networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: tea}}\nspec:\n  hosts: \
         [tea.example.com]\n  gateways: [edge]\n  http:\n  - directResponse: {{status: 418}}\n"
    )
}

/// Whether the gateway answers by the rule.
async fn serves(gateway: SocketAddr) -> Result<()> {
    let answer = Client::new(gateway).get("tea.example.com", "/").await?;
    ensure!(answer.status == StatusCode::IM_A_TEAPOT, "{answer:?}");
    Ok(())
}

/// Wait until it ends by itself, as it should; its log.
async fn ended(agent: Agent) -> Result<String> {
    let (status, log) = agent.ended().await?;
    ensure!(status.success(), "it ended with {status}\n{log}");
    ensure!(!log.contains("PRIVATE") && !log.contains("heddle-join-"), "{log}");
    Ok(log)
}

/// What `heddle-agent wait` says; nothing: it is ready.
fn waits(agent: &Agent) -> Result<String> {
    let port = agent.status.port().to_string();
    let output = Command::new(built(env!("CARGO"), "heddle-agent")?)
        .args(["wait", "--timeout", "0", "--status-port", &port])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() == said.is_empty(), "{output:?}");
    Ok(said)
}

fn run(mesh: &str, test: impl AsyncFnOnce(Standalone) -> Result<()>) {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let binaries = Binaries {
        controller: built(env!("CARGO"), "heddle-controller").expect("built"),
        agent: built(env!("CARGO"), "heddle-agent").expect("built"),
        envoy,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let house = Standalone::new(binaries, mesh).expect("a mesh");
    runtime.block_on(test(house)).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn given_no_controller_at_first_then_the_agent_waits_and_afterwards_outlives_it() {
    let gateway = free_address().expect("a port");
    run(&gateway_mesh(gateway.port()), async |house| {
        let mut agent =
            house.agent(GATEWAY, "drainDuration: 1s\nexitOnZeroActiveConnections: true\n")?;
        let traffic = || Traffic::expecting(gateway, "tea.example.com", StatusCode::IM_A_TEAPOT);
        agent.until("there is no certificate yet: connecting to").await?;
        let (status, text) = agent.readiness().await.context("no answer")?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        ensure!(text.contains("Envoy is not started yet"), "{text}");
        ensure!(agent.envoy().is_err(), "Envoy runs without a certificate");
        let waited = waits(&agent)?;
        ensure!(waited.contains("not ready") && waited.contains("no certificate"), "{waited}");

        let controller = house.controller().await?;
        agent.ready().await?;
        serves(gateway).await?;
        ensure!(waits(&agent)?.is_empty(), "heddle-agent wait fails");

        // Without it.
        let requests = traffic();
        controller.stop()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        agent.ready().await?;
        ensure!(requests.stop().await? > 500, "hardly any traffic");

        // And with it again: Envoy that dies is back with everything.
        let _controller = house.controller().await?;
        let first = agent.envoy()?;
        signal("KILL", first)?;
        agent.until("it ended with signal: 9").await?;
        agent.ready().await?;
        ensure!(agent.envoy()? != first, "the same Envoy");
        serves(gateway).await?;
        ensure!(agent.metric("heddle_agent_envoy_restarts_total").await? == 1, "not counted");

        // It is asked to end, and serves on for the time of draining.
        let traffic = traffic();
        let open = TcpStream::connect(gateway)?;
        let asked = Instant::now();
        agent.signal("TERM")?;
        agent.until("the proxy is ending").await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        serves(gateway).await.context("while draining")?;
        ensure!(traffic.stop().await? > 50, "hardly any traffic");
        // And as long as somebody is connected.
        tokio::time::sleep(Duration::from_secs(1)).await;
        agent.until("the proxy is ending").await?;
        drop(open);
        let log = ended(agent).await?;
        ensure!(asked.elapsed() >= Duration::from_secs(1), "it did not drain");
        ensure!(log.contains("Envoy ended with exit status: 0"), "{log}");
        ensure!(!log.contains("PRIVATE"), "{log}");
        Ok(())
    });
}

#[test]
fn given_two_sidecars_then_they_speak_mutual_tls_and_renewals_under_traffic_lose_nothing() {
    let pair = Pair::new().expect("ports");
    let mesh = pair.mesh().expect("the samples") + Pair::SHORT_CONNECTIONS;
    run(&mesh, async |house| {
        let _controller = house.controller().await?;
        let _application = Backend::start(pair.application, "app").await?;
        let more = format!("certificateLifetime: 4s\n{}", Pair::SETTINGS);
        let mut client = house.agent(Pair::CLIENT, &more)?;
        let mut server = house.agent(Pair::CATALOG, &more)?;
        client.ready().await?;
        server.ready().await?;
        let answer = Client::new(pair.entry).get(Pair::HOST, "/").await?;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        for id in ["By=spiffe://cluster.local/ns/default/sa/catalog", "sa/client"] {
            ensure!(answer.status == StatusCode::OK && said.contains(id), "{answer:?}");
        }
        // Without a certificate there is no answer.
        let plain = Client::new(pair.server).get(Pair::HOST, "/").await;
        ensure!(plain.is_err(), "{plain:?}");

        let traffic = Traffic::start(pair.entry, Pair::HOST);
        let expiry = "heddle_agent_certificate_expiry_timestamp_seconds";
        let first = server.metric(expiry).await?;
        tokio::time::sleep(Duration::from_secs(7)).await;
        let requests = traffic.stop().await?;
        ensure!(requests > 500, "hardly any traffic");
        for agent in [&mut client, &mut server] {
            agent.ready().await?;
            let obtained = agent.metric("heddle_agent_certificates_obtained_total").await?;
            ensure!(obtained >= 4, "{obtained} certificates");
            ensure!(agent.metric("heddle_agent_certificate_failures_total").await? == 0, "failed");
            // Connections are new after ten requests.
            let handshakes = agent.stat("ssl.handshake").await?;
            ensure!(handshakes >= requests / 10, "{handshakes} handshakes, {requests} requests");
        }
        ensure!(server.metric(expiry).await? > first, "the certificate is the first one still");
        client.signal("INT")?;
        ended(client).await?;
        Ok(())
    });
}

#[test]
fn given_an_application_then_its_probes_and_metrics_are_the_agents_and_it_may_end_the_proxy() {
    run(&gateway_mesh(free_address().expect("a port").port()), async |house| {
        let _controller = house.controller().await?;
        let backend = Backend::start((Ipv4Addr::LOCALHOST, 0).into(), "app").await?;
        let (port, closed) = (backend.address.port(), free_address()?.port());
        let (health, health_port) = health().await?;
        let secure = secure(&house)?;
        let secure_port = secure.as_ref().map_or(closed, |(_, port)| *port);
        let probes = format!(
            "appProbes:\n  /app-health/app/livez: {{httpGet: {{path: /live, port: {port}, \
             httpHeaders: [{{name: Host, value: app.test}}]}}}}\n  \
             /app-health/app/readyz: {{tcpSocket: {{port: {port}}}}}\n  \
             /app-health/app/startupz: {{httpGet: {{port: {closed}}}}}\n  \
             /app-health/rpc/livez: {{grpc: {{port: {port}}}}}\n  \
             /app-health/health/livez: {{grpc: {{port: {health_port}}}}}\n  \
             /app-health/health/readyz: {{grpc: {{port: {health_port}, service: asleep}}}}\n  \
             /app-health/health/startupz: {{grpc: {{port: {health_port}, service: other}}}}\n  \
             /app-health/tls/livez: {{httpGet: {{port: {secure_port}, scheme: HTTPS}}}}\n  \
             /app-health/tls/readyz: {{httpGet: {{port: {secure_port}}}}}\n\
             appMetrics: {{port: {port}, path: /metrics}}\ndrainDuration: 0\n"
        );
        let mut agent = house.agent(GATEWAY, &probes)?;
        agent.ready().await?;
        for (probe, expected, says) in [
            ("app/livez", StatusCode::OK, "ok"),
            ("app/readyz", StatusCode::OK, "ok"),
            ("app/startupz", StatusCode::SERVICE_UNAVAILABLE, "refused"),
            // It speaks HTTP/2, and no gRPC.
            ("rpc/livez", StatusCode::SERVICE_UNAVAILABLE, "fails"),
            ("health/livez", StatusCode::OK, "ok"),
            ("health/readyz", StatusCode::SERVICE_UNAVAILABLE, "it says NOT_SERVING"),
            ("health/startupz", StatusCode::SERVICE_UNAVAILABLE, "service not registered"),
            ("tls/livez", StatusCode::OK, "ok"),
            ("tls/readyz", StatusCode::SERVICE_UNAVAILABLE, "fails"),
            ("other/livez", StatusCode::NOT_FOUND, "/app-health/other/livez"),
        ] {
            if secure.is_none() && probe.starts_with("tls/") {
                continue;
            }
            let answer = agent.get(agent.metrics, &format!("/app-health/{probe}")).await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(answer.status == expected && text.contains(says), "{probe}: {answer:?}");
        }
        health.abort();
        // One page of all; the application's own page is no metric, but it is there.
        let text = agent.page().await?;
        for part in [
            "\nenvoy_server_live",
            "\"path\":\"/metrics\"",
            "heddle_agent_scrape_failures_total{part=\"application\"} 0",
        ] {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        drop(backend);
        let text = agent.page().await?;
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
        ended(agent).await?;
        Ok(())
    });
}

/// An application that answers gRPC's own health checks: it serves, but for one of its services.
async fn health() -> Result<(JoinHandle<()>, u16)> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("asleep", ServingStatus::NotServing).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let server = tonic::transport::Server::builder().add_service(service);
    let connections = TcpListenerStream::new(listener);
    let serve = tokio::spawn(async move {
        server.serve_with_incoming(connections).await.expect("it serves");
    });
    Ok((serve, port))
}

/// An application that speaks TLS by itself, with a certificate that nobody knows; none where
/// nothing here can be one.
fn secure(house: &Standalone) -> Result<Option<(Leashed, u16)>> {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: probes over HTTPS: the program openssl is not installed");
        return Ok(None);
    }
    let address = free_address()?;
    let parts = certificates()?;
    let file = |name: &str| -> Result<String> {
        let path = house.path(&format!("{name}.pem"));
        let text = parts[name]["inline_string"].as_str().context("a text")?;
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (chain, key) = (file("certificate_chain")?, file("private_key")?);
    let at = address.to_string();
    let args = ["s_server", "-accept", &at, "-cert", &chain, "-key", &key, "-www", "-quiet"];
    let args = args.map(str::to_owned);
    let log = house.path("openssl.log");
    let process = Leashed::start("openssl", Path::new("openssl"), &args, &log)?;
    Ok(Some((process, address.port())))
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
    ensure!(ask(&socket, &other)? != 0, "another user is answered");
    // It came past the modes, and was refused for who it is.
    let log = std::fs::read_to_string(agent.process().log())?;
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
