//! What workloads demand of their clients.
//!
//! In: peer policies. Out: for the labels of a workload, what it takes on each port.
//!
//! | asked in this order | says |
//! |---|---|
//! | the first policy of the namespace that selects the workload | its port, else all its ports |
//! | the first policy for all of the namespace | all ports |
//! | the first policy for all of the root namespace | all ports |
//! | otherwise | permissive |
//!
//! A policy that says nothing is passed over for the next line. First = oldest, then by name.
//!
//! **Invariant:** without a policy nothing is refused, and nothing that a policy refuses is taken
//! because a proxy has no certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Key, Labels, precedence, selects};
use crate::ir::Takes;
use crate::rows::{PeerMode, PeerPolicy};
use crate::snapshot::{IndexKey, RowId};
use crate::track::{Query, View};

/// What workloads of a namespace take.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerModes(pub(crate) Arc<str>);

/// The value of `PeerModes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Modes {
    /// What those take that no policy selects.
    otherwise: PeerMode,
    /// Policies that select workloads, in order of precedence.
    selecting: Vec<Arc<PeerPolicy>>,
}

/// What a workload takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OfWorkload {
    mode: PeerMode,
    ports: BTreeMap<u16, PeerMode>,
}

/// What a workload takes on ports that nothing declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherPorts {
    /// On these.
    pub ports: BTreeMap<u16, Takes>,
    /// On all others.
    pub takes: Takes,
}

// === impl PeerModes ===

impl Query for PeerModes {
    type Value = Modes;

    fn run(&self, view: &View<'_>) -> Modes {
        let root = Arc::clone(&view.mesh().root_namespace);
        let of = |namespace: &Arc<str>| {
            let key = IndexKey::PeerPolicyIn(Arc::clone(namespace));
            let mut found: Vec<(RowId, Arc<PeerPolicy>)> = view.bucket(&key, |s| &s.peer_policies);
            found.sort_by(|(a, x), (b, y)| precedence(x.created, a).cmp(&precedence(y.created, b)));
            found.into_iter().map(|(_, policy)| policy).collect::<Vec<_>>()
        };
        let whole = |policies: &[Arc<PeerPolicy>]| {
            policies.iter().find(|policy| policy.selector.is_empty()).and_then(|policy| policy.mode)
        };
        let own = of(&self.0);
        let otherwise = whole(&own).or_else(|| whole(&of(&root))).unwrap_or_default();
        let selecting = own.into_iter().filter(|policy| !policy.selector.is_empty()).collect();
        Modes { otherwise, selecting }
    }

    fn key(&self) -> Key {
        Key::PeerModes(self.clone())
    }
}

// === impl Modes ===

impl Modes {
    /// What a workload with these labels takes.
    pub(super) fn of(&self, labels: &Labels) -> OfWorkload {
        match self.selecting.iter().find(|policy| selects(&policy.selector, labels)) {
            None => OfWorkload { mode: self.otherwise, ports: BTreeMap::new() },
            Some(own) => {
                let mode = own.mode.unwrap_or(self.otherwise);
                OfWorkload { mode, ports: own.ports.clone() }
            }
        }
    }

    /// Whether a workload with these labels takes mutual TLS on a port, if its proxy can.
    pub(super) fn allow_mutual_tls(&self, labels: &Labels, port: u16) -> bool {
        if self.selecting.is_empty() {
            return self.otherwise != PeerMode::Disable;
        }
        self.of(labels).on(port) != PeerMode::Disable
    }
}

// === impl OfWorkload ===

impl OfWorkload {
    /// On a port.
    pub(super) fn on(&self, port: u16) -> PeerMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }

    /// On ports other than these.
    pub(super) fn others(&self, declared: impl Fn(u16) -> bool, mutual_tls: bool) -> OtherPorts {
        let others = self.ports.iter().filter(|(port, _)| !declared(**port));
        let ports = others.map(|(port, mode)| (*port, Takes::of(*mode, mutual_tls))).collect();
        OtherPorts { ports, takes: Takes::of(self.mode, mutual_tls) }
    }
}
