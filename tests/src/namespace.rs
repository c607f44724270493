//! Tests that need a network of their own: they start themselves again within one.
//!
//! In: commands that must work, and what is to be known within. Out: whether this is within.
//!
//! **Invariant:** nothing outside of the namespace is touched, and it ends with the process.

use std::process::Command;

use anyhow::{Result, ensure};

/// Set in the process that runs within the namespace.
const WITHIN: &str = "HEDDLE_WITHIN_NAMESPACE";

/// Commands that a namespace with captured connections takes.
const NEEDED: [(&str, &[&str]); 3] =
    [("unshare", &["--net", "true"]), ("ip", &["-V"]), ("iptables", &["-V"])];

/// Whether this process is within a namespace of its own. If not, the test that calls is run again
/// within one, and has passed when this returns; or it is skipped aloud, where that cannot be.
///
/// `carried` is what [`carried`] says within.
///
/// # Panics
/// When the test fails within.
#[allow(clippy::panic, clippy::print_stderr, reason = "for tests")]
pub fn is_within(carried: impl FnOnce() -> Result<String>) -> bool {
    if std::env::var_os(WITHIN).is_some() {
        return true;
    }
    for (command, args) in NEEDED {
        if !Command::new(command).args(args).output().is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED: `{command} {}` does not work here; it needs root", args.join(" "));
            return false;
        }
    }
    match again(carried) {
        Ok(()) => false,
        Err(error) => panic!("{error:#}"),
    }
}

/// What was carried into the namespace.
pub fn carried() -> String {
    std::env::var(WITHIN).unwrap_or_default()
}

fn again(carried: impl FnOnce() -> Result<String>) -> Result<()> {
    // Only the thread of a test has its name.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe()?)
        .args(["--exact", &test, "--nocapture"])
        .env(WITHIN, carried()?)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && text.contains("1 passed"), "{text}\n{log}");
    Ok(())
}

/// Run a line of shell.
pub fn run(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", line]).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
