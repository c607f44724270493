//! Whose view of the mesh counts.
//!
//! **Invariant:** two clients that see the same objects and own none of them get equal answers.

use std::sync::Arc;

use crate::rows::Visibility;

/// Proxies that resolve alike, as far as namespaces decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Client {
    /// A namespace that no object names: it sees what everybody sees.
    Anyone,
    /// The proxies of a namespace.
    Namespace(Arc<str>),
}

// === impl Client ===

impl Client {
    /// Whether it sees an object.
    pub(super) fn sees(&self, visibility: &Visibility) -> bool {
        match self {
            Self::Anyone => *visibility == Visibility::Everyone,
            Self::Namespace(namespace) => visibility.sees(namespace),
        }
    }

    /// Whether it is of this namespace.
    pub(super) fn is_of(&self, namespace: &str) -> bool {
        matches!(self, Self::Namespace(own) if **own == *namespace)
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anyone => f.write_str("everybody"),
            Self::Namespace(namespace) => f.write_str(namespace),
        }
    }
}
