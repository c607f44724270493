//! Node.
//!
//! **Invariant:** only its place matters.

use std::sync::Arc;

use model::rows::{Locality, Node as NodeRow};
use model::{Change, Problem, Row};

use crate::kind::Kind;
use crate::object::RawObject;

/// The kind.
pub(crate) struct Node;

// === impl Node ===

impl Kind for Node {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let label = |names: &[&str]| {
            names.iter().find_map(|name| raw.labels.get(*name)).cloned().unwrap_or_default()
        };
        let locality = Locality {
            region: label(&[
                "topology.kubernetes.io/region",
                "failure-domain.beta.kubernetes.io/region",
            ]),
            zone: label(&["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
            subzone: label(&["topology.istio.io/subzone"]),
        };
        let row = NodeRow { name: Arc::clone(&raw.owner.name), locality };
        (Change { owner: raw.owner, rows: vec![Row::Node(row.into())] }, Vec::new())
    }
}
