//! The life of Envoy: started, started again when it ends, drained and ended.
//!
//! In: settings, the bootstrap, when to stop. Out: how it is, and how it ended.
//!
//! **Invariant:** at most one Envoy runs; it does not outlive [`Envoy::run`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Method;
use identity::renewal::Backoff;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::call;
use crate::settings::EnvoySettings;
use crate::watched::until;

/// Pauses before it is started again: from, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Running so long, it is well: the next pause is a first one.
const WELL: Duration = Duration::from_secs(30);
/// Time to end by itself once it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How often connections are counted while they drain.
const COUNT: Duration = Duration::from_millis(250);

/// Whether the agent is to end. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// No.
    #[default]
    Not,
    /// Serve on while others learn of it, then end.
    Drain,
    /// At once.
    Now,
}

/// How Envoy is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    /// Its process, while it runs.
    pub(crate) process: Option<u32>,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// How it ended, or why it could not be started; the last time.
    pub(crate) trouble: Option<String>,
}

/// Runs one Envoy.
pub(crate) struct Envoy {
    settings: EnvoySettings,
    bootstrap: PathBuf,
    life: watch::Sender<Life>,
    stop: watch::Receiver<Stop>,
}

// === impl Envoy ===

impl Envoy {
    /// Nothing is started before [`Self::run`].
    pub(crate) fn new(
        settings: EnvoySettings,
        bootstrap: PathBuf,
        life: watch::Sender<Life>,
        stop: watch::Receiver<Stop>,
    ) -> Self {
        Self { settings, bootstrap, life, stop }
    }

    /// Keep it running until it is to stop; fails if it cannot be started, or ends badly then.
    pub(crate) async fn run(mut self) -> Result<()> {
        let (first, longest) = PAUSE;
        let mut backoff = Backoff::new(first, longest);
        loop {
            let mut child = self.start().with_context(|| {
                format!("starting {}; name another with --envoy", self.settings.binary.display())
            })?;
            let began = Instant::now();
            let ended = tokio::select! {
                ended = child.wait() => Some(ended),
                () = until(&mut self.stop, |stop| *stop > Stop::Not) => None,
            };
            let Some(ended) = ended else { return self.end(child).await };
            let ended = ended.context("waiting for Envoy")?;
            if began.elapsed() >= WELL {
                backoff.reset();
            }
            let pause = backoff.pause();
            let pause_ms = pause.as_millis() as u64;
            tracing::error!(restart_ms = pause_ms, "Envoy ended with {ended}");
            self.life.send_modify(|life| {
                *life = Life {
                    process: None,
                    restarts: life.restarts + 1,
                    trouble: Some(format!("it ended with {ended}")),
                };
            });
            tokio::select! {
                () = sleep(pause) => {}
                () = until(&mut self.stop, |stop| *stop > Stop::Not) => return Ok(()),
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let EnvoySettings { binary, concurrency, log_level, component_log_level, drain, .. } =
            &self.settings;
        let mut command = Command::new(binary);
        command.arg("--config-path").arg(&self.bootstrap);
        // No second Envoy takes over from this one, so nothing is shared with any other.
        command.arg("--disable-hot-restart");
        command.args(["--log-level", log_level.as_str()]);
        command.args(["--drain-time-s", &drain.as_secs().max(1).to_string()]);
        // Answers say at once that the connection ends, not later and later ones only.
        command.args(["--drain-strategy", "immediate"]);
        if let Some(count) = concurrency {
            command.args(["--concurrency", &count.to_string()]);
        }
        if let Some(levels) = component_log_level {
            command.args(["--component-log-level", levels]);
        }
        // A Ctrl-C in the terminal is for the agent, which drains first.
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        tracing::info!(process = child.id(), "Envoy starts");
        self.life.send_modify(|life| life.process = child.id());
        Ok(child)
    }

    async fn end(mut self, mut child: Child) -> Result<()> {
        if *self.stop.borrow() == Stop::Drain {
            let mut now = self.stop.clone();
            tokio::select! {
                () = self.drain() => {}
                () = until(&mut now, |stop| *stop == Stop::Now) => {
                    tracing::info!("stops draining");
                }
                ended = child.wait() => {
                    self.life.send_modify(|life| life.process = None);
                    bail!("Envoy ended while it was drained: {}", ended.context("waiting for it")?);
                }
            }
        }
        signal(child.id(), Signal::TERM);
        let ended = match timeout(GRACE, child.wait()).await {
            Ok(ended) => ended.context("waiting for Envoy")?,
            Err(_) => {
                tracing::warn!("Envoy does not end within {GRACE:?} and is killed");
                child.kill().await.context("killing Envoy")?;
                return self.told(None);
            }
        };
        self.told(Some(ended))
    }

    /// Say how it ended when it was asked to.
    fn told(&mut self, ended: Option<ExitStatus>) -> Result<()> {
        self.life.send_modify(|life| life.process = None);
        match ended {
            Some(ended) if !is_good(ended) => bail!("Envoy ended with {ended}"),
            Some(ended) => tracing::info!("Envoy ended with {ended}"),
            None => {}
        }
        Ok(())
    }

    /// Serve on while clients learn that it goes.
    async fn drain(&mut self) {
        let EnvoySettings { admin, drain, until_idle, inbound_only, .. } = self.settings;
        tracing::info!("drains for {drain:?}{}", if until_idle { " at least" } else { "" });
        // Listeners stay open: who has not yet learnt of it is served. The workload may call
        // others until its own end.
        let listeners = match inbound_only {
            true => "/drain_listeners?graceful&skip_exit&inboundonly",
            false => "/drain_listeners?graceful&skip_exit",
        };
        for path in ["/healthcheck/fail", listeners] {
            if let Err(error) = call::admin(admin, Method::POST, path).await {
                tracing::warn!("draining: {error:#}");
            }
        }
        sleep(drain).await;
        if until_idle && let Err(error) = idle(admin).await {
            tracing::warn!("counting connections: {error:#}");
        }
    }
}

/// Wait until no connection is left.
async fn idle(admin: SocketAddr) -> Result<()> {
    loop {
        let count = connections(admin).await?;
        if count == 0 {
            return Ok(());
        }
        tracing::debug!(count, "connections are left");
        sleep(COUNT).await;
    }
}

/// Pass a signal on; a process that is gone needs none.
pub(crate) fn signal(process: Option<u32>, signal: Signal) {
    let id = process.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id
        && let Err(error) = kill_process(id, signal)
    {
        tracing::debug!("passing {signal:?} on to Envoy: {error}");
    }
}

/// Whether this is how an Envoy ends that was asked to.
fn is_good(ended: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    ended.success() || ended.signal() == Some(Signal::TERM.as_raw())
}

/// Connections of clients that are open, but for those to the admin pages.
async fn connections(admin: SocketAddr) -> Result<u64> {
    const PAGE: &str = "/stats?usedonly&filter=^listener%5C..*downstream_cx_active$";
    Ok(active(&call::admin(admin, Method::GET, PAGE).await?))
}

fn active(page: &str) -> u64 {
    let lines = page.lines().filter(|line| !line.starts_with("listener.admin."));
    // Those of its workers are in that of the listener.
    let lines = lines.filter(|line| !line.contains(".worker_"));
    lines.filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_once_and_without_those_of_the_admin_pages() {
        let page = "listener.admin.downstream_cx_active: 1\n\
                    listener.0.0.0.0_15006.downstream_cx_active: 3\n\
                    listener.0.0.0.0_15006.worker_0.downstream_cx_active: 3\n\
                    listener.[__]_15001.downstream_cx_active: 2\n";
        assert_eq!(active(page), 5);
        assert_eq!(active(""), 0);
    }
}
