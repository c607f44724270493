//! Namespace.
//!
//! **Invariant:** only its labels matter.

use std::sync::Arc;

use model::rows::Namespace as NamespaceRow;
use model::{Change, Kind as KindName, Problem, Row};

use crate::kind::{Kind, KindScope, kind_name};
use crate::object::RawObject;
use crate::schema::Type;

/// The kind.
pub(crate) struct Namespace;

// === impl Namespace ===

impl Kind for Namespace {
    fn name(&self) -> KindName {
        kind_name("", "Namespace")
    }

    fn scope(&self) -> KindScope {
        KindScope::Cluster
    }

    fn spec(&self) -> Option<&'static Type> {
        None
    }

    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let row = NamespaceRow { name: Arc::clone(&raw.owner.name), labels: raw.labels };
        (Change { owner: raw.owner, rows: vec![Row::Namespace(row)] }, Vec::new())
    }
}
