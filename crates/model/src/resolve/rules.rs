//! What decides *whether* a rule list applies, apart from what it does.
//!
//! **Invariant:** small values that seldom change, read by scopes instead of the rows themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Key;
use crate::rows::{GatewayName, HttpAction, HttpRule, Visibility};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Hosts, bindings and visibility of a rule list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RulesHead(pub(crate) RowId);

/// The value of `RulesHead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) namespace: Arc<str>,
    pub(crate) created: Option<i64>,
    pub(crate) hosts: Vec<Arc<str>>,
    pub(crate) gateways: Vec<GatewayName>,
    /// None = as the mesh has it.
    pub(crate) export_to: Option<Visibility>,
    /// Whether it says anything of HTTP.
    pub(crate) has_http: bool,
    /// Hosts that it sends to.
    pub(crate) destinations: BTreeSet<Arc<str>>,
}

/// Whether any workload of a namespace carries these labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Carried {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: BTreeMap<Arc<str>, Arc<str>>,
}

fn destinations(rule: &HttpRule) -> impl Iterator<Item = &Arc<str>> {
    let destinations = match &rule.action {
        HttpAction::Forward(forward) => &forward.destinations[..],
        HttpAction::Redirect(_) => &[],
    };
    destinations.iter().map(|d| &d.destination.host)
}

// === impl RulesHead ===

impl Query for RulesHead {
    type Value = Option<Head>;

    fn run(&self, view: &View<'_>) -> Option<Head> {
        let rules = view.rules(&self.0)?;
        Some(Head {
            namespace: Arc::clone(&rules.namespace),
            created: rules.created,
            hosts: rules.hosts.clone(),
            gateways: rules.gateways.clone(),
            export_to: rules.export_to.clone(),
            has_http: !rules.http.is_empty(),
            destinations: rules.http.iter().flat_map(destinations).cloned().collect(),
        })
    }

    fn key(&self) -> Key {
        Key::RulesHead(self.clone())
    }
}

// === impl Carried ===

impl Query for Carried {
    type Value = bool;

    fn run(&self, view: &View<'_>) -> bool {
        view.any_workload(&self.namespace, &self.labels)
    }

    fn key(&self) -> Key {
        Key::Carried(self.clone())
    }
}
