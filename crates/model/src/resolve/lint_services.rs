//! What is wrong between services, and between Sidecars.
//!
//! In: the snapshot. Out: problems, whether or not any proxy is connected.
//!
//! **Invariant:** decides nothing: who comes first is decided in `view` and `connections`, and only
//! described here.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::precedence;
use crate::problem::{Problem, Reason};
use crate::rows::{HostPattern, Protocol, Selects, Service, ServicePort, SidecarScope, TargetPort};
use crate::snapshot::RowId;
use crate::track::View;

/// What is wrong with a service.
pub(super) fn service(view: &View<'_>, id: &RowId, service: &Service, out: &mut BTreeSet<Problem>) {
    let written = Written::of(service);
    let rank = |id: &RowId, s: &Service| (s.selects, s.created.is_none(), s.created, id.clone());
    let own = rank(id, service);
    let meets = |other: &Service| {
        let (one, two) = (view.visibility_of_service(service), view.visibility_of_service(other));
        one.meets(&two)
    };
    let same_host = view.services_of(&service.host);
    // Several objects of a namespace may each declare some ports of a host.
    let adds = |other: &Service| {
        let numbers = |s: &Service| s.ports.iter().map(|p| p.number).collect::<BTreeSet<_>>();
        other.selects == Selects::All
            && service.selects == Selects::All
            && other.namespace == service.namespace
            && numbers(other).is_disjoint(&numbers(service))
    };
    let rivals = same_host.iter().filter(|(other, s)| other == id || (meets(s) && !adds(s)));
    let first = rivals.min_by_key(|(id, s)| rank(id, s));
    if let Some((first, row)) = first.filter(|(first, row)| rank(first, row) < own) {
        let message = if row.namespace == service.namespace {
            format!(
                "host {} is also declared by {}, which takes precedence, so this one has no \
                 effect{}; merge the two",
                service.host,
                first.object,
                if row.selects == Selects::All { " on the ports that both have" } else { "" }
            )
        } else {
            format!(
                "host {} is also declared by {}, which takes precedence outside of namespace {}; \
                 merge the two, or set exportTo",
                service.host, first.object, service.namespace
            )
        };
        out.insert(Problem::warning(&id.object, written.host, Reason::HostConflict, message));
    }
    for (at, port) in service.ports.iter().enumerate() {
        for address in &service.addresses {
            if let Some(owner) = view.owner(*address, port.number).filter(|owner| owner != id) {
                let message = format!(
                    "port {} of {address} belongs to {}, so this service is reached there by its \
                     name alone; give it another address or port",
                    port.number, owner.object
                );
                let reason = Reason::PortConflict;
                out.insert(Problem::warning(&id.object, written.addresses, reason, message));
            }
        }
        shared_port(view, (id, service), (port, at), out);
        target(view, (id, service), (port, at), out);
    }
}

/// A port of any address that another service has already.
fn shared_port(
    view: &View<'_>,
    (id, service): (&RowId, &Service),
    (port, at): (&ServicePort, usize),
    out: &mut BTreeSet<Problem>,
) {
    let takes_all = |s: &Service| {
        let is_tcp = |p: &ServicePort| p.number == port.number && p.protocol == Protocol::Tcp;
        s.shares_port(port.number) && s.subnets.is_empty() && s.ports.iter().any(is_tcp)
    };
    if !takes_all(service) {
        return;
    }
    let own = precedence(service.created, id);
    let others = view.shared_port(port.number);
    let mut earlier = others.iter().filter(|(other, s)| {
        other != id
            && s.host != service.host
            && takes_all(s)
            && precedence(s.created, other) < own
            && view.visibility_of_service(s).meets(&view.visibility_of_service(service))
    });
    if let Some((first, _)) = earlier.next() {
        let message = format!(
            "connections to port {} of an address that nobody declares go to {}, which takes \
             precedence; give one of the two addresses",
            port.number, first.object
        );
        let field = format!("spec.ports[{at}]");
        out.insert(Problem::warning(&id.object, field, Reason::PortConflict, message));
    }
}

/// A target port whose name no container has.
fn target(
    view: &View<'_>,
    (id, service): (&RowId, &Service),
    (port, at): (&ServicePort, usize),
    out: &mut BTreeSet<Problem>,
) {
    let TargetPort::Name(name) = &port.target else { return };
    let (namespace, selector) = (&service.namespace, &service.selector);
    let has = |workload: &crate::rows::Workload| workload.named_ports.contains_key(name);
    if view.some_workload(namespace, selector, |_| true)
        && !view.some_workload(namespace, selector, has)
    {
        let message = format!(
            "no container of the selected pods has a port named {name:?}, so nothing is reached by \
             this port; name the port of a container, or give its number"
        );
        let field = format!("spec.ports[{at}].targetPort");
        out.insert(Problem::warning(&id.object, field, Reason::PortNotFound, message));
    }
}

/// What is wrong with a Sidecar.
pub(super) fn sidecar(
    view: &View<'_>,
    id: &RowId,
    scope: &SidecarScope,
    out: &mut BTreeSet<Problem>,
) {
    let own = precedence(scope.created, id);
    let others = view.sidecar_scopes(&scope.namespace);
    let same = |(other, s): &&(RowId, Arc<SidecarScope>)| {
        other != id && s.selector == scope.selector && precedence(s.created, other) < own
    };
    if let Some((first, _)) = others.iter().find(same) {
        let what = if scope.selector.is_empty() {
            "is for the whole namespace as well"
        } else {
            "selects the same workloads"
        };
        let message = format!(
            "{} {what} and takes precedence, so this one has no effect; merge the two",
            first.object
        );
        let field = "spec.workloadSelector";
        out.insert(Problem::warning(&id.object, field, Reason::HostConflict, message));
    }
    if !scope.selector.is_empty()
        && view.has_workloads(&scope.namespace)
        && !view.some_workload(&scope.namespace, &scope.selector, |_| true)
    {
        let message = "no workload of the namespace carries these labels, so this has no effect; \
                       correct the labels, or the namespace";
        let field = "spec.workloadSelector";
        out.insert(Problem::warning(&id.object, field, Reason::NothingSelected, message));
    }
    for (at, listener) in scope.egress.iter().flatten().enumerate() {
        let exact = |p: &&HostPattern| !p.host.starts_with('*');
        for pattern in listener.hosts.iter().filter(exact) {
            if view.declared(pattern).is_empty() {
                let host = &pattern.host;
                let message = format!(
                    "no service or rule of the named namespace declares host {host}, so it is not \
                     reached by this; correct the host or the namespace"
                );
                let field = format!("spec.egress[{at}].hosts");
                out.insert(Problem::warning(&id.object, field, Reason::HostNotFound, message));
            }
        }
    }
}

/// Where a service's object says what.
struct Written {
    host: &'static str,
    addresses: &'static str,
}

// === impl Written ===

impl Written {
    fn of(service: &Service) -> Self {
        match service.selects {
            Selects::Registered => Self { host: "metadata.name", addresses: "spec.clusterIP" },
            Selects::All => Self { host: "spec.hosts", addresses: "spec.addresses" },
        }
    }
}
