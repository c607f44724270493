//! `heddle completion`: a script that lets a shell complete commands and flags.
//!
//! **Invariant:** made of the same description that the arguments are read by.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap_complete::Shell;

use crate::output;

/// Arguments of `completion`.
#[derive(clap::Args)]
#[command(after_help = "\
Put it where the shell looks for such scripts:
  bash        heddle completion bash > ~/.local/share/bash-completion/completions/heddle
  zsh         heddle completion zsh > \"${fpath[1]}/_heddle\"
  fish        heddle completion fish > ~/.config/fish/completions/heddle.fish
  powershell  heddle completion powershell >> $PROFILE
or, for this bash only: source <(heddle completion bash)")]
pub(crate) struct Args {
    /// The shell that it is for
    #[arg(value_enum)]
    shell: Shell,
}

/// Run the command.
pub(crate) fn run(args: &Args, mut command: clap::Command) -> Result<ExitCode> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    output::print(&String::from_utf8(script).context("a script that is no text")?)?;
    Ok(ExitCode::SUCCESS)
}
