//! How Envoy spells it: one `ir` value in, one encoded resource out.
//!
//! ```text
//! ir::Resource ──► encode ──► EncodedResource { name, version, bytes, refs } + rule violations
//! ```
//!
//! **Invariant:** total, and a function of its argument alone: no snapshot, no proxy, no settings,
//! no clock. Equal `ir` values give equal bytes.

mod access_log;
mod cluster;
mod endpoints;
mod inbound;
mod listener;
mod provenance;
mod route;
mod route_match;
mod tls;

use std::sync::Arc;

pub use provenance::provenance;

use envoy_api::check::{self, Violation};
use envoy_api::{EncodedResource, ResourceRef, ResourceType};
use model::ir;
use prost::Message;

/// Spell a resource, and say which rules of Envoy's API it breaks.
///
/// One such fault would freeze a whole type in Envoy, so a resource with any must be withheld.
/// None is expected: bounds are enforced when objects are lowered.
pub fn encode(resource: &ir::Resource) -> (EncodedResource, Vec<Violation>) {
    let encoded = match resource {
        ir::Resource::Endpoints(r) => {
            let (body, violations) = endpoints::endpoints(r);
            let name = Arc::clone(&r.cluster);
            let encoded = EncodedResource::new(ResourceType::Endpoints, name, &body, Vec::new());
            return (encoded, violations);
        }
        ir::Resource::Listener(r) => {
            encoded(ResourceType::Listener, &r.name, &listener::listener(r), listener_refs(r))
        }
        ir::Resource::RouteConfiguration(r) => encoded(
            ResourceType::RouteConfiguration,
            &r.name,
            &route::route_configuration(r),
            match &r.virtual_hosts {
                ir::VirtualHosts::Discovered => Vec::new(),
                ir::VirtualHosts::Inline(hosts) => {
                    hosts.iter().flat_map(|host| cluster_refs(host)).collect()
                }
            },
        ),
        ir::Resource::VirtualHost(r) => encoded(
            ResourceType::VirtualHost,
            &r.name,
            &route::virtual_host(r),
            virtual_host_refs(r),
        )
        .with_claims(r.domains.clone()),
        ir::Resource::Cluster(r) => {
            encoded(ResourceType::Cluster, &r.name, &cluster::cluster(r), Vec::new())
        }
    };
    let violations = check::violations_of(encoded.resource_type(), &encoded.body());
    (encoded, violations)
}

fn encoded(
    resource_type: ResourceType,
    name: &Arc<str>,
    message: &impl Message,
    refs: Vec<ResourceRef>,
) -> EncodedResource {
    EncodedResource::new(resource_type, Arc::clone(name), &message.encode_to_vec(), refs)
}

fn listener_refs(listener: &ir::Listener) -> Vec<ResourceRef> {
    let of = |kind, name: &Arc<str>| ResourceRef::new(kind, Arc::clone(name));
    let routes = listener.serves.route_config();
    let clusters = listener.serves.clusters().into_iter();
    let routes = routes.map(|name| of(ResourceType::RouteConfiguration, name));
    routes.into_iter().chain(clusters.map(|name| of(ResourceType::Cluster, name))).collect()
}

/// Clusters that a virtual host names.
fn cluster_refs(host: &ir::VirtualHost) -> impl Iterator<Item = ResourceRef> {
    host.clusters().map(|name| ResourceRef::new(ResourceType::Cluster, Arc::clone(name)))
}

fn virtual_host_refs(host: &ir::VirtualHost) -> Vec<ResourceRef> {
    let parent = Arc::clone(&host.route_config);
    let mut refs = vec![ResourceRef::new(ResourceType::RouteConfiguration, parent)];
    refs.extend(cluster_refs(host));
    refs
}

/// A duration as protobuf has it; Envoy's own are below ten thousand years, as ours are.
fn duration(value: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or_default(),
    }
}
