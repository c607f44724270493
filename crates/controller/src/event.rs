//! Everything that can happen to the controller.
//!
//! **Invariant:** closed: what is not here cannot change what proxies are sent.

use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Places;
use config::yaml::Mark;
use model::{Change, ObjectRef, Problem, Proxy, ProxyKey, Row};
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use crate::status::conditions::Condition;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A source read something.
    Source(SourceUpdate),
    /// A source has said everything that it knew at start.
    Synced,
    /// A proxy opened a stream.
    Connected {
        key: ProxyKey,
        proxy: Box<Proxy>,
        /// Where its scope is told.
        scope: watch::Sender<Option<xds::ScopeId>>,
    },
    /// A stream ended.
    Disconnected(ProxyKey),
    /// A proxy rejected something, or a wait ended by its limit.
    Stream(xds::Event),
}

// === impl Event ===

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(update) => {
                write!(f, "read:")?;
                for (change, _) in update.objects.iter().take(20) {
                    let gone = if change.rows.is_empty() { " (gone or refused)" } else { "" };
                    write!(f, " {}{gone}", change.owner)?;
                }
                match update.objects.len() {
                    0 => write!(f, " no object"),
                    n if n > 20 => write!(f, " and {} more", n - 20),
                    _ => Ok(()),
                }
            }
            Self::Synced => write!(f, "source is synced"),
            Self::Connected { key, proxy, .. } => {
                write!(f, "stream {} of {} connected", key.0, proxy.id)
            }
            Self::Disconnected(key) => write!(f, "stream {} ended", key.0),
            Self::Stream(event) => write!(f, "stream {} said something", event.stream.0),
        }
    }
}

/// What a source read since it last spoke.
#[derive(Debug, Default)]
pub(crate) struct SourceUpdate {
    /// Objects that changed; none = the object is gone.
    pub(crate) objects: Vec<(Change, Option<Arc<SourceObject>>)>,
    /// What is wrong with files as a whole, all of it, where it changed.
    pub(crate) files: Option<Vec<FileProblem>>,
}

/// An object as its source has it.
#[derive(Debug)]
pub(crate) struct SourceObject {
    /// Where it is written; none for what an API server holds.
    pub(crate) written: Option<Written>,
    /// Generation, where the API server counts it.
    pub(crate) generation: Option<i64>,
    /// What its status says already; nothing where nobody writes one.
    pub(crate) conditions: Vec<Condition>,
    /// Faults within the object.
    pub(crate) problems: Vec<Problem>,
}

/// The file of an object, and where its fields stand there.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) file: Arc<Path>,
    pub(crate) places: Places,
}

// === impl SourceObject ===

impl SourceObject {
    /// Equal for objects that mean the same to us, wherever they are written.
    pub(crate) fn digest(&self, rows: &[Row]) -> u128 {
        let mut hasher = Xxh3::new();
        rows.hash(&mut hasher);
        self.problems.hash(&mut hasher);
        (self.generation, &self.conditions).hash(&mut hasher);
        hasher.digest128()
    }

    /// File and line of a field, such as `rules.yaml:12`.
    pub(crate) fn place(&self, field: &str) -> Option<String> {
        let Written { file, places } = self.written.as_ref()?;
        Some(format!("{}:{}", file.display(), places.locate(field).line))
    }

    /// Line of a field in its file.
    pub(crate) fn line(&self, field: &str) -> Option<u32> {
        Some(self.written.as_ref()?.places.locate(field).line)
    }
}

/// Something wrong with a file, or with a document that is no object of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileProblem {
    pub(crate) file: PathBuf,
    pub(crate) at: Mark,
    pub(crate) object: Option<Arc<ObjectRef>>,
    pub(crate) severity: model::Severity,
    pub(crate) message: String,
}
