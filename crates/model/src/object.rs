//! Who a thing comes from: objects, as users name them, and the place in them.
//!
//! In: what a source read. Out: identities that order the same way on every replica, and the
//! origin that every output carries.
//!
//! **Invariant:** never sees a CRD; a kind is only a name here.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What kind of object this is: API group and kind, without the version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Kind as written in YAML, such as `VirtualService`.
    pub name: Cow<'static, str>,
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
}

/// Names one object of one source.
///
/// Shape: a cluster-scoped object has an empty namespace. Order: namespace, name, kind, source,
/// which is also the tie-break of precedence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// The source it was read from: a cluster, a directory, a registry.
    pub source: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty when the kind has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// The place in an object that a piece of configuration comes from.
#[derive(Clone)]
pub struct Origin {
    /// The object.
    pub object: Arc<ObjectRef>,
    /// Field path within it, such as `spec.http[0].route[1]`; empty for the object as a whole.
    pub field: Arc<str>,
}

/// All places that one output comes from, most decisive first.
///
/// Always equal to any other and never hashed: where a thing was written must not decide whether
/// it is sent again, else a reformatted file would wake every proxy.
#[derive(Clone, Default)]
pub struct Origins(pub Vec<Origin>);

// === impl ObjectRef ===

impl ObjectRef {
    /// `namespace/name`, or only the name for a cluster-scoped object.
    pub fn qualified_name(&self) -> String {
        if self.namespace.is_empty() {
            self.name.to_string()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name, self.qualified_name())
    }
}

impl Ord for ObjectRef {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.namespace, &self.name, &self.kind, &self.source).cmp(&(
            &other.namespace,
            &other.name,
            &other.kind,
            &other.source,
        ))
    }
}

impl PartialOrd for ObjectRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// === impl Origin ===

impl Origin {
    /// The place `field` of `object`.
    pub fn new(object: &Arc<ObjectRef>, field: impl Into<Arc<str>>) -> Self {
        Self { object: Arc::clone(object), field: field.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}", self.object)
        } else {
            write!(f, "{} {}", self.object, self.field)
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Origins ===

impl Origins {
    /// From one place only.
    pub fn one(origin: Origin) -> Self {
        Self(vec![origin])
    }

    /// Add a place unless it is already there.
    pub fn push(&mut self, origin: Origin) {
        let known = |o: &Origin| o.object == origin.object && o.field == origin.field;
        if !self.0.iter().any(known) {
            self.0.push(origin);
        }
    }

    /// Whether both name the same places, which `==` on purpose does not tell.
    pub fn same_places(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(a, b)| a.object == b.object && a.field == b.field)
    }
}

impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origins {}

impl Hash for Origins {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}
