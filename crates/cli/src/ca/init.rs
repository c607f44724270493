//! `heddle ca init`.
//!
//! **Invariant:** nothing that is there is overwritten.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use identity::folder::{CERTIFICATE, CHAIN, KEY, ROOTS, read_ca, write_ca, write_new};
use identity::{Authority, CaFiles, TrustDomain};
use serde_json::json;
use zeroize::Zeroizing;

use crate::output;

/// Arguments of `ca init`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the root; made when it is not there. Keep it offline
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Folder for the new intermediate: what the controller takes as --ca-directory
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Trust domain, for the names in the certificates
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    trust_domain: String,
    /// Write the intermediate as Secret `cacerts` too, for kubectl apply
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Namespace of that Secret
    #[arg(long, default_value = "heddle-system", value_name = "NAMESPACE")]
    namespace: String,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let trust_domain: TrustDomain = args.trust_domain.parse().context("--trust-domain")?;
    let now = SystemTime::now();
    let there = [KEY, CERTIFICATE].iter().any(|name| args.directory.join(name).exists());
    if there {
        bail!("{} holds a CA already; name another --directory", args.directory.display());
    }
    let made = !args.root.exists();
    if made {
        let files = Authority::self_signed(&trust_domain, now).context("making a root")?;
        write_ca(&args.root, &files).context("--root")?;
    }
    let root = read_ca(&args.root).context("--root")?;
    let root = Authority::from_files(&root, now)
        .with_context(|| format!("--root {}", args.root.display()))?;
    let files = root.intermediate(&trust_domain, now).context("making an intermediate")?;
    // The same checks that the controller makes.
    let intermediate = Authority::from_files(&files, now).context("checking the intermediate")?;
    write_ca(&args.directory, &files).context("--directory")?;
    if let Some(file) = &args.secret {
        write_secret(file, &args.namespace, &files)?;
    }
    let end = |authority: &Authority| identity::ca::at(authority.about().not_after);
    let verb = if made { "made" } else { "used" };
    output::print(&format!(
        "root          {verb} {}, ends {}\nintermediate  made {}, ends {}",
        args.root.display(),
        end(&root),
        args.directory.display(),
        end(&intermediate)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn write_secret(file: &Path, namespace: &str, files: &CaFiles) -> Result<()> {
    let CaFiles { certificate, key, roots, chain } = files;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": namespace },
        "type": "Opaque",
        "stringData": {
            CERTIFICATE: text(certificate),
            KEY: text(key),
            ROOTS: text(roots),
            CHAIN: text(chain),
        },
    });
    let yaml = Zeroizing::new(serde_yaml::to_string(&secret).context("writing YAML")?);
    write_new(file, yaml.as_bytes(), 0o600).context("--secret")
}
