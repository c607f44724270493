//! `heddle ca`: make an authority offline, look at the one in service, get a certificate.
//!
//! **Invariant:** keys go to files that only their owner reads, never to standard output.

mod init;
mod request;
mod status;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What can be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a CA offline: a root to be locked away, an intermediate for the controller
    Init(init::Args),
    /// Show the controller's CA: who it is, when it ends, what it issued and refused
    Status(status::Args),
    /// Get a certificate from the controller, or renew the one that is there
    Request(request::Args),
}

/// Run the command.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Init(args) => init::run(args),
        Command::Status(args) => status::run(args),
        Command::Request(args) => request::run(args),
    }
}
