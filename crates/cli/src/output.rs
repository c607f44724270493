//! Documents on standard output.
//!
//! **Invariant:** written as a whole; a reader that has read enough and leaves (`| head`) is no
//! error.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Print a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    print(&text)
}

/// Print a value as YAML.
pub(crate) fn yaml(value: &impl Serialize) -> Result<()> {
    let text = serde_yaml::to_string(value).context("writing YAML")?;
    print(&text)
}

/// Print a text and end its last line.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}
