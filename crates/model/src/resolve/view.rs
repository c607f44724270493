//! What queries read of the snapshot.
//!
//! **Invariant:** every one of these notes what it read: the rows whose content it saw, and the
//! buckets whose members it listed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::client::Client;
use super::rules::Head;
use super::{Labels, MeshSettings, RulesHead, precedence, selects};
use crate::hosts;
use crate::rows::{
    DestinationPolicy, EndpointSlice, Gateway, GatewayName, HostPattern, HostScope, Mesh, Node,
    Protocol, RouteRules, Selects, Service, ServicePort, SidecarScope, Visibility, Workload,
};
use crate::snapshot::{IndexKey, Indexed, RowId, Snapshot, Table};
use crate::track::{Fact, View};

/// Of services of one host: that of the client's namespace first, then Kubernetes' own, then in
/// order of precedence.
fn by_rank(
    client: &Client,
    (a, x): &(RowId, Arc<Service>),
    (b, y): &(RowId, Arc<Service>),
) -> Ordering {
    let rank = |row: &Service| (!client.is_of(&row.namespace), row.selects);
    let order = rank(x).cmp(&rank(y));
    order.then_with(|| precedence(x.created, a).cmp(&precedence(y.created, b)))
}

/// A port of a host, and the service that declares it.
pub(super) struct PortOf {
    pub(super) id: RowId,
    pub(super) service: Arc<Service>,
    at: usize,
}

// === impl PortOf ===

impl PortOf {
    pub(super) fn port(&self) -> (&ServicePort, usize) {
        (&self.service.ports[self.at], self.at)
    }

    pub(super) fn number(&self) -> u16 {
        self.port().0.number
    }

    pub(super) fn is_tls(&self) -> bool {
        self.port().0.protocol == Protocol::Tls
    }
}

// === impl View ===

impl View<'_> {
    pub(super) fn mesh(&self) -> Arc<Mesh> {
        self.get(&MeshSettings)
    }

    /// Ids of the rows in a bucket, without their content.
    pub(super) fn ids<T: Indexed>(
        &self,
        key: &IndexKey,
        table: fn(&Snapshot) -> &Table<T>,
    ) -> Vec<RowId> {
        self.note(Fact::Members(key.clone()));
        table(self.snapshot).find(key).map(|(id, _)| id.clone()).collect()
    }

    /// Rows in a bucket, with their content, in order.
    pub(super) fn bucket<T: Indexed>(
        &self,
        key: &IndexKey,
        table: fn(&Snapshot) -> &Table<T>,
    ) -> Vec<(RowId, Arc<T>)> {
        self.note(Fact::Members(key.clone()));
        let rows = table(self.snapshot).find(key);
        rows.map(|(id, row)| {
            self.note(Fact::Row(id.clone()));
            (id.clone(), Arc::clone(row))
        })
        .collect()
    }

    /// The first row of a name, with its content.
    fn named<T: Indexed>(
        &self,
        key: IndexKey,
        table: fn(&Snapshot) -> &Table<T>,
    ) -> Option<Arc<T>> {
        debug_assert!(key.is_name(), "{key:?} does not differ with the content of its row");
        let row = table(self.snapshot).find(&key).next().map(|(_, row)| Arc::clone(row));
        self.note(Fact::Members(key));
        row
    }

    pub(super) fn gateway(&self, id: &RowId) -> Option<Arc<Gateway>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.gateways.get(id).map(|(_, row)| Arc::clone(row))
    }

    pub(super) fn gateways_named(
        &self,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> Vec<(RowId, Arc<Gateway>)> {
        let key = IndexKey::Gateway(Arc::clone(namespace), Arc::clone(name));
        self.bucket(&key, |s| &s.gateways)
    }

    /// Gateways whose selector these labels satisfy, in order.
    pub(super) fn gateways_selecting(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<RowId> {
        let pairs = labels.iter().map(|(k, v)| Some((Arc::clone(k), Arc::clone(v))));
        let keys = pairs.chain(std::iter::once(None)).map(IndexKey::GatewaySelects);
        let mut found: Vec<RowId> = keys
            .flat_map(|key| self.bucket(&key, |s| &s.gateways))
            .filter(|(_, gateway)| selects(&gateway.selector, labels))
            .map(|(id, _)| id)
            .collect();
        found.sort();
        found
    }

    /// Domain of identities, where an authority says it.
    pub(super) fn trust_domain(&self) -> Option<Arc<str>> {
        self.snapshot.trust_domain.clone()
    }

    pub(super) fn rules(&self, id: &RowId) -> Option<Arc<RouteRules>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.rules.get(id).map(|(_, row)| Arc::clone(row))
    }

    pub(super) fn rules_of(&self, gateway: &GatewayName) -> Vec<RowId> {
        self.ids(&IndexKey::RulesOf(gateway.clone()), |s| &s.rules)
    }

    pub(super) fn claims(&self, gateway: &GatewayName, host: &Arc<str>) -> Vec<RowId> {
        self.ids(&IndexKey::Claim(gateway.clone(), Arc::clone(host)), |s| &s.rules)
    }

    pub(super) fn visibility_of_rules(&self, head: &Head) -> Visibility {
        let default = || self.mesh().rules_export_to.of(&head.namespace);
        head.export_to.clone().unwrap_or_else(default)
    }

    pub(super) fn visibility_of_policy(&self, policy: &DestinationPolicy) -> Visibility {
        let default = || self.mesh().policies_export_to.of(&policy.namespace);
        policy.export_to.clone().unwrap_or_else(default)
    }

    pub(super) fn visibility_of_service(&self, service: &Service) -> Visibility {
        let default = || self.mesh().services_export_to.of(&service.namespace);
        service.export_to.clone().unwrap_or_else(default)
    }

    /// The service of this host that clients of this namespace see. When several declare it: that
    /// of their own namespace, else Kubernetes' own, else the first in order of precedence.
    pub(super) fn service(
        &self,
        host: &Arc<str>,
        client: &Client,
    ) -> Option<(RowId, Arc<Service>)> {
        let seen = |(_, row): &(RowId, Arc<Service>)| client.sees(&self.visibility_of_service(row));
        self.services_of(host).into_iter().filter(seen).min_by(|a, b| by_rank(client, a, b))
    }

    /// The ports of a host that clients of this namespace see, each with the service that declares
    /// it. Users may declare the ports of one host in several objects of a namespace; a number is
    /// that of the first.
    pub(super) fn ports_of(&self, host: &Arc<str>, client: &Client) -> Vec<PortOf> {
        let mut services = self.services_of(host);
        services.retain(|(_, row)| client.sees(&self.visibility_of_service(row)));
        services.sort_by(|a, b| by_rank(client, a, b));
        let Some((_, first)) = services.first().cloned() else { return Vec::new() };
        let adds = |row: &Service| {
            first.selects == Selects::All
                && row.selects == Selects::All
                && row.namespace == first.namespace
        };
        let mut rest = services.split_off(1);
        rest.retain(|(_, row)| adds(row));
        services.append(&mut rest);
        let mut ports: Vec<PortOf> = Vec::new();
        for (id, service) in services {
            for at in 0..service.ports.len() {
                let port = PortOf { id: id.clone(), service: Arc::clone(&service), at };
                if ports.iter().all(|known| known.number() != port.number()) {
                    ports.push(port);
                }
            }
        }
        ports
    }

    /// The service that another one is but a name of, if it is there.
    pub(super) fn target_of(
        &self,
        service: &Service,
        client: &Client,
    ) -> Option<(RowId, Arc<Service>)> {
        let target = self.service(service.alias_of.as_ref()?, client)?;
        target.1.alias_of.is_none().then_some(target)
    }

    /// Services whose connections to a port come in where those to others do.
    pub(super) fn shared_port(&self, port: u16) -> Vec<(RowId, Arc<Service>)> {
        self.bucket(&IndexKey::SharedPort(port), |s| &s.services)
    }

    /// Services that have a port which is, or may be, no HTTP.
    pub(super) fn stream_port(&self, port: u16) -> Vec<(RowId, Arc<Service>)> {
        self.bucket(&IndexKey::StreamPort(port), |s| &s.services)
    }

    /// Whether any service that has HTTP on a port is such a one.
    pub(super) fn any_http(&self, port: u16, mut is_such: impl FnMut(&Service) -> bool) -> bool {
        let key = IndexKey::HttpPort(port);
        self.note(Fact::Members(key.clone()));
        self.snapshot.services.find(&key).any(|(id, service)| {
            self.note(Fact::Row(id.clone()));
            is_such(service)
        })
    }

    /// Addresses of the endpoints of a service, each once.
    pub(super) fn endpoint_addresses(&self, service: &Service) -> Vec<IpAddr> {
        let slices = self.slices(service).into_iter().filter_map(|id| self.slice(&id));
        let of_slice = |slice: Arc<EndpointSlice>| {
            let serving = slice.endpoints.iter().filter(|e| e.ready || e.draining);
            serving.filter_map(|e| e.addresses.first().copied()).collect::<Vec<_>>()
        };
        slices.flat_map(of_slice).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether the selector of a service may give it endpoints.
    pub(super) fn may_select(&self, service: &Service) -> bool {
        let registered = || {
            let key = IndexKey::RegisteredIn(Arc::clone(&service.namespace));
            !self.ids(&key, |s| &s.workloads).is_empty()
        };
        !service.selector.is_empty() && (service.selects == Selects::All || registered())
    }

    /// Workloads that a service selects, beside those that its slices name; in order.
    pub(super) fn selected_workloads(&self, service: &Service) -> Vec<Arc<Workload>> {
        let Some((key, value)) = service.selector.iter().next() else { return Vec::new() };
        let namespace = Arc::clone(&service.namespace);
        let key = match service.selects {
            Selects::All => IndexKey::WorkloadLabel(namespace, Arc::clone(key), Arc::clone(value)),
            Selects::Registered => IndexKey::RegisteredIn(namespace),
        };
        let all = self.bucket(&key, |s| &s.workloads).into_iter().map(|(_, workload)| workload);
        all.filter(|workload| selects(&service.selector, &workload.labels)).collect()
    }

    /// Rules for TLS connections in the mesh.
    pub(super) fn tls_rules(&self) -> Vec<RowId> {
        self.ids(&IndexKey::TlsRules, |s| &s.rules)
    }

    /// All services that declare a host, in order.
    pub(super) fn services_of(&self, host: &Arc<str>) -> Vec<(RowId, Arc<Service>)> {
        self.bucket(&IndexKey::ServiceHost(Arc::clone(host)), |s| &s.services)
    }

    /// Whether a port of an address is this service's: the first that declares it has it.
    pub(super) fn owns(&self, id: &RowId, address: IpAddr, port: u16) -> bool {
        self.owner(address, port).is_some_and(|owner| owner == *id)
    }

    /// The service that has a port of an address.
    pub(super) fn owner(&self, address: IpAddr, port: u16) -> Option<RowId> {
        let all = self.bucket(&IndexKey::ServiceAddress(address), |s| &s.services);
        let mut declare = all.into_iter().filter(|(_, s)| s.ports.iter().any(|p| p.number == port));
        declare.next().map(|(id, _)| id)
    }

    /// Whether a host is but another name of a service's: `reviews.default`,
    /// `reviews.default.svc`.
    pub(super) fn is_alias(&self, host: &str) -> bool {
        let domain = Arc::clone(&self.mesh().domain);
        let exists = |full: String| self.service_exists(&Arc::from(full));
        exists(format!("{host}.{domain}")) || exists(format!("{host}.svc.{domain}"))
    }

    /// Hosts of services, and hosts that rules declare for the mesh, with the namespaces of their
    /// objects, as far as a pattern lets them through.
    pub(super) fn declared(&self, pattern: &HostPattern) -> Vec<(Arc<str>, Arc<str>)> {
        let mut found = Vec::new();
        let services = match &pattern.scope {
            HostScope::Namespace(namespace) => IndexKey::ServiceIn(Arc::clone(namespace)),
            HostScope::Any if pattern.host.starts_with('*') => {
                IndexKey::ServiceBelow(Arc::clone(&pattern.host))
            }
            HostScope::Any => IndexKey::ServiceHost(Arc::clone(&pattern.host)),
        };
        for (_, service) in self.bucket(&services, |s| &s.services) {
            found.push((Arc::clone(&service.namespace), Arc::clone(&service.host)));
        }
        let rules = match &pattern.scope {
            HostScope::Namespace(namespace) => IndexKey::MeshRulesIn(Arc::clone(namespace)),
            HostScope::Any if pattern.host.starts_with('*') => IndexKey::RulesOf(GatewayName::Mesh),
            HostScope::Any => IndexKey::Claim(GatewayName::Mesh, Arc::clone(&pattern.host)),
        };
        for id in self.ids(&rules, |s| &s.rules) {
            if let Some(head) = &*self.get(&RulesHead(id)) {
                let hosts = head.hosts.iter().filter(|host| &***host != "*");
                found.extend(hosts.map(|host| (Arc::clone(&head.namespace), Arc::clone(host))));
            }
        }
        found.retain(|(_, host)| hosts::covers(&pattern.host, host));
        found
    }

    /// Labels of workloads that conditions of rules for the mesh ask for.
    pub(super) fn source_labels(&self) -> BTreeSet<Labels> {
        let ids = self.ids(&IndexKey::SourceLabels, |s| &s.rules);
        let heads = ids.into_iter().map(|id| self.get(&RulesHead(id)));
        heads
            .flat_map(|head| (*head).clone().map(|h| h.source_labels).unwrap_or_default())
            .collect()
    }

    /// Every host that a sidecar may have.
    pub(super) fn all_hosts(&self) -> BTreeSet<Arc<str>> {
        let pattern = HostPattern { scope: HostScope::Any, host: Arc::from("*") };
        self.declared(&pattern).into_iter().map(|(_, host)| host).collect()
    }

    pub(super) fn node(&self, name: &Arc<str>) -> Option<Arc<Node>> {
        self.named(IndexKey::Node(Arc::clone(name)), |s| &s.nodes)
    }

    pub(super) fn sidecar_scope(&self, id: &RowId) -> Option<Arc<SidecarScope>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.sidecar_scopes.get(id).map(|(_, row)| Arc::clone(row))
    }

    pub(super) fn sidecar_scopes(&self, namespace: &Arc<str>) -> Vec<(RowId, Arc<SidecarScope>)> {
        let key = IndexKey::SidecarScopeIn(Arc::clone(namespace));
        self.bucket(&key, |s| &s.sidecar_scopes)
    }

    pub(super) fn service_by_id(&self, id: &RowId) -> Option<Arc<Service>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.services.get(id).map(|(_, row)| Arc::clone(row))
    }

    /// Whether any service's host is `host`, itself maybe a pattern.
    pub(super) fn service_exists(&self, host: &Arc<str>) -> bool {
        let key = if host.starts_with('*') {
            IndexKey::ServiceBelow(Arc::clone(host))
        } else {
            IndexKey::ServiceHost(Arc::clone(host))
        };
        !self.ids(&key, |s| &s.services).is_empty()
    }

    /// Services of a namespace that select these labels, in order.
    pub(super) fn services_selecting(
        &self,
        namespace: &Arc<str>,
        labels: &BTreeMap<Arc<str>, Arc<str>>,
    ) -> Vec<(RowId, Arc<Service>)> {
        let key = |(k, v): (&Arc<str>, &Arc<str>)| {
            IndexKey::ServiceSelects(Arc::clone(namespace), Arc::clone(k), Arc::clone(v))
        };
        let mut found: Vec<_> = labels
            .iter()
            .map(key)
            .flat_map(|key| self.bucket(&key, |s| &s.services))
            .filter(|(_, service)| selects(&service.selector, labels))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    pub(super) fn policies_for(&self, host: &Arc<str>) -> Vec<(RowId, Arc<DestinationPolicy>)> {
        self.bucket(&IndexKey::Policy(Arc::clone(host)), |s| &s.policies)
    }

    /// Whether it may matter for any cluster where a client runs.
    pub(super) fn places_matter(&self) -> bool {
        !self.mesh().locality.distribute.is_empty()
            || !self.mesh().locality.priority.is_empty()
            || !self.ids(&IndexKey::PlacePolicy, |s| &s.policies).is_empty()
    }

    pub(super) fn policy(&self, id: &RowId) -> Option<Arc<DestinationPolicy>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.policies.get(id).map(|(_, row)| Arc::clone(row))
    }

    /// Ids of the slices of a service, in order.
    pub(super) fn slices(&self, service: &Service) -> Vec<RowId> {
        let key = IndexKey::Slice(Arc::clone(&service.namespace), Arc::clone(&service.name));
        self.ids(&key, |s| &s.slices)
    }

    pub(super) fn slice(&self, id: &RowId) -> Option<Arc<EndpointSlice>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.slices.get(id).map(|(_, row)| Arc::clone(row))
    }

    pub(super) fn workload(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<Arc<Workload>> {
        let key = IndexKey::WorkloadName(Arc::clone(namespace), Arc::clone(name));
        self.named(key, |s| &s.workloads)
    }

    pub(super) fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.named(IndexKey::WorkloadAddress(address), |s| &s.workloads)
    }

    /// Whether a workload of the namespace that carries all these labels is such a one; no for an
    /// empty selector.
    pub(super) fn some_workload(
        &self,
        namespace: &Arc<str>,
        selector: &BTreeMap<Arc<str>, Arc<str>>,
        is_such: impl Fn(&Workload) -> bool,
    ) -> bool {
        let Some((key, value)) = selector.iter().next() else { return false };
        let namespace = Arc::clone(namespace);
        let key = IndexKey::WorkloadLabel(namespace, Arc::clone(key), Arc::clone(value));
        self.note(Fact::Members(key.clone()));
        self.snapshot.workloads.find(&key).any(|(id, workload)| {
            self.note(Fact::Row(id.clone()));
            selects(selector, &workload.labels) && is_such(workload)
        })
    }

    /// Whether a namespace has workloads that we know of.
    pub(super) fn has_workloads(&self, namespace: &Arc<str>) -> bool {
        let key = IndexKey::WorkloadIn(Arc::clone(namespace));
        self.note(Fact::Members(key.clone()));
        self.snapshot.workloads.find(&key).next().is_some()
    }
}
