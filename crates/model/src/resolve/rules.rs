//! What decides *whether* a rule list applies, apart from what it does.
//!
//! **Invariant:** small values that seldom change, read by scopes instead of the rows themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client::Client;
use super::{Key, Labels};
use crate::rows::{GatewayName, HttpAction, HttpMatch, HttpRule, Source, Visibility};
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
    /// Whether it says anything of TLS connections.
    pub(crate) has_tls: bool,
    /// Whether it says anything of other connections.
    pub(crate) has_tcp: bool,
    /// Labels of workloads that its conditions ask for.
    pub(crate) source_labels: BTreeSet<Labels>,
    /// Namespaces that its conditions ask for.
    pub(crate) source_namespaces: BTreeSet<Arc<str>>,
    /// Hosts that it sends to.
    pub(crate) destinations: BTreeSet<Arc<str>>,
}

/// Conditions of a rule list that can never hold for some proxies, because of who they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Excluded {
    pub(crate) rules: RowId,
    pub(crate) client: Client,
    /// Of the labels that rules ask for, those that the workload carries.
    pub(crate) labels: BTreeSet<Labels>,
    /// What the rules are bound by here.
    pub(crate) bound: BTreeSet<GatewayName>,
}

/// Whether any workload of a namespace carries these labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Carried {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: BTreeMap<Arc<str>, Arc<str>>,
}

fn http_destinations(rule: &HttpRule) -> impl Iterator<Item = &Arc<str>> {
    let destinations = match &rule.action {
        HttpAction::Forward(forward) => &forward.destinations[..],
        HttpAction::Redirect(_) | HttpAction::Respond { .. } => &[],
    };
    destinations.iter().map(|d| &d.destination.host)
}

// === impl RulesHead ===

impl Query for RulesHead {
    type Value = Option<Head>;

    fn run(&self, view: &View<'_>) -> Option<Head> {
        let rules = view.rules(&self.0)?;
        let tcp = rules.tcp.iter().flat_map(|rule| &rule.destinations);
        let tls = rules.tls.iter().flat_map(|rule| &rule.destinations);
        let tcp = tcp.chain(tls).map(|d| &d.destination.host);
        Some(Head {
            namespace: Arc::clone(&rules.namespace),
            created: rules.created,
            hosts: rules.hosts.clone(),
            gateways: rules.gateways.clone(),
            export_to: rules.export_to.clone(),
            has_http: !rules.http.is_empty(),
            has_tls: !rules.tls.is_empty(),
            has_tcp: !rules.tcp.is_empty(),
            source_namespaces: rules.sources().filter_map(|s| s.namespace.clone()).collect(),
            source_labels: rules
                .sources()
                .map(|source| source.labels.clone())
                .filter(|labels| !labels.is_empty())
                .collect(),
            destinations: rules
                .http
                .iter()
                .flat_map(http_destinations)
                .chain(tcp)
                .cloned()
                .collect(),
        })
    }

    fn key(&self) -> Key {
        Key::RulesHead(self.clone())
    }
}

// === impl Excluded ===

impl Query for Excluded {
    /// By position of rule and condition.
    type Value = BTreeSet<(usize, usize)>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let Some(rules) = view.rules(&self.rules) else { return BTreeSet::new() };
        let matches = |(i, rule): (usize, &HttpRule)| {
            let excluded = |(_, m): &(usize, &HttpMatch)| {
                !holds(&m.source, &self.client, &self.labels, &self.bound)
            };
            let excluded = rule.matches.iter().enumerate().filter(excluded);
            excluded.map(|(j, _)| (i, j)).collect::<Vec<_>>()
        };
        rules.http.iter().enumerate().flat_map(matches).collect()
    }

    fn key(&self) -> Key {
        Key::Excluded(self.clone())
    }
}

/// Whether a condition on who asks holds.
pub(super) fn holds(
    source: &Source,
    client: &Client,
    labels: &BTreeSet<Labels>,
    bound: &BTreeSet<GatewayName>,
) -> bool {
    let Source { gateways, namespace, labels: wanted } = source;
    (gateways.is_empty() || gateways.iter().any(|gateway| bound.contains(gateway)))
        && namespace.as_ref().is_none_or(|namespace| client.is_of(namespace))
        && (wanted.is_empty() || labels.contains(wanted))
}

// === impl Carried ===

impl Query for Carried {
    type Value = bool;

    fn run(&self, view: &View<'_>) -> bool {
        view.some_workload(&self.namespace, &self.labels, |_| true)
    }

    fn key(&self) -> Key {
        Key::Carried(self.clone())
    }
}
