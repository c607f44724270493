//! `heddle-agent`: beside a workload, gets its certificate and runs its Envoy.
//!
//! **Invariant:** parses arguments and picks a command; every command is a module of its own.

mod bootstrap;
mod call;
mod certificates;
mod connections;
mod envoy;
mod init;
mod keep;
mod metrics;
mod pages;
mod probes;
mod readiness;
mod run;
mod sds;
mod settings;
mod wait;
mod watched;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Envoy beside a workload: its certificate, its start and end, its health.
#[derive(Parser)]
#[command(name = "heddle-agent", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get a certificate, start Envoy with it, and stay until told to end
    Run(Box<settings::Args>),
    /// Redirect the connections of a pod to its proxy; needs CAP_NET_ADMIN
    Init(Box<init::Args>),
    /// Wait until the proxy is ready
    Wait(wait::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Init(args) => init::run(&args),
        Command::Wait(args) => wait::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when nobody reads why.
            let _ = writeln!(std::io::stderr(), "heddle-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
