//! `heddle`: looks into a mesh, and shows what rules would do before they do it.
//!
//! **Invariant:** parses arguments and picks a command; every command is a module of its own.

mod admin;
mod bootstrap;
mod ca;
mod check;
mod cluster;
mod completion;
mod controllers;
mod files;
mod inject;
mod install;
mod output;
mod proxy;
mod proxy_config;
mod render;
mod report;
mod status;
mod token;
mod validate;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Looks into a Heddle mesh, and shows what routing rules do before they do it.
#[derive(Parser)]
#[command(name = "heddle", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what is wrong with files, before they are applied
    Validate(validate::Args),
    /// Print what a proxy would be sent, from files alone
    Render(render::Args),
    /// Show the proxies that are connected and whether they are in sync
    Status(status::Args),
    /// Show the configuration of a proxy, and which object each part of it comes from
    Config(proxy_config::Args),
    /// Print the manifests that install Heddle into a cluster: heddle install | kubectl apply -f -
    Install(install::Args),
    /// Give pods their sidecar, in files, as the webhook does in a cluster
    Inject(inject::Args),
    /// Print an Envoy bootstrap that connects to Heddle
    Bootstrap(bootstrap::Args),
    /// Wait until a URL answers: for probes and scripts
    Wait(wait::Args),
    /// The certificate authority, and certificates from it
    #[command(subcommand)]
    Ca(ca::Command),
    /// Tokens with which machines get their first certificate
    #[command(subcommand)]
    Token(token::Command),
    /// Print a script by which a shell completes commands: bash, zsh, fish, powershell
    Completion(completion::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Validate(args) => validate::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Config(args) => proxy_config::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Inject(args) => inject::run(&args),
        Command::Bootstrap(args) => bootstrap::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Ca(command) => ca::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Completion(args) => completion::run(&args, Args::command()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            report::fatal(&error);
            ExitCode::FAILURE
        }
    }
}
