//! `heddle token create`: a secret with which a machine gets its first certificate.
//!
//! **Invariant:** the token is printed once and kept nowhere.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use identity::{IdentityFolder, JoinTokens, SpiffeId, TrustDomain};

use crate::output;

/// What can be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a join token, good for one certificate
    Create(Args),
}

/// Arguments of `token create`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Identity directory of the controller
    #[arg(long, env = "HEDDLE_IDENTITY_DIRECTORY", value_name = "DIR")]
    identity_directory: PathBuf,
    /// Namespace of the workload
    #[arg(long, value_name = "NAMESPACE")]
    namespace: String,
    /// Service account of the workload
    #[arg(long, default_value = "default", value_name = "NAME")]
    service_account: String,
    /// Trust domain of the mesh
    #[arg(
        long,
        env = "HEDDLE_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    trust_domain: String,
    /// Minutes that the token is good for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
}

/// Run the command.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    let Command::Create(args) = command;
    let trust_domain: TrustDomain = args.trust_domain.parse().context("--trust-domain")?;
    let id = SpiffeId::new(&trust_domain, &args.namespace, &args.service_account)?;
    if !args.identity_directory.is_dir() {
        bail!(
            "{} is no folder; name the one that heddle-controller was given as \
             --identity-directory",
            args.identity_directory.display()
        );
    }
    let folder = IdentityFolder::open(&args.identity_directory)?;
    let lifetime = Duration::from_secs(args.minutes * 60);
    let token = JoinTokens::new(&folder, trust_domain).create(&id, lifetime, SystemTime::now())?;
    output::print(&token)?;
    Ok(ExitCode::SUCCESS)
}
