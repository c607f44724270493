//! Logs: to standard error, as text or JSON, at a level that can be changed while running.
//!
//! **Invariant:** set up once per process.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow, bail};
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
    // A word that is no level would be taken for a module, and silence everything else.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word));
    let good = |part: &str| is_level(part.rsplit_once('=').map_or(part, |(_, level)| level));
    let parts: Vec<&str> = level.split(',').map(str::trim).collect();
    if !parts.iter().copied().all(good) {
        bail!(
            "log level {level:?} is not understood; use one of {}, or levels of modules such as \
             info,xds=debug",
            LEVELS.join(", ")
        );
    }
    EnvFilter::try_new(parts.join(","))
        .map_err(|e| anyhow!("log level {level:?} is not understood: {e}"))
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

#[cfg(test)]
impl Level {
    /// One that changes no log.
    pub(crate) fn of_nothing() -> Self {
        let (_, handle) = reload::Layer::new(EnvFilter::default());
        Self(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["info", "DEBUG", "off", "xds=debug,info", "info, xds::session=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "xds", "info,xds=loud", "xds=", "info,,debug"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
