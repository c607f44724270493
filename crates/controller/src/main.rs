//! `heddle-controller`: watches objects, resolves them, serves them over xDS.
//!
//! In: arguments. Out: a process that runs until SIGTERM or SIGINT.
//!
//! **Invariant:** starts the parts and ends them; every task that runs is owned here.

mod admin;
mod claims;
mod connector;
mod event;
#[cfg(test)]
mod fake;
mod identity;
mod injection;
mod leader;
mod logging;
mod metrics;
mod pipeline;
mod problems;
mod publish;
mod pushes;
mod serve;
mod settings;
mod sources;
mod status;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::identity::Identity;
use crate::injection::Injection;
use crate::metrics::InjectionMetrics;
use crate::pipeline::Pipeline;
use crate::serve::{Leaving, Listeners, identifier};
use crate::settings::{Args, Settings, Source};
use crate::sources::directory::Directory;
use crate::sources::kubernetes::{self, Kubernetes};
use crate::status::StatusWriter;
use crate::world::Shared;

/// Streams allocate and free a million small pieces when a thousand proxies come at once; that was a
/// quarter of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events that may wait for the loop. When full, sources and new streams wait; rejections are
/// counted as dropped.
const INBOX: usize = 4096;

fn main() -> ExitCode {
    let settings = match Settings::resolve(Args::parse()) {
        Ok(settings) => settings,
        Err(error) => return fail(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result =
        runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(run(settings)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Say why the process ends: in the log, which goes to standard error.
fn fail(error: &anyhow::Error) -> ExitCode {
    // Settings may be what failed, so the log may not be set up yet; a second set-up is refused.
    let _ = logging::start("info", logging::Format::Text);
    tracing::error!("{error:#}");
    ExitCode::FAILURE
}

async fn run(settings: Settings) -> Result<()> {
    let level = logging::start(&settings.log_level, settings.log_format)?;
    let listeners = Listeners::bind(&settings).await?;
    let leaving = Leaving { max_age: settings.max_connection_age, drain: settings.drain_duration };
    tracing::info!(
        xds = %listeners.xds_address,
        secure = listeners.secure_address.map(tracing::field::display),
        http = %listeners.http_address,
        admin = %listeners.admin_address,
        source = %settings.source,
        "heddle-controller {} starts",
        env!("CARGO_PKG_VERSION"),
    );
    let (inbox, events) = mpsc::channel(INBOX);
    let (stop, stopped) = watch::channel(false);
    let shared = Shared { secured: settings.identity.is_some(), ..Shared::default() };
    let shared = Arc::new(shared);
    let mut tasks = JoinSet::new();

    let client = match settings.source {
        Source::Directory { root, mesh_config } => {
            let source = Directory::open(root, mesh_config)?;
            tasks.spawn(source.run(inbox.clone(), stopped.clone()));
            None
        }
        Source::Kubernetes { mesh_config_map } => {
            let client = kubernetes::connect().await?;
            let states = Arc::clone(&shared.sources);
            let source = Kubernetes::new(client.clone(), mesh_config_map, states);
            tasks.spawn(source.run(inbox.clone(), stopped.clone()));
            let (replica, world) = (identifier(), Arc::clone(&shared));
            tasks.spawn(leader::run(client.clone(), replica.clone(), world, stopped.clone()));
            let writer = StatusWriter::new(client.clone(), replica, Arc::clone(&shared));
            tasks.spawn(writer.run(stopped.clone()));
            Some(client)
        }
    };
    let own = settings.identity.as_ref().map(|identity| &identity.own);
    let trust_domain = own.map(|own| Arc::from(own.trust_domain().as_str()));
    let pipeline = Pipeline::new(Arc::clone(&shared), trust_domain, settings.verify_engine);
    tasks.spawn(pipeline.run(events, stopped.clone()));
    let injection = match settings.injection.zip(client.clone()) {
        Some((settings, client)) => {
            let metrics = InjectionMetrics::new().context("setting up metrics")?;
            Some(Injection::new(settings, client, metrics))
        }
        None => None,
    };
    let identity = settings.identity.map(|identity| Identity::new(identity, client));
    let identity = identity.transpose()?;
    listeners.spawn(&mut tasks, inbox, &shared, identity, injection, level, leaving, &stopped)?;

    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let ended_early = tokio::select! {
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
        ended = tasks.join_next() => ended,
    };
    // A part that ends by itself takes the process along: half a controller is worse than none.
    let early = ended_early.map(|ended| match ended {
        Ok(result) => result,
        Err(error) => Err(anyhow::Error::from(error).context("a part of the controller failed")),
    });
    tracing::info!("heddle-controller stops");
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the controller failed")??;
    }
    early.unwrap_or(Ok(()))
}
