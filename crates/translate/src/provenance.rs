//! Where each part of a resource comes from.
//!
//! In: an `ir` value, and how an origin is put into words. Out: what a dump shows beside the
//! resource.
//!
//! **Invariant:** virtual hosts have the names, and routes the order, that `encode` gives them.

use envoy_api::dump::{HostProvenance, Provenance};
use model::{Origin, Origins, ir};

/// Put the origins of a resource, its virtual hosts and their routes into words.
pub fn provenance(resource: &ir::Resource, describe: impl Fn(&Origin) -> String) -> Provenance {
    let words = |origins: &Origins| origins.0.iter().map(&describe).collect::<Vec<_>>();
    let host = |host: &ir::VirtualHost| {
        let routes = host.routes.iter().map(|route| words(&route.origins)).collect();
        (host.name.to_string(), HostProvenance { origins: words(&host.origins), routes })
    };
    let virtual_hosts = match resource {
        ir::Resource::VirtualHost(it) => [host(it)].into(),
        ir::Resource::RouteConfiguration(config) => match &config.virtual_hosts {
            ir::VirtualHosts::Discovered => Default::default(),
            ir::VirtualHosts::Inline(hosts) => hosts.iter().map(|it| host(it)).collect(),
        },
        ir::Resource::Listener(_) | ir::Resource::Cluster(_) | ir::Resource::Endpoints(_) => {
            Default::default()
        }
    };
    Provenance { origins: words(resource.origins()), virtual_hosts }
}
