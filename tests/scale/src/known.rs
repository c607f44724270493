//! Every distinct resource that a server sent, decoded once.
//!
//! In: entries of responses. Out: small numbers for names and contents, and what a proxy must know
//! of a content: what it names, and the token that tells which change made it.
//!
//! Thousands of proxies are sent the same bytes, so each of them costs a hash and a look-up; only
//! what is new is decoded, and then in full.
//!
//! **Invariant:** a content that cannot be decoded is an error, never skipped.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use envoy_api::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_api::envoy::config::core::v3::{address, socket_address};
use envoy_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use envoy_api::envoy::config::listener::v3::{Listener, filter};
use envoy_api::envoy::config::route::v3::{
    RouteConfiguration, VirtualHost, route, route_action::ClusterSpecifier,
};
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_api::envoy::service::discovery::v3::Resource;
use envoy_api::{Any, ResourceType};
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use crate::world::{self, Change};

/// Types that a sidecar asks for, in the order in which Envoy asks.
pub(crate) const TYPES: [ResourceType; 5] = [
    ResourceType::Cluster,
    ResourceType::Endpoints,
    ResourceType::Listener,
    ResourceType::RouteConfiguration,
    ResourceType::VirtualHost,
];

/// Number of a name within its type.
pub(crate) type NameId = u32;
/// Number of a content.
pub(crate) type ContentId = u32;

/// One content of a resource.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) kind: ResourceType,
    pub(crate) name: NameId,
    pub(crate) version: String,
    /// Hash of the resource.
    pub(crate) hash: u64,
    /// Names of what a proxy asks for once it holds this: endpoints of a cluster, routes of a
    /// listener.
    pub(crate) children: Vec<NameId>,
    /// Of a RouteConfiguration: its hosts come on their own.
    pub(crate) hosts_apart: bool,
    /// The changes that it shows.
    pub(crate) changes: Vec<Change>,
    /// Of endpoints: how many, and the sum of the hashes of their addresses.
    pub(crate) endpoints: (u32, u64),
    pub(crate) body: Any,
}

/// Names and contents.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By the hash of the entry as it was sent.
    entries: HashMap<u64, ContentId, foldhash::fast::FixedState>,
    contents: Vec<Content>,
    ids: [HashMap<String, NameId>; TYPES.len()],
    names: [Vec<String>; TYPES.len()],
}

/// Place of a type in `TYPES`.
pub(crate) fn index(kind: ResourceType) -> usize {
    kind as usize
}

// === impl Known ===

impl Known {
    /// The content of an entry of `resources`; `delta` = it is a `Resource`, else an `Any`.
    pub(crate) fn entry(&mut self, bytes: &[u8], delta: bool) -> Result<ContentId> {
        let key = xxh3_64(bytes);
        if let Some(id) = self.entries.get(&key) {
            return Ok(*id);
        }
        let content = self.decode(bytes, delta)?;
        let id = ContentId::try_from(self.contents.len())?;
        self.contents.push(content);
        self.entries.insert(key, id);
        Ok(id)
    }

    pub(crate) fn content(&self, id: ContentId) -> &Content {
        &self.contents[id as usize]
    }

    /// The number of a name, new or not.
    pub(crate) fn name_id(&mut self, kind: ResourceType, name: &str) -> NameId {
        let (ids, names) = (&mut self.ids[index(kind)], &mut self.names[index(kind)]);
        if let Some(id) = ids.get(name) {
            return *id;
        }
        let id = names.len() as NameId;
        names.push(name.to_owned());
        ids.insert(name.to_owned(), id);
        id
    }

    pub(crate) fn find(&self, kind: ResourceType, name: &str) -> Option<NameId> {
        self.ids[index(kind)].get(name).copied()
    }

    pub(crate) fn name(&self, kind: ResourceType, id: NameId) -> &str {
        &self.names[index(kind)][id as usize]
    }

    fn decode(&mut self, bytes: &[u8], delta: bool) -> Result<Content> {
        let (name, version, body) = match delta {
            true => {
                let entry = Resource::decode(bytes).context("an entry is no Resource")?;
                // Without a body it says that there is none of this name.
                (entry.name, entry.version, entry.resource.unwrap_or_default())
            }
            false => (String::new(), String::new(), Any::decode(bytes)?),
        };
        let kind = match ResourceType::from_type_url(&body.type_url) {
            Some(kind) if TYPES.contains(&kind) => kind,
            _ => bail!("{name:?} has the unknown type {:?}", body.type_url),
        };
        let mut content = Content {
            kind,
            name: 0,
            version,
            hash: xxh3_64(&body.value),
            children: Vec::new(),
            hosts_apart: false,
            changes: Vec::new(),
            endpoints: (0, 0),
            body: body.clone(),
        };
        let inner = self.look_into(kind, body.value, &mut content)?;
        ensure!(!delta || name == inner, "{kind} {name:?} calls itself {inner:?} inside");
        content.name = self.name_id(kind, &inner);
        Ok(content)
    }

    /// Fill in what a proxy must know. Out: the name that the resource has inside.
    fn look_into(&mut self, kind: ResourceType, body: Bytes, out: &mut Content) -> Result<String> {
        Ok(match kind {
            ResourceType::Cluster => {
                let Cluster { name, cluster_discovery_type, eds_cluster_config, .. } =
                    Cluster::decode(body)?;
                let eds = cluster::DiscoveryType::Eds as i32;
                if cluster_discovery_type == Some(cluster::ClusterDiscoveryType::Type(eds)) {
                    let service = eds_cluster_config.map(|c| c.service_name).unwrap_or_default();
                    let asked = if service.is_empty() { &name } else { &service };
                    out.children.push(self.name_id(ResourceType::Endpoints, asked));
                }
                name
            }
            ResourceType::Endpoints => {
                let endpoints = ClusterLoadAssignment::decode(body)?;
                for (address, port) in addresses(&endpoints) {
                    out.endpoints.0 += 1;
                    out.endpoints.1 = out.endpoints.1.wrapping_add(xxh3_64(address.as_bytes()));
                    out.changes.extend(world::moved(&endpoints.cluster_name, port));
                }
                endpoints.cluster_name
            }
            ResourceType::Listener => {
                let listener = Listener::decode(body)?;
                for name in routes_of(&listener)? {
                    let id = self.name_id(ResourceType::RouteConfiguration, &name);
                    out.children.push(id);
                }
                listener.name
            }
            ResourceType::RouteConfiguration => {
                let routes = RouteConfiguration::decode(body)?;
                out.hosts_apart = routes.vhds.is_some();
                out.changes.extend(routes.virtual_hosts.iter().filter_map(weighed));
                routes.name
            }
            _ => {
                let host = VirtualHost::decode(body)?;
                out.changes.extend(weighed(&host));
                host.name
            }
        })
    }
}

/// Address and port of every endpoint.
fn addresses(endpoints: &ClusterLoadAssignment) -> impl Iterator<Item = (&str, u32)> {
    let all = endpoints.endpoints.iter().flat_map(|place| &place.lb_endpoints);
    all.filter_map(|endpoint| {
        let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier
        else {
            return None;
        };
        let Some(address::Address::SocketAddress(socket)) = &endpoint.address.as_ref()?.address
        else {
            return None;
        };
        match socket.port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) => Some((&*socket.address, port)),
            _ => None,
        }
    })
}

/// Names of the RouteConfigurations that a listener asks for.
fn routes_of(listener: &Listener) -> Result<BTreeSet<String>> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let mut names = BTreeSet::new();
    for filter in chains.flat_map(|chain| &chain.filters) {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        if !any.type_url.ends_with(".HttpConnectionManager") {
            continue;
        }
        let manager = HttpConnectionManager::decode(any.value.clone())?;
        if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
            names.insert(rds.route_config_name);
        }
    }
    Ok(names)
}

/// The change that the weights of a host show.
fn weighed(host: &VirtualHost) -> Option<Change> {
    let actions = host.routes.iter().filter_map(|route| match &route.action {
        Some(route::Action::Route(action)) => action.cluster_specifier.as_ref(),
        _ => None,
    });
    let splits = actions.filter_map(|specifier| match specifier {
        ClusterSpecifier::WeightedClusters(split) => Some(&split.clusters),
        _ => None,
    });
    let first = splits.flatten().next()?;
    world::weighed(&first.name, first.weight?)
}

/// Put other endpoints or weights into a resource as it was sent: what a server is told that knows
/// no objects.
pub(crate) fn with_change(body: &Any, change: Change) -> Result<Any> {
    match ResourceType::from_type_url(&body.type_url) {
        Some(ResourceType::Endpoints) => {
            let mut endpoints: ClusterLoadAssignment =
                body.unpack().ok().context("no endpoints")?;
            let cluster = endpoints.cluster_name.clone();
            for place in &mut endpoints.endpoints {
                for endpoint in &mut place.lb_endpoints {
                    let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) =
                        &mut endpoint.host_identifier
                    else {
                        continue;
                    };
                    let address = endpoint.address.as_mut().and_then(|a| a.address.as_mut());
                    let Some(address::Address::SocketAddress(socket)) = address else { continue };
                    if let Some(socket_address::PortSpecifier::PortValue(port)) =
                        &mut socket.port_specifier
                        && world::moved(&cluster, *port).is_some()
                    {
                        *port = change.port();
                    }
                }
            }
            Ok(Any::pack(&endpoints))
        }
        Some(ResourceType::VirtualHost) => {
            let mut host: VirtualHost = body.unpack().ok().context("no virtual host")?;
            for route in &mut host.routes {
                if let Some(route::Action::Route(action)) = &mut route.action
                    && let Some(ClusterSpecifier::WeightedClusters(split)) =
                        &mut action.cluster_specifier
                {
                    for (cluster, weight) in split.clusters.iter_mut().zip(change.weights()) {
                        cluster.weight = Some(weight);
                    }
                }
            }
            Ok(Any::pack(&host))
        }
        _ => bail!("{} does not change here", body.type_url),
    }
}

/// The name in an entry of `removed_resources` is UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Result<&str> {
    str::from_utf8(bytes).context("a name is no UTF-8")
}
