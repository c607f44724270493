//! The part of a dump that was asked for.
//!
//! In: a dump in Envoy's shape. Out: the same shape, with the entries that fit.
//!
//! **Invariant:** entries are kept or left out; nothing in them is changed, but for virtual hosts
//! that do not fit.

use serde_json::{Map, Value};

use super::Kind;
use super::table::{Destination, destinations, list, text_of};

/// Which entries.
#[derive(clap::Args, Default)]
pub(crate) struct Filter {
    /// Only what has this name: a listener, a RouteConfiguration, a cluster
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only this port: of a listener, of a service
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only what leads to this host, or is asked for under it; reviews.default will do
    #[arg(long, value_name = "HOST")]
    fqdn: Option<String>,
    /// Only clusters and endpoints of this subset
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
}

/// Field of a dump that holds the entries of a kind.
pub(super) const FIELDS: [(Kind, &str); 4] = [
    (Kind::Listeners, "dynamic_listeners"),
    (Kind::Routes, "dynamic_route_configs"),
    (Kind::Clusters, "dynamic_active_clusters"),
    (Kind::Endpoints, "dynamic_endpoint_configs"),
];

/// Leave out what does not fit.
pub(super) fn select(mut dump: Value, kind: Kind, filter: &Filter) -> Value {
    let configs = dump.get_mut("configs").and_then(Value::as_array_mut);
    let mut configs = configs.map(std::mem::take).unwrap_or_default();
    for routes in configs.iter_mut().flat_map(|config| entries(config, Kind::Routes)).flatten() {
        filter.narrow(routes);
    }
    // Listeners of HTTP lead where their routes do.
    let with_hosts: Vec<String> = configs
        .iter()
        .flat_map(|config| list(&config["dynamic_route_configs"]))
        .filter(|routes| !list(&routes["route_config"]["virtual_hosts"]).is_empty())
        .map(|routes| text_of(&routes["route_config"]["name"]).to_owned())
        .collect();
    for config in &mut configs {
        for (of, _) in FIELDS {
            if let Some(entries) = entries(config, of) {
                entries.retain(|entry| match of {
                    Kind::Listeners => filter.takes_listener(entry, &with_hosts),
                    Kind::Routes => filter.takes_routes(entry),
                    Kind::Clusters => filter.takes_cluster(text_of(&entry["cluster"]["name"])),
                    _ => filter.takes_cluster(text_of(&entry["endpoint_config"]["cluster_name"])),
                });
            }
        }
    }
    if kind == Kind::Endpoints {
        // Those of some clusters stand in the cluster itself.
        for clusters in configs.iter_mut().filter_map(|config| entries(config, Kind::Clusters)) {
            clusters.retain(|entry| entry["cluster"].get("load_assignment").is_some());
        }
    }
    configs.retain(|config| {
        FIELDS.iter().any(|(of, field)| match config.get(*field) {
            Some(_) if kind == Kind::All || kind == *of => true,
            Some(rest) => {
                (kind, *of) == (Kind::Endpoints, Kind::Clusters) && !list(rest).is_empty()
            }
            None => false,
        })
    });
    Value::Object(Map::from_iter([("configs".to_owned(), Value::Array(configs))]))
}

/// Whether a dump holds no entry.
pub(super) fn is_empty(dump: &Value) -> bool {
    let mut configs = list(&dump["configs"]).iter();
    configs.all(|config| FIELDS.iter().all(|(_, field)| list(&config[*field]).is_empty()))
}

/// The entries of a kind, if this part of a dump holds any.
fn entries(config: &mut Value, kind: Kind) -> Option<&mut Vec<Value>> {
    let (_, field) = FIELDS.iter().find(|(of, _)| *of == kind)?;
    config.get_mut(*field)?.as_array_mut()
}

// === impl Filter ===

impl Filter {
    fn takes_name(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|wanted| wanted == name)
    }

    fn takes_host(&self, host: &str) -> bool {
        self.fqdn.as_ref().is_none_or(|wanted| {
            host.strip_prefix(&**wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    fn takes_cluster(&self, name: &str) -> bool {
        let cluster = Destination::of(name);
        self.takes_name(name)
            && self.port.is_none_or(|port| cluster.port == port.to_string())
            && self.subset.as_ref().is_none_or(|subset| *subset == cluster.subset)
            && self.takes_host(cluster.host)
    }

    fn takes_listener(&self, entry: &Value, with_hosts: &[String]) -> bool {
        let listener = &entry["active_state"]["listener"];
        let port = &listener["address"]["socket_address"]["port_value"];
        let to = || destinations(listener);
        self.takes_name(text_of(&entry["name"]))
            && self.port.is_none_or(|wanted| port.as_u64() == Some(u64::from(wanted)))
            && (self.fqdn.is_none()
                || to().iter().any(|to| match to.route_config {
                    Some(name) => with_hosts.iter().any(|with| with == name),
                    None => {
                        to.clusters.iter().any(|(c, _)| self.takes_host(Destination::of(c).host))
                    }
                }))
    }

    fn takes_routes(&self, entry: &Value) -> bool {
        let config = &entry["route_config"];
        let name = text_of(&config["name"]);
        // `80` of a sidecar, `http.8080` and `http.8080.127.0.0.1` of a gateway.
        let port = name.split('.').find_map(|part| part.parse::<u16>().ok());
        self.takes_name(name)
            && (self.port.is_none() || self.port == port)
            && (self.fqdn.is_none() || !list(&config["virtual_hosts"]).is_empty())
    }

    /// Leave out virtual hosts that have another host, and routes to another.
    fn narrow(&self, entry: &mut Value) {
        if self.fqdn.is_none() {
            return;
        }
        let hosts = entry.pointer_mut("/route_config/virtual_hosts").and_then(Value::as_array_mut);
        if let Some(hosts) = hosts {
            hosts.retain(|host| {
                let leads = |route: &Value| {
                    let to = super::table::clusters_of(&route["route"]);
                    to.iter().any(|(cluster, _)| self.takes_host(Destination::of(cluster).host))
                };
                list(&host["domains"]).iter().any(|domain| self.takes_host(text_of(domain)))
                    || list(&host["routes"]).iter().any(leads)
            });
        }
    }
}
