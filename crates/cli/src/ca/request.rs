//! `heddle ca request`: a certificate for a workload that has no agent.
//!
//! In: the address of the controller, its roots, a token or the certificate that is there. Out:
//! files in a folder, each replaced in one step.
//!
//! With `--renew` it stays beside the workload and does so again and again, so that a pod needs no
//! more than this and an Envoy. Whatever proves who asks is read anew each time: kubelet replaces
//! tokens, and roots change.
//!
//! **Invariant:** the key is made here and never leaves the folder; what is there stays until all
//! of the next is there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use envoy_api::secrets;
use identity::client::{self, Certificate, ClientError, Credential};
use identity::folder::{read, replace};
use identity::renewal::{self, Backoff};
use identity::{PrivateKey, TrustBundle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::{output, report};

/// Pauses between attempts: from, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often the roots are looked at.
const LOOK: Duration = Duration::from_secs(5);

const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";

/// Arguments of `ca request`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Secure port of the controller
    #[arg(
        long,
        env = "HEDDLE_SECURE",
        default_value = "127.0.0.1:15012",
        value_name = "HOST:PORT"
    )]
    address: String,
    /// Folder for cert-chain.pem, key.pem, root-cert.pem, and the same for Envoy as sds-*.json
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Roots by which the controller is known: root-cert.pem of its identity directory. Default:
    /// those in the folder
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// File with a token that proves who asks; without it the certificate in the folder does
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Wanted lifetime in hours; the controller may shorten it
    #[arg(long, value_name = "HOURS")]
    hours: Option<u64>,
    /// How long to try again while there is no certificate to be had
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    wait: u64,
    /// Stay, and get the next certificate when half of the time of the last is over, or when
    /// --roots changes
    #[arg(long)]
    renew: bool,
}

// === impl Args ===

impl Args {
    fn roots_file(&self) -> PathBuf {
        self.roots.clone().unwrap_or_else(|| self.directory.join(ROOTS))
    }

    /// The roots by which the controller is known.
    fn bundle(&self) -> Result<TrustBundle> {
        bundle(&self.roots_file())
    }

    /// Whether there are other roots than these now.
    fn others(&self, known: Option<&TrustBundle>) -> bool {
        self.bundle().is_ok_and(|now| Some(&now) != known)
    }
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        // The first process of a container is not ended by a signal that it does not ask for.
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        tokio::select! {
            done = all(args) => done,
            _ = terminate.recv() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The certificate, and with `--renew` all that follow it.
async fn all(args: &Args) -> Result<()> {
    if !args.renew {
        let wait = Duration::from_secs(args.wait);
        return persist(args, Some(Instant::now() + wait)).await;
    }
    // Those that the certificate which is there came with.
    let mut known = bundle(&args.directory.join(ROOTS)).ok();
    loop {
        if let Ok(present) = present(&args.directory) {
            let due = Instant::now() + renewal::due(present.left());
            while Instant::now() < due && !args.others(known.as_ref()) {
                tokio::time::sleep(LOOK.min(due - Instant::now())).await;
            }
        }
        persist(args, None).await?;
        known = args.bundle().ok();
    }
}

/// Try until there is a certificate; with an end, until then.
async fn persist(args: &Args, end: Option<Instant>) -> Result<()> {
    let (first, longest) = PAUSE;
    let mut backoff = Backoff::new(first, longest);
    loop {
        let Err(error) = once(args).await else { return Ok(()) };
        let pause = backoff.pause();
        if end.is_some_and(|end| Instant::now() + pause >= end) {
            return Err(error);
        }
        report::note(&format!("{error:#}; trying again in {} ms", pause.as_millis()));
        tokio::time::sleep(pause).await;
    }
}

/// Get one certificate.
async fn once(args: &Args) -> Result<()> {
    let folder = &args.directory;
    let bundle = args.bundle()?;
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let kept;
    let credential = match &token {
        Some(token) => Credential::Token(token),
        None => {
            kept = present(folder)?;
            Credential::Certificate(&kept)
        }
    };
    let lifetime = args.hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600)));
    let obtained = client::obtain(&args.address, &bundle, credential, lifetime).await;
    let (certificate, roots) = obtained.map_err(|error| match error {
        ClientError::Connect { .. } => {
            let file = args.roots_file();
            let asked = format!("is the controller there, and are {} its roots?", file.display());
            anyhow::Error::new(error).context(asked)
        }
        error => error.into(),
    })?;
    write(folder, &certificate, &roots)?;
    output::print(&format!("a certificate is in {}", folder.display()))
}

fn bundle(file: &Path) -> Result<TrustBundle> {
    let text = read(file).context("the controller's roots; name them with --roots")?;
    TrustBundle::from_pem(&text).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))
}

fn read_token(file: &Path) -> Result<Zeroizing<String>> {
    let text = read(file).context("--token-file")?;
    let text = std::str::from_utf8(&text).context("--token-file holds no text")?.trim();
    if text.is_empty() {
        bail!("--token-file {} is empty", file.display());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// The certificate of the folder, which proves who asks.
fn present(folder: &Path) -> Result<Certificate> {
    const ELSE: &str = "without --token-file the certificate in the folder is renewed";
    let chain = read(&folder.join(CHAIN)).context(ELSE)?;
    let key = PrivateKey::from_pem(&read(&folder.join(KEY)).context(ELSE)?).context(KEY)?;
    let chain = String::from_utf8_lossy(&chain).into_owned();
    Certificate::new(key, chain).with_context(|| format!("{CHAIN} holds no certificate; {ELSE}"))
}

fn write(folder: &Path, certificate: &Certificate, roots: &TrustBundle) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let (key, chain, roots) = (certificate.key.to_pem()?, &certificate.chain, roots.to_pem());
    let envoy = Zeroizing::new(secrets::file(&secrets::certificate(chain, &key)).to_string());
    let envoy_roots = secrets::file(&secrets::roots(&roots)).to_string();
    for (name, content, mode) in [
        (KEY, key.as_bytes(), 0o600),
        (CHAIN, chain.as_bytes(), 0o644),
        (ROOTS, roots.as_bytes(), 0o644),
        (secrets::ROOTS_FILE, envoy_roots.as_bytes(), 0o644),
        (secrets::CERTIFICATE_FILE, envoy.as_bytes(), 0o600),
    ] {
        replace(&folder.join(name), content, mode)?;
    }
    Ok(())
}
