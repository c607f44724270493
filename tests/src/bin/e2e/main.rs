//! `make e2e`: Heddle installed into a real Kubernetes, used as a user uses it.
//!
//! In: `ENVOY_BIN`, the binaries beside this one, root. Out: a line per case, and at the end
//! `N passed, N failed, N skipped`, also to the file that HEDDLE_COUNTS names; the exit code is not
//! 0 if a case failed.
//!
//! Words as arguments choose the cases whose names hold one of them, beside the first two, which all
//! others need. Started plainly it makes the images and a cluster (`tests/cluster/with`) and starts itself again
//! inside. The cases share the cluster and run in the order in which they are written.
//!
//! **Invariant:** leaves nothing behind; what cannot run here says so and counts as skipped.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

mod cases;
mod cluster;
mod identity;
mod injection;
mod inside;
mod mutual_tls;
mod packets;
mod under_load;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use house::process::sibling;

use crate::cluster::Cluster;

/// Says that this process runs inside the cluster.
const INSIDE: &str = "--inside";
const IMAGES: [&str; 4] = ["controller", "proxy", "http-echo", "backend"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        [INSIDE, ref words @ ..] => inside(words),
        [inside::CLIENT, address, host] => inside::client(address, host),
        [packets::READ, ref marks @ ..] => packets::read(marks),
        [inside::GET, address, host, path] => inside::get(address, host, path),
        ref words => outside(words),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Why no cluster can be had on this machine.
fn impossible() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
    };
    if !works("unshare", &["--net", "true"]) {
        return Some("only root may make network namespaces");
    }
    if !works("apt-get", &["--version"]) {
        return Some("the parts of the cluster come from Debian 12 or newer");
    }
    if !works("go", &["version"]) {
        return Some("Kubernetes is compiled with Go, which is not installed");
    }
    None
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn outside(words: &[&str]) -> Result<ExitCode> {
    if let Some(why) = impossible() {
        println!("SKIPPED: {why}");
        return counts(0, 0, cases::ALL.len());
    }
    let began = Instant::now();
    let tools = repository().join("tests/cluster");
    let built = Command::new(tools.join("bins/build")).output().context("compiling Kubernetes")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let bin = String::from_utf8(built.stdout)?.trim().to_owned();
    let programs = sibling("heddle")?;
    let programs = programs.parent().context("a folder of programs")?;
    let folder = tempfile::tempdir()?;
    let mut with = Command::new(tools.join("with"));
    for name in IMAGES {
        let archive = folder.path().join(format!("{name}.tar"));
        let made = Command::new(tools.join("image"))
            .args([name.as_ref(), archive.as_os_str()])
            .env("CLUSTER_BIN", &bin)
            .env("HEDDLE_BIN", programs)
            .status()
            .with_context(|| format!("making image {name}"))?;
        ensure!(made.success(), "image {name} cannot be made: {made}");
        with.arg(archive);
    }
    println!("images made after {:.0?}", began.elapsed());
    let myself = std::env::current_exe()?;
    let status = with
        .arg("--")
        .arg(myself)
        .arg(INSIDE)
        .args(words)
        .status()
        .context("starting a cluster")?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(code @ 1..=254) => Ok(ExitCode::from(u8::try_from(code)?)),
        _ => bail!("{status}"),
    }
}

fn inside(words: &[&str]) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cluster = Cluster::new(repository())?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (index, (name, case)) in cases::ALL.iter().enumerate() {
        if index > 1 && !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            skipped += 1;
            continue;
        }
        let began = Instant::now();
        match runtime.block_on(case(&cluster)) {
            Ok(()) => {
                passed += 1;
                println!("ok      {name} ({:.1?})", began.elapsed());
            }
            Err(error) => {
                failed += 1;
                println!("FAILED  {name} ({:.1?})\n{error:#}\n{}", began.elapsed(), cluster.look());
            }
        }
    }
    counts(passed, failed, skipped)
}

fn counts(passed: usize, failed: usize, skipped: usize) -> Result<ExitCode> {
    let text = format!("{passed} passed, {failed} failed, {skipped} skipped");
    if let Some(file) = std::env::var_os("HEDDLE_COUNTS") {
        std::fs::write(file, format!("{text}\n"))?;
    }
    println!("{text}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
