//! `heddle ca request`: a certificate for a workload that has no agent.
//!
//! In: the address of the controller, its roots, a token or the certificate that is there. Out:
//! files in a folder, each replaced in one step.
//!
//! **Invariant:** the key is made here and never leaves the folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use envoy_api::mutual_tls;
use identity::client::{self, Certified};
use identity::folder::{read, replace};
use identity::{PrivateKey, TrustBundle, pem, tls};
use zeroize::Zeroizing;

use crate::output;

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
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let folder = &args.directory;
    let roots = args.roots.clone().unwrap_or_else(|| folder.join(ROOTS));
    let bundle = read(&roots).context("the controller's roots; name them with --roots")?;
    let bundle = TrustBundle::from_pem(&bundle)
        .map_err(|why| anyhow::anyhow!("{}: {why}", roots.display()))?;
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let present = match &token {
        Some(_) => None,
        None => Some(present(folder)?),
    };
    let certificate = present.as_ref().map(|(chain, key)| (chain.clone(), key));
    let config = tls::client_config(&bundle, certificate)?;
    let key = PrivateKey::generate()?;
    let csr = client::csr(&key, None)?;
    let lifetime = args.hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let certified = runtime.block_on(async {
        let channel = client::connect(&args.address, config).await;
        let channel = channel.with_context(|| {
            format!("is the controller there, and are {} its roots?", roots.display())
        })?;
        client::request(&channel, token.as_ref().map(|t| t.as_str()), csr, lifetime)
            .await
            .map_err(anyhow::Error::from)
    })?;
    write(folder, &key, &certified)?;
    output::print(&format!("a certificate is in {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn read_token(file: &Path) -> Result<Zeroizing<String>> {
    let text = read(file).context("--token-file")?;
    let text = std::str::from_utf8(&text).context("--token-file holds no text")?.trim();
    if text.is_empty() {
        bail!("--token-file {} is empty", file.display());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

type Present = (Vec<pem::CertificateDer<'static>>, PrivateKey);

/// The certificate of the folder, which proves who asks.
fn present(folder: &Path) -> Result<Present> {
    const ELSE: &str = "without --token-file the certificate in the folder is renewed";
    let chain = read(&folder.join(CHAIN)).context(ELSE)?;
    let chain = pem::certificates(&chain).filter(|chain| !chain.is_empty());
    let chain = chain.with_context(|| format!("{CHAIN} holds no certificate; {ELSE}"))?;
    let key = PrivateKey::from_pem(&read(&folder.join(KEY)).context(ELSE)?).context(KEY)?;
    Ok((chain, key))
}

fn write(folder: &Path, key: &PrivateKey, certified: &Certified) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let key = key.to_pem()?;
    let Certified { chain, roots } = certified;
    let envoy = Zeroizing::new(mutual_tls::certificate_file(chain, &key).to_string());
    let envoy_roots = mutual_tls::roots_file(roots).to_string();
    for (name, content, mode) in [
        (KEY, key.as_bytes(), 0o600),
        (CHAIN, chain.as_bytes(), 0o644),
        (ROOTS, roots.as_bytes(), 0o644),
        (mutual_tls::ROOTS_FILE, envoy_roots.as_bytes(), 0o644),
        (mutual_tls::CERTIFICATE_FILE, envoy.as_bytes(), 0o600),
    ] {
        replace(&folder.join(name), content, mode)?;
    }
    Ok(())
}
