//! How each watch of a source is doing.
//!
//! In: what the watches say. Out: what admin and metrics show.
//!
//! **Invariant:** written by the watches, read by everybody; nothing but readiness depends on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The states, by kind.
#[derive(Default)]
pub(crate) struct SourceStates(Mutex<BTreeMap<&'static str, Watched>>);

/// What is known of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) state: SourceState,
    /// When it came into this state.
    pub(crate) since: SystemTime,
    /// Objects read.
    pub(crate) objects: usize,
    /// Why it is stale.
    pub(crate) error: Option<String>,
}

/// States of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceState {
    /// Being read for the first time.
    Reading,
    /// Read, and followed.
    Watching,
    /// The server has no such kind.
    Absent,
    /// The server does not answer; what was read stays in force.
    Stale,
}

// === impl SourceStates ===

impl SourceStates {
    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Watched>> {
        // Whoever panicked in between left a value that is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, kind: &'static str, state: SourceState, objects: usize, error: Option<String>) {
        let mut all = self.all();
        let before = all.get(kind).filter(|w| w.state == state).map(|w| w.since);
        let since = before.unwrap_or_else(SystemTime::now);
        all.insert(kind, Watched { state, since, objects, error });
    }

    /// A watch is in this state.
    pub(crate) fn set(&self, kind: &'static str, state: SourceState, objects: usize) {
        self.put(kind, state, objects, None);
    }

    /// A watch cannot go on.
    pub(crate) fn fail(&self, kind: &'static str, error: &str, objects: usize) {
        self.put(kind, SourceState::Stale, objects, Some(error.to_owned()));
    }

    /// For how long all watches, those of absent kinds aside, have been stale; none = not all are.
    pub(crate) fn stale_for(&self, now: SystemTime) -> Option<Duration> {
        let all = self.all();
        let present = all.values().filter(|watched| watched.state != SourceState::Absent);
        let since = |w: &Watched| (w.state == SourceState::Stale).then_some(w.since);
        let newest = present.map(since).collect::<Option<Vec<_>>>()?.into_iter().max()?;
        Some(now.duration_since(newest).unwrap_or_default())
    }

    /// Every watch now.
    pub(crate) fn list(&self) -> BTreeMap<&'static str, Watched> {
        self.all().clone()
    }
}

// === impl SourceState ===

impl SourceState {
    /// In a word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "READING",
            Self::Watching => "WATCHING",
            Self::Absent => "ABSENT",
            Self::Stale => "STALE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r109_a_replica_lags_when_no_watch_gets_an_answer_not_when_one_does_not() {
        let states = SourceStates::default();
        let later = SystemTime::now() + Duration::from_secs(90);
        assert_eq!(states.stale_for(later), None);
        states.set("Gateway", SourceState::Absent, 0);
        assert_eq!(states.stale_for(later), None);
        states.set("Service", SourceState::Watching, 1);
        states.fail("Pod", "gone", 1);
        assert_eq!(states.stale_for(later), None);
        states.fail("Service", "gone", 1);
        let lag = states.stale_for(later).expect("all are stale");
        assert!(lag > Duration::from_secs(80), "{lag:?}");
        states.set("Pod", SourceState::Watching, 1);
        assert_eq!(states.stale_for(later), None);
    }
}
