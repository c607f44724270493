//! Namespace.
//!
//! **Invariant:** only its labels matter.

use std::sync::Arc;

use model::rows::Namespace as NamespaceRow;
use model::{Change, Problem, Row};

use crate::kind::Kind;
use crate::object::RawObject;

/// The kind.
pub(crate) struct Namespace;

// === impl Namespace ===

impl Kind for Namespace {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let row = NamespaceRow { name: Arc::clone(&raw.owner.name), labels: raw.labels };
        (Change { owner: raw.owner, rows: vec![Row::Namespace(row.into())] }, Vec::new())
    }
}
