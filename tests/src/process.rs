//! Child processes that end with their owner.
//!
//! In: a program and its arguments. Out: a guard; when it is dropped, or when this process dies in
//! whatever way, the child is stopped.
//!
//! **Invariant:** a child is stopped by its own id, and is waited for.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A child behind a leash: `leash` stops it as soon as this guard, or this process, is gone,
/// because then the pipe that it reads closes.
#[derive(Debug)]
pub struct Leashed {
    name: String,
    leash: Child,
    log: PathBuf,
}

/// Time that a child has to end by itself; the leash allows it a little less.
const GRACE: Duration = Duration::from_secs(8);

// === impl Leashed ===

impl Leashed {
    /// Start `program`; what it writes goes to `log`.
    pub fn start(name: &str, program: &Path, args: &[String], log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(sibling("leash")?);
        command.arg(program).args(args);
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        // A Ctrl-C in the terminal is for this process; the leash hears of it by the pipe.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let leash = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), leash, log: log.to_owned() })
    }

    /// Fail with the end of its log if the child has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.leash.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}\n{}", self.name, self.log_end()),
        }
    }

    /// Ask the child to end, and wait for it.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end().with_context(|| format!("stopping {}", self.name))
    }

    /// End the child without asking it.
    pub fn kill(mut self) -> Result<()> {
        let child = i32::try_from(self.child()?).ok().and_then(Pid::from_raw);
        kill_process(child.context("no process has this id")?, Signal::KILL)?;
        self.leash.wait()?;
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let mut text = String::new();
        // A log that cannot be read must not hide the error that it was to explain.
        let _ = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Its whole log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Id of the child's leash.
    pub fn id(&self) -> u32 {
        self.leash.id()
    }

    /// Id of the child itself.
    pub fn child(&self) -> Result<u32> {
        let child = children(self.leash.id())?.into_iter().next();
        child.with_context(|| format!("{} is gone", self.name))
    }

    /// Resident memory of the child. Unit: bytes.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most that its resident memory ever was. Unit: bytes.
    pub fn peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, which: &'static str) -> Result<u64> {
        let child = self.child()?;
        let status = std::fs::read_to_string(format!("/proc/{child}/status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix(which)).context(which)?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        drop(self.leash.stdin.take());
        let deadline = Instant::now() + GRACE;
        loop {
            if let Some(status) = self.leash.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.leash.kill()?;
                return Ok(self.leash.wait()?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        // Nothing is left to do about an error here.
        let _ = self.end();
    }
}

/// The processor time of a process, as the system accounts it.
#[derive(Debug)]
pub struct Processor(PathBuf);

// === impl Processor ===

impl Processor {
    /// Ticks of the system per second: the same on every Linux that people run.
    const TICKS: f64 = 100.0;

    /// That of the process with this id.
    pub fn of(process: u32) -> Self {
        Self(format!("/proc/{process}/stat").into())
    }

    /// Seconds since the process started.
    pub fn seconds(&self) -> Result<f64> {
        let text = std::fs::read_to_string(&self.0)?;
        // The name stands in parentheses; user and system time are the 12th and 13th after it.
        let after = text.rsplit_once(") ").context("no name")?.1;
        let field = |n: usize| after.split(' ').nth(n).and_then(|f| f.parse::<f64>().ok());
        let (user, system) = field(11).zip(field(12)).context("no times")?;
        Ok((user + system) / Self::TICKS)
    }
}

/// Ids of the processes that one has started and that still run.
pub fn children(process: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    text.split_whitespace().map(|id| Ok(id.parse()?)).collect()
}

/// A binary of this workspace that stands beside the running one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the own binary")?;
    let places = own.ancestors().skip(1).take(2);
    for place in places {
        let candidate = place.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!(
        "there is no {name} beside {}; build it with `cargo build --workspace --bins`",
        own.display()
    )
}

/// The binary of this name, built now unless it is up to date.
///
/// Only for tests: `cargo test` builds no binaries of other packages.
pub fn built(cargo: &str, name: &str) -> Result<PathBuf> {
    let mut command = Command::new(cargo);
    // With other packages selected, cargo would build the dependencies anew.
    command.args(["build", "--quiet", "--workspace", "--bin", name, "--message-format=json"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output().context("running cargo build")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("cargo built no binary {name} ({})", output.status)
}
