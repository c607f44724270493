//! Tests that need a network of their own: they start themselves again within one.
//!
//! In: commands that must work, and what is to be known within. Out: whether this is within, and
//! further namespaces beside it: the machines of a small network.
//!
//! **Invariant:** nothing outside of the namespaces is touched, and they end with the process.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::process::Leashed;

/// Set in the process that runs within the namespace.
const WITHIN: &str = "HEDDLE_WITHIN_NAMESPACE";

/// Commands that a namespace with captured connections takes.
const NEEDED: [(&str, &[&str]); 6] = [
    ("unshare", &["--net", "true"]),
    ("ip", &["-V"]),
    ("nft", &["--version"]),
    ("iptables", &["-V"]),
    ("nsenter", &["-V"]),
    ("setpriv", &["-V"]),
];

/// User that proxies run as which capture connections: what it sends is not captured again.
pub const PROXY_USER: u32 = 1337;

/// Address of this namespace on the devices of its neighbours.
const ROUTER: &str = "fe80::1";

/// Time that a namespace may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// A namespace joined to this one.
#[derive(Debug)]
pub struct Neighbour {
    _holder: Leashed,
    /// Of this process the namespace is.
    process: u32,
}

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

#[allow(clippy::print_stderr, reason = "for tests")]
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
    eprint!("{log}");
    Ok(())
}

/// Run a line of shell.
pub fn run(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", line]).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A program that runs another one as the user [`PROXY_USER`], who may still read every file: a
/// binary may lie in somebody's home.
pub fn as_proxy(program: &Path, work: &Path) -> Result<PathBuf> {
    let user = format!("--reuid {PROXY_USER} --regid {PROXY_USER} --clear-groups");
    let read = "--inh-caps +dac_read_search --ambient-caps +dac_read_search";
    wrapper(&format!("setpriv {user} {read}"), program, &work.join("as-proxy"))
}

/// A script that runs `program` by way of `command`.
fn wrapper(command: &str, program: &Path, script: &Path) -> Result<PathBuf> {
    let text = format!("#!/bin/sh\nexec {command} '{}' \"$@\"\n", program.display());
    std::fs::write(script, text)?;
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script.to_owned())
}

// === impl Neighbour ===

impl Neighbour {
    /// A namespace behind the device `name` of this one, which has these addresses. The way back
    /// from it is to this one, whatever the address.
    pub fn start(name: &str, addresses: &[IpAddr], work: &Path) -> Result<Self> {
        let log = work.join(format!("{name}.log"));
        let forever = ["--net", "sh", "-c", "echo $$ && exec sleep infinity"].map(str::to_owned);
        let holder = Leashed::start(name, Path::new("unshare"), &forever, &log)?;
        let deadline = Instant::now() + PATIENCE;
        let process = loop {
            match std::fs::read_to_string(&log)?.trim().parse() {
                Ok(process) => break process,
                Err(_) => ensure!(Instant::now() < deadline, "no namespace {name}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        run(&format!("ip link add {name} type veth peer name eth0 netns {process}"))?;
        run(&format!("ip link set {name} up"))?;
        let neighbour = Self { _holder: holder, process };
        neighbour.run("ip link set lo up && ip link set eth0 up")?;
        for address in addresses {
            let (ip, length) = if address.is_ipv4() { ("ip", 32) } else { ("ip -6", 128) };
            let nodad = if address.is_ipv4() { "" } else { "nodad" };
            neighbour.run(&format!("{ip} address add {address}/{length} dev eth0 {nodad}"))?;
            run(&format!("{ip} route add {address}/{length} dev {name}"))?;
        }
        neighbour.run("ip route add default dev eth0")?;
        // Neighbours of IPv6 answer only for addresses of the device that they are asked by.
        run(&format!("ip -6 address add {ROUTER}/64 dev {name} nodad"))?;
        neighbour.run(&format!("ip -6 route add default via {ROUTER} dev eth0"))?;
        Ok(neighbour)
    }

    /// Run a line of shell there.
    pub fn run(&self, line: &str) -> Result<()> {
        run(&format!("{} sh -c '{line}'", self.entering()))
    }

    /// A program that runs another one there.
    pub fn within(&self, program: &Path, work: &Path) -> Result<PathBuf> {
        let file = program.file_name().context("a program has a name")?.to_string_lossy();
        wrapper(&self.entering(), program, &work.join(format!("{file}-within-{}", self.process)))
    }

    fn entering(&self) -> String {
        format!("nsenter --net=/proc/{}/ns/net", self.process)
    }
}
