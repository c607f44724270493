//! `heddle-agent run`: certificate first, then Envoy, until told to end.
//!
//! In: settings. Out: a process beside its workload.
//!
//! **Invariant:** starts the parts and ends them; Envoy starts only once there is a certificate.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::Mode;
use rustix::process::{Signal, umask};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::certificates::Certificates;
use crate::connections::Connections;
use crate::envoy::{self, Envoy, Life, Stop};
use crate::metrics::Metrics;
use crate::pages::{self, Pages};
use crate::readiness::Readiness;
use crate::settings::values::LogLevel;
use crate::settings::{Args, Settings};
use crate::watched::until;
use crate::{bootstrap, sds};

/// Run the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let settings = Settings::resolve(args)?;
    start_log(settings.log_level);
    // One thread: there is little to do, and each thread costs memory in every pod.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(agent(settings))
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        // What happens to a certificate or to Envoy is worth a line.
        _ => tracing::Level::INFO,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    lines.with_ansi(false).init();
}

async fn agent(settings: Settings) -> Result<()> {
    // Whatever is created here is for this user alone, from its first moment on.
    umask(Mode::RWXG | Mode::RWXO);
    let folder = &settings.folder;
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("--folder: creating {}", folder.display()))?;
    let socket = sds::bind(&bootstrap::socket(folder)).context("--folder")?;
    let status = listen("--status-port", settings.status).await?;
    let rest = listen("--metrics-port", settings.metrics).await?;
    let file = bootstrap::write(&settings)?;
    let node = settings.node.id();
    tracing::info!(%node, "heddle-agent {} starts", env!("CARGO_PKG_VERSION"));

    let admin = settings.envoy.admin;
    let (stop, stopped) = watch::channel(Stop::Not);
    let (life, lives) = watch::channel(Life::default());
    let (certificates, mut certificate) = Certificates::new(settings.certificates);
    let connections = Connections::new()?;
    let metrics = Metrics::new(
        admin,
        &settings.application,
        certificate.clone(),
        lives.clone(),
        &connections,
    )?;
    let readiness = Readiness {
        certificate: certificate.clone(),
        life: lives.clone(),
        stop: stopped.clone(),
        admin,
    };
    let pages =
        Pages { metrics: Arc::new(metrics), application: settings.application, stop: stop.clone() };

    // Parts that never end by themselves.
    let mut parts = JoinSet::new();
    parts.spawn(async move {
        certificates.run().await;
        Ok(())
    });
    parts.spawn(sds::serve(socket, certificate.clone(), connections));
    parts.spawn(pages::readiness(status, readiness));
    parts.spawn(pages::rest(rest, pages));
    parts.spawn(signals(stop, lives)?);

    let mut waits = stopped.clone();
    let envoy = Envoy::new(settings.envoy, file, life, stopped);
    let run = async {
        tokio::select! {
            () = until(&mut certificate, |state| state.certificate.is_some()) => envoy.run().await,
            () = until(&mut waits, |stop| *stop > Stop::Not) => {
                tracing::info!("ends before there was a certificate");
                Ok(())
            }
        }
    };
    tokio::select! {
        ended = run => ended,
        Some(ended) = parts.join_next() => {
            ended.context("a part of the agent failed")??;
            bail!("a part of the agent ended");
        }
    }
}

async fn listen(flag: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("{flag}: listening on {address}"))
}

/// Ends the agent when it is asked to, at once when it is asked again, and passes on to Envoy what
/// is for it.
fn signals(
    stop: watch::Sender<Stop>,
    life: watch::Receiver<Life>,
) -> Result<impl Future<Output = Result<()>> + Send + 'static> {
    let listen = |kind| signal(kind).context("listening for signals");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut reopen = listen(SignalKind::user_defined1())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(async move {
        loop {
            let passed_on = tokio::select! {
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                // It opens its log files anew.
                _ = reopen.recv() => Some(Signal::USR1),
                _ = hang_up.recv() => Some(Signal::HUP),
            };
            match passed_on {
                Some(signal) => envoy::signal(life.borrow().process, signal),
                None => stop.send_modify(|stop| {
                    *stop = if *stop == Stop::Not { Stop::Drain } else { Stop::Now };
                }),
            }
        }
    })
}
