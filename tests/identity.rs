//! A real Envoy over mutual TLS, with certificates that the command line got for it.
//!
//! In: `ENVOY_BIN`. Out: whether it is served, takes up a renewed certificate, and comes back by
//! it when the old one ends.
//!
//! **Invariant:** everything is done as a user would do it: by files and commands.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_api::secrets;
use house::client::Client;
use house::mesh::{Controller, Envoy, GATEWAY_NODE, free_address, replace};
use house::process::{Leashed, built};
use identity::folder::read_ca;
use identity::{Authority, CertifiedRequest, PrivateKey, client};

const PATIENCE: Duration = Duration::from_secs(20);

/// A Gateway, and a VirtualService that answers by itself.
fn mesh(port: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {}, name: http, \
         protocol: HTTP}}\n    bind: {}\n    hosts: [\"*\"]\n---\napiVersion: \
         networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: old}}\nspec:\n  hosts: \
         [old.example.com]\n  gateways: [edge]\n  http:\n  - redirect: {{authority: \
         new.example.com}}\n",
        port.port(),
        port.ip()
    )
}

/// A folder with a mesh, a controller with an authority, and the command line.
struct House {
    work: tempfile::TempDir,
    heddle: PathBuf,
    controller: Controller,
    secure: SocketAddr,
    gateway: SocketAddr,
}

impl House {
    async fn build() -> Result<Self> {
        let binary = built(env!("CARGO"), "heddle-controller")?;
        let heddle = built(env!("CARGO"), "heddle")?;
        let work = tempfile::tempdir()?;
        let directory = work.path().join("mesh");
        std::fs::create_dir(&directory)?;
        let (gateway, secure) = (free_address()?, free_address()?);
        std::fs::write(directory.join("mesh.yaml"), mesh(gateway))?;
        let more = [
            "--identity-directory".to_owned(),
            work.path().join("identity").display().to_string(),
            "--secure-address".to_owned(),
            secure.to_string(),
            "--gateway-identity".to_owned(),
            "default/gateway".to_owned(),
        ];
        let log = work.path().join("controller.log");
        let mut controller = Controller::launch_with(&binary, &directory, &log, &more)?;
        controller.ready().await?;
        Ok(Self { work, heddle, controller, secure, gateway })
    }

    fn path(&self, name: &str) -> String {
        self.work.path().join(name).display().to_string()
    }

    /// Run the command line; what it prints.
    fn heddle(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.heddle).args(args).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "heddle {args:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout).trim().to_owned())
    }

    /// A certificate for the gateway, by join token, in the folder `certificates`.
    fn join(&self) -> Result<()> {
        let identity = self.path("identity");
        let token = self.heddle(&[
            "token",
            "create",
            "--identity-directory",
            &identity,
            "--namespace",
            "default",
            "--service-account",
            "gateway",
        ])?;
        std::fs::write(self.path("token"), token)?;
        self.heddle(&[
            "ca",
            "request",
            "--address",
            &self.secure.to_string(),
            "--roots",
            &self.path("identity/root-cert.pem"),
            "--token-file",
            &self.path("token"),
            "--directory",
            &self.path("certificates"),
        ])?;
        Ok(())
    }

    /// Start Envoy with what `heddle bootstrap` prints.
    async fn envoy(&self, binary: &Path) -> Result<Envoy> {
        let admin = free_address()?;
        let file = self.path("envoy.json");
        self.heddle(&[
            "bootstrap",
            "--node",
            GATEWAY_NODE,
            "--labels",
            "istio=ingressgateway",
            "--xds-address",
            &self.secure.to_string(),
            "--certificates",
            &self.path("certificates"),
            "--admin-port",
            &admin.port().to_string(),
            "--output",
            &file,
        ])?;
        Envoy::from_file(binary, Path::new(&file), admin, self.work.path()).await
    }

    /// Whether the gateway serves the rule.
    async fn redirects(&self) -> Result<()> {
        let mut client = Client::new(self.gateway);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.get("old.example.com", "/").await;
            if answer.as_ref().is_ok_and(|a| a.status == http::StatusCode::MOVED_PERMANENTLY) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the gateway does not redirect: {answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Give the gateway a certificate of so long a life: what an agent would do.
    fn certify(&self, lifetime: Duration) -> Result<()> {
        let now = SystemTime::now();
        let files = read_ca(&self.work.path().join("identity/ca"))?;
        let authority = Authority::from_files(&files, now)?;
        let id = "spiffe://cluster.local/ns/default/sa/gateway".parse()?;
        let key = PrivateKey::generate()?;
        let csr = client::csr(&key, None)?;
        let request = CertifiedRequest::check(csr.as_bytes(), &id)?;
        let mut chain = authority.answer(&authority.issue(&id, &request, lifetime, now)?);
        chain.pop().context("roots")?;
        let content = secrets::file(&secrets::certificate(&chain.concat(), &key.to_pem()?));
        let folder = self.work.path().join("certificates");
        replace(&folder.join("key.pem"), &key.to_pem()?)?;
        replace(&folder.join("cert-chain.pem"), &chain.concat())?;
        replace(&folder.join(secrets::CERTIFICATE_FILE), &content.to_string())
    }

    async fn metric(&self, name: &str) -> Result<u64> {
        let host = self.controller.http.to_string();
        let page = Client::new(self.controller.http).get(&host, "/metrics").await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.split(' ').next_back()?.parse().ok());
        value.with_context(|| format!("no metric {name}"))
    }
}

/// The serial number of the certificate that Envoy holds.
async fn serial(envoy: &Envoy) -> Result<String> {
    let page = envoy.page("/certs").await?;
    let all = page["certificates"].as_array().cloned().unwrap_or_default();
    let chain = all.iter().find_map(|c| c["cert_chain"][0]["serial_number"].as_str());
    Ok(chain.context("Envoy holds no certificate")?.to_owned())
}

fn run(test: impl AsyncFnOnce(&Path) -> Result<()>) {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(test(&envoy)).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn given_a_join_token_then_a_real_envoy_is_served_over_mutual_tls_and_takes_up_a_renewal() {
    run(async |binary| {
        let mut house = House::build().await?;
        house.join()?;
        let mut envoy = house.envoy(binary).await?;
        house.controller.synced(GATEWAY_NODE, 0).await?;
        house.redirects().await?;
        let first = serial(&envoy).await?;
        // No token: the certificate that is there proves who asks.
        let directory = house.path("certificates");
        let address = house.secure.to_string();
        house.heddle(&["ca", "request", "--address", &address, "--directory", &directory])?;
        let deadline = Instant::now() + PATIENCE;
        while serial(&envoy).await? == first {
            ensure!(Instant::now() < deadline, "Envoy did not take up the renewed certificate");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        envoy.check()?;
        let status =
            house.heddle(&["ca", "status", "--admin", &house.controller.admin.to_string()])?;
        ensure!(status.contains("issued        2 of 2"), "{status}");
        // The token is used up.
        let again = house.heddle(&[
            "ca",
            "request",
            "--address",
            &address,
            "--directory",
            &directory,
            "--token-file",
            &house.path("token"),
        ]);
        let error = format!("{:#}", again.expect_err("used up"));
        ensure!(error.contains("join token is unknown, was used, or has expired"), "{error}");
        drop(envoy);
        house.controller.stop()
    });
}

#[test]
fn given_a_command_that_stays_then_an_envoy_is_given_the_next_certificate_in_time() {
    run(async |binary| {
        let mut house = House::build().await?;
        house.join()?;
        // Half of it is over after six seconds.
        house.certify(Duration::from_secs(12))?;
        let envoy = house.envoy(binary).await?;
        house.controller.synced(GATEWAY_NODE, 0).await?;
        let first = serial(&envoy).await?;
        let (address, directory) = (house.secure.to_string(), house.path("certificates"));
        let roots = house.work.path().join("roots.pem");
        std::fs::copy(house.work.path().join("identity/root-cert.pem"), &roots)?;
        let args = ["ca", "request", "--renew", "--address", &address, "--directory", &directory];
        let mut args = args.map(str::to_owned).to_vec();
        args.push(format!("--roots={}", roots.display()));
        let log = house.work.path().join("staying.log");
        let mut staying = Leashed::start("heddle ca request", &house.heddle, &args, &log)?;
        let began = Instant::now();
        while serial(&envoy).await? == first {
            ensure!(began.elapsed() < Duration::from_secs(11), "it was not renewed in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(began.elapsed() > Duration::from_secs(4), "it was renewed too early");
        // Half of a day is far, but there is a second root.
        let second = serial(&envoy).await?;
        let other = Authority::self_signed(&"other".parse()?, SystemTime::now())?;
        let both = [std::fs::read(&roots)?, other.roots].concat();
        replace(&roots, &String::from_utf8(both)?)?;
        let began = Instant::now();
        while serial(&envoy).await? == second {
            ensure!(began.elapsed() < Duration::from_secs(10), "the second root was not noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        staying.check()?;
        ensure!(staying.stop()?.success(), "it did not end in good order");
        drop(envoy);
        house.controller.stop()
    });
}

#[test]
fn given_a_certificate_that_ends_then_a_real_envoy_is_back_with_the_renewed_one_and_sent_little() {
    run(async |binary| {
        let mut house = House::build().await?;
        house.join()?;
        house.certify(Duration::from_secs(8))?;
        let envoy = house.envoy(binary).await?;
        house.controller.synced(GATEWAY_NODE, 0).await?;
        house.redirects().await?;
        let first = serial(&envoy).await?;
        let sent = house.metric("heddle_xds_sent_bytes_total").await?;
        let connections = house.metric("heddle_identity_connections_total").await?;
        house.certify(Duration::from_secs(3600))?;
        let deadline = Instant::now() + PATIENCE;
        while house.metric("heddle_identity_connections_total").await? == connections {
            ensure!(Instant::now() < deadline, "Envoy is not back");
            house.redirects().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(serial(&envoy).await? != first, "Envoy holds the old certificate");
        // Its new stream is synced, and it was never without its rules.
        house.controller.synced(GATEWAY_NODE, 0).await.ok();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let more = house.metric("heddle_xds_sent_bytes_total").await? - sent;
        eprintln!("{more} bytes were sent after the reconnection");
        ensure!(more <= 1024, "{more} bytes were sent after the reconnection");
        house.redirects().await?;
        drop(envoy);
        house.controller.stop()
    });
}
