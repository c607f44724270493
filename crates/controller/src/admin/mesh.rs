//! What the controller knows of the mesh: services, endpoints, and who sees what of them.
//!
//! **Invariant:** sorted, so that two looks at the same state are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::rows::{
    EndpointSlice, Locality, Protocol, Resolution, Service, ServicePort, TargetPort, Visibility,
};
use model::{About, AboutRole, ObjectRef, Row, ir};
use serde_json::{Map, Value, json};

use super::Admin;
use super::dump::stream_of;
use crate::world::World;

/// Every service.
pub(super) fn registryz(world: &World) -> Value {
    Value::Array(services(world).map(|(object, service)| of_service(object, service)).collect())
}

/// Every service port with the endpoints that its slices name, ready or not.
pub(super) fn endpointz(world: &World) -> Value {
    let mut slices: BTreeMap<(&str, &str), Vec<(&ObjectRef, &EndpointSlice)>> = BTreeMap::new();
    for (object, slice) in rows(world).filter_map(|(object, row)| match row {
        Row::EndpointSlice(slice) => Some((object, slice)),
        _ => None,
    }) {
        slices.entry((&slice.namespace, &slice.service)).or_default().push((object, slice));
    }
    let mut out = Vec::new();
    for (_, service) in services(world) {
        let own = slices.get(&(&*service.namespace, &*service.name));
        for port in &service.ports {
            let endpoints: Vec<Value> =
                own.into_iter().flatten().flat_map(|(o, s)| of_slice(o, s, port)).collect();
            out.push(json!({
                "hostname": &*service.host,
                "port": port.number,
                "portName": &*port.name,
                "endpoints": endpoints,
            }));
        }
    }
    Value::Array(out)
}

/// What a proxy may reach, and what decides that; none when it is not connected.
pub(super) fn scopez(admin: &Admin, proxy: &str) -> Option<Value> {
    let stream = stream_of(admin, proxy)?;
    let world = admin.shared.world.load();
    let Some(scope) = stream.scope else { return Some(json!({ "proxy": proxy })) };
    let mut out = Map::new();
    let mut add = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    add("proxy", json!(proxy));
    add("scope", json!(scope.0));
    let about = world.scopes.get(&scope);
    if let Some(About { namespace, vhds, shares: _, role }) = about {
        add("namespace", json!(&**namespace));
        add("virtualHostsOneByOne", json!(vhds));
        match role {
            AboutRole::Router { gateways, ports, near } => {
                add("near", place(near));
                add("role", json!("gateway"));
                add("gateways", json!(gateways.iter().map(|g| g.to_string()).collect::<Vec<_>>()));
                add("ports", json!(ports));
            }
            AboutRole::Sidecar { sidecar, labels, near, captures, inbound } => {
                add("near", place(near));
                add("role", json!("sidecar"));
                add("sidecar", json!(sidecar.as_ref().map(ToString::to_string)));
                add("labelsThatRulesAskFor", json!(labels));
                add("captures", json!(captures));
                add("inboundPorts", json!(inbound));
            }
        }
    }
    let view = world.views.get(&scope);
    let layers = view.map(|view| view.layers()).unwrap_or_default();
    let of = |index: usize| match (about, index) {
        (Some(About { shares: true, .. }), 0) => "everybody".to_owned(),
        (Some(About { shares: true, namespace, .. }), 1) => format!("namespace {namespace}"),
        _ => "proxies of this scope".to_owned(),
    };
    let layers = layers.iter().enumerate().map(|(index, layer)| {
        let (sets, hides) = layer.counts();
        json!({ "of": of(index), "sets": sets, "hides": hides })
    });
    add("layers", layers.collect());
    let (mut hosts, mut services) = (BTreeMap::new(), BTreeSet::new());
    for (_, resource) in world.offered(scope).unwrap_or_default().values() {
        match &**resource {
            ir::Resource::VirtualHost(host) => note_host(host, &mut hosts),
            ir::Resource::RouteConfiguration(config) => {
                if let ir::VirtualHosts::Inline(inline) = &config.virtual_hosts {
                    inline.iter().for_each(|host| note_host(host, &mut hosts));
                }
            }
            ir::Resource::Cluster(cluster) => {
                let origins = cluster.origins.0.iter().map(|o| &o.object);
                services.extend(origins.filter(|o| is_service(&world, o)).cloned());
            }
            ir::Resource::Listener(_) | ir::Resource::Endpoints(_) => {}
        }
    }
    let mut namespaces: BTreeMap<&str, usize> = BTreeMap::new();
    for service in &services {
        *namespaces.entry(&service.namespace).or_default() += 1;
    }
    add("namespaces", json!(namespaces));
    add("services", json!(services.iter().map(ToString::to_string).collect::<Vec<_>>()));
    add("hosts", json!(hosts));
    Some(Value::Object(out))
}

/// Where proxies run, as far as that matters.
fn place(near: &Option<Locality>) -> Value {
    match near {
        Some(Locality { region, zone, subzone }) => json!(format!("{region}/{zone}/{subzone}")),
        None => Value::Null,
    }
}

/// Note the first name of a host, under its RouteConfiguration.
fn note_host(host: &ir::VirtualHost, hosts: &mut BTreeMap<String, BTreeSet<String>>) {
    let names = hosts.entry(host.route_config.to_string()).or_default();
    names.extend(host.domains.first().map(ToString::to_string));
}

fn rows(world: &World) -> impl Iterator<Item = (&ObjectRef, &Row)> {
    world.rows.iter().flat_map(|(object, rows)| rows.iter().map(move |row| (&**object, row)))
}

fn services(world: &World) -> impl Iterator<Item = (&ObjectRef, &Service)> {
    rows(world).filter_map(|(object, row)| match row {
        Row::Service(service) => Some((object, &**service)),
        _ => None,
    })
}

fn is_service(world: &World, object: &Arc<ObjectRef>) -> bool {
    let rows = world.rows.get(object);
    rows.is_some_and(|rows| rows.iter().any(|row| matches!(row, Row::Service(_))))
}

fn of_service(object: &ObjectRef, service: &Service) -> Value {
    let port = |port: &ServicePort| {
        json!({
            "port": port.number,
            "name": &*port.name,
            "protocol": protocol(port.protocol),
            "targetPort": match &port.target {
                TargetPort::Number(number) => json!(number),
                TargetPort::Name(name) => json!(&**name),
            },
        })
    };
    let export_to = service.export_to.as_ref().map(|visibility| match visibility {
        Visibility::Everyone => json!(["*"]),
        Visibility::Namespaces(namespaces) => json!(namespaces),
    });
    json!({
        "hostname": &*service.host,
        "namespace": &*service.namespace,
        "name": &*service.name,
        "object": object.to_string(),
        "source": &*object.source,
        "addresses": service.addresses,
        "blocks": service.subnets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "headless": service.headless,
        "resolution": resolution(service.resolution),
        // None = none.
        "aliasOf": service.alias_of.as_deref(),
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        "selector": service.selector,
        // None = as the mesh has it.
        "exportTo": export_to,
    })
}

/// As ServiceEntry has it.
fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Endpoints => "STATIC",
        Resolution::Dns => "DNS",
        Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
        Resolution::Original => "NONE",
    }
}

/// As Istio's own page calls them.
fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Udp => "UDP",
        Protocol::Unknown => "UnsupportedProtocol",
    }
}

/// The endpoints that a slice has for a port.
fn of_slice<'a>(
    object: &'a ObjectRef,
    slice: &'a EndpointSlice,
    port: &'a ServicePort,
) -> impl Iterator<Item = Value> + use<'a> {
    let numbers = slice.ports.iter().filter(|p| p.name == port.name);
    numbers.flat_map(move |at| {
        slice.endpoints.iter().map(move |endpoint| {
            json!({
                "address": endpoint.addresses.first(),
                "port": at.number,
                "state": match (endpoint.draining, endpoint.ready) {
                    (true, _) => "draining",
                    (false, true) => "ready",
                    (false, false) => "notReady",
                },
                "workload": endpoint.workload,
                "node": endpoint.node,
                "zone": endpoint.zone,
                "object": object.to_string(),
            })
        })
    })
}
