//! Why a pod cannot be injected.
//!
//! **Invariant:** names the annotation or field, what it says, and what is allowed.

use std::fmt;

/// Everything that is wrong with a pod that is to be injected. Shape: at least one fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal(pub Vec<Fault>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Annotation (`annotation sidecar.istio.io/proxyCPU`) or field (`spec.volumes[0].name`).
    pub place: String,
    /// What is wrong and what to do; follows the place and a colon.
    pub message: String,
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

// === impl Fault ===

impl Fault {
    /// About an annotation: its value, cut where it is long, and what is allowed.
    pub(crate) fn annotation(key: &str, value: &str, allowed: impl fmt::Display) -> Self {
        Self {
            place: format!("annotation {key}"),
            message: format!("{} is not understood: {allowed}", quoted(value)),
        }
    }

    /// About a field.
    pub(crate) fn field(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A value as messages show it.
pub(crate) fn quoted(value: &str) -> String {
    const LONGEST: usize = 80;
    match value.char_indices().nth(LONGEST) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}…", &value[..end]),
    }
}
