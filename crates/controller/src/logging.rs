//! Logs: to standard error, as text or JSON, at a level that can be changed while running.
//!
//! **Invariant:** set up once per process.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the log level.
#[derive(Clone)]
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

/// Set up the log.
pub(crate) fn start(level: &str, format: Format) -> Result<Level> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .context("setting up the log")?;
    Ok(Level(handle))
}

fn parse(level: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(level).map_err(|e| anyhow!("log level {level:?} is not understood: {e}"))
}

// === impl Level ===

impl Level {
    /// The level now.
    pub(crate) fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Change it.
    pub(crate) fn set(&self, level: &str) -> Result<()> {
        self.0.reload(parse(level)?).context("changing the log level")
    }
}
