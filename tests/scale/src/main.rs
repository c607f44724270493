//! Measures how Heddle serves thousands of proxies, beside a floor and go-control-plane.
//!
//! In: the controller beside this binary, built for release; Go, if there is one. Out: a table, and
//! JSON.
//!
//! **Invariant:** a lost change, a final state that differs and a rejected response fail the run,
//! whatever the figures are.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

mod connection;
mod fleet;
mod floor;
mod known;
mod lane;
mod measure;
mod proxy;
mod scenarios;
mod servers;
mod table;
mod wire;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum as _};

use crate::scenarios::{Scenario, Sizes};

/// Measure how Heddle serves thousands of proxies.
#[derive(Debug, Parser)]
#[command(name = "bench_scale", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Scenarios to run, in this order; all, if none is named
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// A few hundred proxies and a few changes; bars are ratios to the floor
    #[arg(long)]
    short: bool,
    /// Leave go-control-plane out; short runs do anyway
    #[arg(long)]
    without_go: bool,
    /// File that the figures are written to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the floor server
    #[command(hide = true)]
    Floor { xds: SocketAddr, control: SocketAddr },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Some(Command::Floor { xds, control }) => floor::run(xds, control).map(|()| true),
        None => bench(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench_scale: a bar was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench_scale failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<bool> {
    if cfg!(debug_assertions) {
        eprintln!("bench_scale: this is a debug build; use `make bench-scale`");
    }
    raise_file_limit()?;
    let sizes = Sizes {
        proxies: if args.short { 300 } else { 1000 },
        short: args.short,
        with_go: !args.short && !args.without_go,
    };
    let mut rows = Vec::new();
    let all = if args.short { Scenario::SHORT } else { Scenario::value_variants() };
    let scenarios = if args.scenarios.is_empty() { all } else { &args.scenarios };
    for scenario in scenarios {
        let name = format!("{scenario:?}");
        rows.extend(scenario.run(sizes).with_context(|| name)?);
    }
    println!("{}", table::markdown(&rows));
    if let Some(file) = &args.json {
        std::fs::write(file, format!("{:#}\n", table::json(&rows)))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(rows.iter().all(|row| row.is_met() != Some(false)))
}

/// A connection is a file, here and in the servers, which inherit the limit.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}
