//! Connections that are no HTTP: by address, by block of addresses, by the name that a TLS client
//! asks for.
//!
//! In: a service's port and who sees it. Out: chains, each a condition and a split.
//!
//! | a port of a service | its connections come in at |
//! |---|---|
//! | with addresses | a listener for each address |
//! | headless | a listener for the address of each endpoint |
//! | with blocks of addresses | the listener that all have on the port, a chain for the blocks |
//! | with none, TLS | the same, a chain for its name |
//! | with none, no TLS | the same, for whatever no chain takes: the first service has it |
//!
//! **Invariant:** no two chains of a listener meet: Envoy would refuse both. The first in order of
//! precedence has what they share.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::client::Client;
use super::cluster::hash_key;
use super::destination::{examine, whole};
use super::rules::{Head, RulesHead, holds};
use super::sidecar::{Viewer, reaches, winner};
use super::view::PortOf;
use super::{ClusterKey, Key, precedence};
use crate::hosts;
use crate::rows::{GatewayName, HashKey, Protocol, RouteRules, TcpMatch, WeightedDestination};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Clusters and their shares, none of which is zero.
pub(crate) type Split = Vec<(ClusterKey, u32)>;

/// A condition on connections, and what they come to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainKey {
    /// Names that a TLS client asks for; empty = any.
    pub server_names: Vec<Arc<str>>,
    /// Blocks of addresses that they are meant for; empty = any.
    pub destinations: Vec<IpNet>,
    /// Blocks of addresses that they come from; empty = any.
    pub clients: Vec<IpNet>,
    /// Where they go.
    pub split: Split,
    /// The rule or service that says so.
    pub origin: (RowId, Arc<str>),
}

/// The chains of a listener that many hosts bring: known again at a glance.
#[derive(Clone, Debug, Default, Eq)]
pub struct Chains(Arc<Vec<ChainKey>>);

/// What a rule list makes of connections to a port, in the order of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RuledConnections {
    pub(crate) rules: RowId,
    pub(crate) viewer: Viewer,
    pub(crate) port: u16,
    /// Whether they are TLS; other rules are for those.
    pub(crate) tls: bool,
    /// The address that they are meant for; none = it may be any.
    pub(crate) address: Option<IpAddr>,
}

/// What becomes of connections to a port that no address leads to a listener of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SharedPort {
    pub(crate) viewer: Viewer,
    pub(crate) port: u16,
}

/// The value of `SharedPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) chains: Chains,
    /// The service that has all others.
    pub(crate) otherwise: Option<ChainKey>,
    /// Whether a server may speak first.
    pub(crate) server_first: bool,
}

/// What connections to one address of a service come to.
pub(super) fn to_address(
    view: &View<'_>,
    viewer: &Viewer,
    of: &PortOf,
    address: IpAddr,
) -> (Vec<ChainKey>, ChainKey) {
    let rules = winner(view, &of.service.host, viewer, says(of));
    let mut chains = ruled(view, viewer, of, rules, Some(address));
    let otherwise = match chains.last() {
        Some(last) if last.is_everything() => chains.pop(),
        _ => None,
    };
    let otherwise = otherwise.unwrap_or_else(|| of_service(view, viewer, of));
    (distinct(chains), otherwise)
}

/// Whether a rule list is for such connections.
fn says(of: &PortOf) -> fn(&Head) -> bool {
    if of.is_tls() { |head| head.has_tls } else { |head| head.has_tcp }
}

/// What rule lists make of connections to a port, in their order.
fn ruled(
    view: &View<'_>,
    viewer: &Viewer,
    of: &PortOf,
    rules: impl IntoIterator<Item = RowId>,
    address: Option<IpAddr>,
) -> Vec<ChainKey> {
    let (port, tls) = (of.number(), of.is_tls());
    let query = |rules| RuledConnections { rules, viewer: viewer.clone(), port, tls, address };
    rules.into_iter().flat_map(|rules| (*view.get(&query(rules))).clone()).collect()
}

/// What connections to a port come to. Where it is what everybody gets, it is that very value: many
/// hosts bring it, and it is compared as often.
pub(super) fn shared(view: &View<'_>, viewer: &Viewer, port: u16) -> Arc<Shared> {
    let own = view.get(&SharedPort { viewer: viewer.clone(), port });
    let everybody = Viewer::sharing(Client::Anyone, viewer.mutual_tls);
    let shares = Viewer::sharing(viewer.client.clone(), viewer.mutual_tls) == *viewer;
    if !shares || *viewer == everybody {
        return own;
    }
    let everybody = view.get(&SharedPort { viewer: everybody, port });
    if own == everybody { everybody } else { own }
}

/// What connections to a port come to that no address leads to a listener of their own: services
/// in order of precedence.
fn find_shared(view: &View<'_>, viewer: &Viewer, port: u16) -> Shared {
    let mut out = Shared::default();
    let mut chains = Vec::new();
    let mut services =
        if viewer.captures { view.shared_port(port) } else { view.stream_port(port) };
    services.sort_by(|(a, x), (b, y)| precedence(x.created, a).cmp(&precedence(y.created, b)));
    for (id, service) in &services {
        let declared = view.ports_of(&service.host, &viewer.client);
        let own = |of: &&PortOf| of.id == *id && of.number() == port;
        let Some(of) = declared.iter().find(own) else { continue };
        if !reaches(view, viewer, &service.namespace, &service.host, port) {
            continue;
        }
        out.server_first |= of.port().0.protocol == Protocol::Tcp;
        let mut of_service = of_shared(view, viewer, of);
        if let Some(last) = of_service.last()
            && last.is_everything()
        {
            let last = of_service.pop();
            if out.otherwise.is_none() {
                out.otherwise = last;
            }
        }
        chains.extend(of_service);
    }
    out.chains = Chains(distinct(chains).into());
    out
}

/// The chains of one service on a port that it shares; the last may be for everything.
pub(super) fn of_shared(view: &View<'_>, viewer: &Viewer, of: &PortOf) -> Vec<ChainKey> {
    let host = &of.service.host;
    let mut rules: Vec<RowId> = winner(view, host, viewer, says(of)).into_iter().collect();
    if of.is_tls() && host.starts_with('*') {
        rules.extend(below(view, viewer, host));
    }
    let mut chains = ruled(view, viewer, of, rules, None);
    chains.push(of_service(view, viewer, of));
    for chain in &mut chains {
        if chain.destinations.is_empty() {
            chain.destinations.clone_from(&of.service.subnets);
        }
    }
    chains
}

/// Rule lists for TLS that claim a host below a pattern, in order of precedence.
fn below(view: &View<'_>, viewer: &Viewer, pattern: &str) -> Vec<RowId> {
    let mut found: Vec<(Option<i64>, RowId)> = Vec::new();
    for id in view.tls_rules() {
        let Some(head) = &*view.get(&RulesHead(id.clone())) else { continue };
        let under = |host: &Arc<str>| **host != *pattern && hosts::covers(pattern, host);
        if head.hosts.iter().any(under) && viewer.client.sees(&view.visibility_of_rules(head)) {
            found.push((head.created, id));
        }
    }
    found.sort_by(|(x, a), (y, b)| precedence(*x, a).cmp(&precedence(*y, b)));
    found.into_iter().map(|(_, id)| id).collect()
}

/// What connections come to that no rule says anything of.
fn of_service(view: &View<'_>, viewer: &Viewer, of: &PortOf) -> ChainKey {
    let PortOf { id, service, .. } = of;
    let addressed = !service.addresses.is_empty() && viewer.captures;
    let named = of.is_tls() && !addressed && !service.headless;
    let cluster = whole(view, &viewer.client, id, service, of.number());
    ChainKey {
        server_names: named.then(|| Arc::clone(&service.host)).into_iter().collect(),
        destinations: Vec::new(),
        clients: Vec::new(),
        split: vec![(cluster, 1)],
        origin: (id.clone(), Arc::from(format!("spec.ports[{}]", of.port().1))),
    }
}

/// Take from each chain what an earlier one has already.
fn distinct(chains: Vec<ChainKey>) -> Vec<ChainKey> {
    let mut taken = BTreeSet::new();
    let mut out = Vec::new();
    for chain in chains {
        let names = each(&chain.server_names);
        let blocks = each(&chain.destinations).into_iter();
        let places = blocks.flat_map(|d| each(&chain.clients).into_iter().map(move |c| (d, c)));
        // What is left of it, for each pair of blocks.
        let rest: Vec<_> = places
            .map(|(destination, client)| {
                let free =
                    |name: &&Option<Arc<str>>| taken.insert(((*name).clone(), destination, client));
                (destination, client, names.iter().filter(free).cloned().collect::<Vec<_>>())
            })
            .collect();
        if rest.iter().all(|(_, _, left)| *left == names) {
            out.push(chain);
            continue;
        }
        let left = rest.into_iter().filter(|(_, _, left)| !left.is_empty());
        out.extend(left.map(|(destination, client, names)| ChainKey {
            server_names: names.into_iter().flatten().collect(),
            destinations: destination.into_iter().collect(),
            clients: client.into_iter().collect(),
            ..chain.clone()
        }));
    }
    out
}

/// Each of some things; none of them means any.
fn each<T: Clone>(some: &[T]) -> Vec<Option<T>> {
    if some.is_empty() { vec![None] } else { some.iter().cloned().map(Some).collect() }
}

/// The clusters of a split, equal ones added up; none when no destination is left.
fn split(
    view: &View<'_>,
    viewer: &Viewer,
    destinations: &[WeightedDestination],
    port: u16,
) -> Option<Split> {
    let examined = examine(view, &viewer.client, destinations, port);
    let mut split: Split = Vec::new();
    for (destination, (cluster, _)) in destinations.iter().zip(examined) {
        let Some(cluster) = cluster else { continue };
        match split.iter_mut().find(|(known, _)| *known == cluster) {
            Some((_, weight)) => *weight = weight.saturating_add(destination.weight),
            None => split.push((cluster, destination.weight)),
        }
    }
    // A weight of nothing is no member of Envoy's split.
    split.retain(|(_, weight)| *weight > 0);
    (!split.is_empty()).then_some(split)
}

// === impl Chains ===

impl Chains {
    /// Each of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ChainKey> {
        self.0.iter()
    }
}

impl PartialEq for Chains {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl PartialOrd for Chains {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Chains {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl Hash for Chains {
    /// Hashes what is cheap; a listener has few versions at a time.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
    }
}

// === impl ChainKey ===

impl ChainKey {
    /// Whether every connection meets the condition.
    fn is_everything(&self) -> bool {
        self.server_names.is_empty() && self.destinations.is_empty() && self.clients.is_empty()
    }

    /// The clusters that it names.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &ClusterKey> {
        self.split.iter().map(|(cluster, _)| cluster)
    }

    /// Whether the client's address decides the endpoint.
    pub(super) fn is_sticky(&self, view: &View<'_>) -> bool {
        self.clusters().any(|cluster| hash_key(view, cluster) == Some(HashKey::SourceIp))
    }
}

/// A condition of a rule, with what the rule says.
struct Condition<'a> {
    /// Field path of the rule.
    field: &'a Arc<str>,
    to: &'a [WeightedDestination],
    server_names: &'a [Arc<str>],
    connection: TcpMatch,
}

/// Every condition of a list, in the order in which they are tried.
fn conditions(list: &RouteRules, tls: bool) -> Vec<Condition<'_>> {
    let mut out = Vec::new();
    for rule in list.tls.iter().filter(|_| tls) {
        let (field, to) = (&rule.field, &rule.destinations[..]);
        out.extend(rule.matches.iter().map(|m| {
            let (server_names, connection) = (&m.server_names[..], m.connection.clone());
            Condition { field, to, server_names, connection }
        }));
    }
    for rule in list.tcp.iter().filter(|_| !tls) {
        let (field, to) = (&rule.field, &rule.destinations[..]);
        let one = |connection| Condition { field, to, server_names: &[], connection };
        out.extend(rule.matches.iter().cloned().map(one));
        out.extend(rule.matches.is_empty().then(|| one(TcpMatch::default())));
    }
    out
}

// === impl SharedPort ===

impl Query for SharedPort {
    type Value = Shared;

    fn run(&self, view: &View<'_>) -> Shared {
        find_shared(view, &self.viewer, self.port)
    }

    fn key(&self) -> Key {
        Key::SharedPort(self.clone())
    }
}

// === impl RuledConnections ===

impl Query for RuledConnections {
    type Value = Vec<ChainKey>;

    fn run(&self, view: &View<'_>) -> Vec<ChainKey> {
        let Self { rules: id, viewer, port, tls, address } = self;
        let Some(list) = view.rules(id) else { return Vec::new() };
        let bound = BTreeSet::from([GatewayName::Mesh]);
        let mut chains = Vec::new();
        for Condition { field, to, server_names, connection } in conditions(&list, *tls) {
            let TcpMatch { port: wanted, destinations: blocks, client, source } = &connection;
            let meant = |address: &IpAddr| blocks.iter().any(|block| block.contains(address));
            if wanted.is_some_and(|wanted| wanted != *port)
                || !holds(source, &viewer.client, &viewer.labels, &bound)
                || (!blocks.is_empty() && address.is_some_and(|address| !meant(&address)))
            {
                continue;
            }
            let Some(split) = split(view, viewer, to, *port) else { continue };
            let chain = ChainKey {
                // Envoy knows no name that is for all.
                server_names: match server_names.iter().any(|name| &**name == "*") {
                    true => Vec::new(),
                    false => server_names.to_vec(),
                },
                destinations: if address.is_some() { Vec::new() } else { blocks.clone() },
                clients: client.iter().copied().collect(),
                split,
                origin: (id.clone(), Arc::clone(field)),
            };
            let last = chain.is_everything();
            chains.push(chain);
            if last {
                break;
            }
        }
        chains
    }

    fn key(&self) -> Key {
        Key::RuledConnections(self.clone())
    }
}
