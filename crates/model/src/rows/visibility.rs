//! Who sees an object: the namespaces that it is exported to.
//!
//! **Invariant:** nobody sees more than was written: an empty set is nobody, not everybody.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Namespaces that see an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Visibility {
    /// All of them.
    Everyone,
    /// These; none = nobody.
    Namespaces(BTreeSet<Arc<str>>),
}

/// Visibility before it is known whose: what objects have that do not name theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DefaultVisibility {
    /// Every namespace.
    #[default]
    Everyone,
    /// Some.
    Only {
        /// Whether the object's own is one of them.
        own: bool,
        /// The others.
        namespaces: BTreeSet<Arc<str>>,
    },
}

// === impl Visibility ===

impl Visibility {
    /// Whether clients of a namespace see the object.
    pub fn sees(&self, client: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespaces(namespaces) => namespaces.contains(client),
        }
    }

    /// Whether some namespace may see both this object and another.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everyone, Self::Everyone) => true,
            (Self::Everyone, Self::Namespaces(some)) | (Self::Namespaces(some), Self::Everyone) => {
                !some.is_empty()
            }
            (Self::Namespaces(some), Self::Namespaces(others)) => !some.is_disjoint(others),
        }
    }
}

// === impl DefaultVisibility ===

impl DefaultVisibility {
    /// The object's own namespace and no other.
    pub fn own() -> Self {
        Self::Only { own: true, namespaces: BTreeSet::new() }
    }

    /// What it comes to for an object of a namespace.
    pub fn of(&self, namespace: &Arc<str>) -> Visibility {
        match self {
            Self::Everyone => Visibility::Everyone,
            Self::Only { own, namespaces } => {
                let own = own.then(|| Arc::clone(namespace));
                Visibility::Namespaces(namespaces.iter().cloned().chain(own).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|n| Arc::from(*n)).collect()
    }

    #[test]
    fn an_empty_set_is_nobody() {
        let nobody = Visibility::Namespaces(BTreeSet::new());
        assert!(!nobody.sees("a") && !nobody.sees(""));
        assert!(!nobody.meets(&Visibility::Everyone) && !Visibility::Everyone.meets(&nobody));
    }

    #[test]
    fn objects_meet_where_one_namespace_sees_both() {
        let of = |names| Visibility::Namespaces(some(names));
        assert!(of(&["a", "b"]).meets(&of(&["b"])) && of(&["a"]).meets(&Visibility::Everyone));
        assert!(!of(&["a"]).meets(&of(&["b"])));
    }

    #[test]
    fn own_is_the_namespace_of_each_object() {
        let own = DefaultVisibility::own();
        assert!(own.of(&"a".into()).sees("a") && !own.of(&"a".into()).sees("b"));
        let list = DefaultVisibility::Only { own: false, namespaces: some(&["b"]) };
        assert!(!list.of(&"a".into()).sees("a") && list.of(&"a".into()).sees("b"));
        assert!(DefaultVisibility::default().of(&"a".into()).sees("b"));
    }
}
