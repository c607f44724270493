//! What a proxy has, in the shape of Envoy's own `/config_dump`.
//!
//! In: encoded resources, and what to say beside each. Out: `{"configs": [...]}`, as tools that
//! read Envoy's admin endpoint expect it.
//!
//! **Invariant:** virtual hosts that travel by VHDS stand inside their RouteConfiguration, sorted
//! by name, as if they had come with it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::json::to_json;
use crate::{EncodedResource, ResourceType};

/// Where a resource comes from, in words; each list begins with what decided most.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// The resource itself.
    pub origins: Vec<String>,
    /// The virtual hosts that it is or holds, by name.
    pub virtual_hosts: BTreeMap<String, HostProvenance>,
}

/// Where a virtual host comes from.
#[derive(Clone, Debug, Default)]
pub struct HostProvenance {
    /// The host itself.
    pub origins: Vec<String>,
    /// Each of its routes, in their order.
    pub routes: Vec<Vec<String>>,
}

/// Build the dump. `provenance` says where a resource comes from; it stands beside the resource,
/// and that of virtual hosts beside the RouteConfiguration, by their name within it.
pub fn config_dump<'a>(
    resources: impl IntoIterator<Item = &'a EncodedResource>,
    provenance: impl Fn(&EncodedResource) -> Option<Provenance>,
) -> Value {
    let mut by_type: BTreeMap<ResourceType, BTreeMap<&str, &EncodedResource>> = BTreeMap::new();
    for resource in resources {
        by_type.entry(resource.resource_type()).or_default().insert(resource.name(), resource);
    }
    let mut of = |resource_type| by_type.remove(&resource_type).unwrap_or_default();
    let hosts = of(ResourceType::VirtualHost);
    let entry = |resource: &EncodedResource, field: &str, body: Value| {
        let mut entry = Map::new();
        entry.insert("version_info".to_owned(), json!(resource.version().to_string()));
        entry.insert(field.to_owned(), body);
        if let Some(known) = provenance(resource) {
            entry.insert("origins".to_owned(), json!(known.origins));
        }
        entry
    };
    let plain = |resource: &EncodedResource, field: &str| {
        let body = to_json(resource.resource_type().type_url(), &resource.body());
        entry(resource, field, body)
    };
    let clusters: Vec<Value> =
        of(ResourceType::Cluster).values().map(|r| Value::Object(plain(r, "cluster"))).collect();
    let endpoints: Vec<Value> = of(ResourceType::Endpoints)
        .values()
        .map(|r| Value::Object(plain(r, "endpoint_config")))
        .collect();
    let listeners: Vec<Value> = of(ResourceType::Listener)
        .values()
        .map(|r| {
            let mut state = plain(r, "listener");
            let origins = state.remove("origins");
            let mut listener = Map::new();
            listener.insert("name".to_owned(), json!(&**r.name()));
            listener.insert("active_state".to_owned(), Value::Object(state));
            listener.extend(origins.map(|o| ("origins".to_owned(), o)));
            Value::Object(listener)
        })
        .collect();
    let routes: Vec<Value> = of(ResourceType::RouteConfiguration)
        .values()
        .map(|r| {
            let mut body = to_json(r.resource_type().type_url(), &r.body());
            let mut known = provenance(r).unwrap_or_default().virtual_hosts;
            merge_virtual_hosts(&mut body, r.name(), &hosts, |host| {
                known.extend(provenance(host).unwrap_or_default().virtual_hosts);
            });
            let mut entry = entry(r, "route_config", body);
            let (mut of_hosts, mut of_routes) = (Map::new(), Map::new());
            for (name, HostProvenance { origins, routes }) in known {
                let inner = name.strip_prefix(&**r.name()).and_then(|n| n.strip_prefix('/'));
                let name = inner.unwrap_or(&name);
                of_hosts.insert(name.to_owned(), json!(origins));
                of_routes.insert(name.to_owned(), json!(routes));
            }
            if !of_hosts.is_empty() {
                entry.insert("virtual_host_origins".to_owned(), Value::Object(of_hosts));
                entry.insert("route_origins".to_owned(), Value::Object(of_routes));
            }
            Value::Object(entry)
        })
        .collect();
    let config = |name: &str, field: &str, items: Vec<Value>| json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{name}"), field: items });
    json!({ "configs": [
        config("ClustersConfigDump", "dynamic_active_clusters", clusters),
        config("ListenersConfigDump", "dynamic_listeners", listeners),
        config("RoutesConfigDump", "dynamic_route_configs", routes),
        config("EndpointsConfigDump", "dynamic_endpoint_configs", endpoints),
    ]})
}

/// Put the virtual hosts of a RouteConfiguration into it, instead of the note that they come by
/// VHDS.
fn merge_virtual_hosts(
    body: &mut Value,
    route_config: &str,
    hosts: &BTreeMap<&str, &EncodedResource>,
    mut each: impl FnMut(&EncodedResource),
) {
    let Some(fields) = body.as_object_mut() else { return };
    if fields.remove("vhds").is_none() {
        return;
    }
    let mut merged = Vec::new();
    for (name, host) in hosts {
        let belongs = name.strip_prefix(route_config).is_some_and(|rest| rest.starts_with('/'));
        if !belongs {
            continue;
        }
        let mut body = to_json(host.resource_type().type_url(), &host.body());
        if let Some(fields) = body.as_object_mut() {
            fields.remove("@type");
        }
        each(host);
        merged.push(body);
    }
    fields.insert("virtual_hosts".to_owned(), Value::Array(merged));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_source;
    use crate::envoy::config::route::v3::{RouteConfiguration, Vhds, VirtualHost};
    use prost::Message;

    #[test]
    fn virtual_hosts_by_vhds_stand_in_their_route_configuration() {
        let vhds = Some(Vhds { config_source: Some(config_source::ads()) });
        let config = RouteConfiguration { name: "http.80".into(), vhds, ..Default::default() };
        let host =
            VirtualHost { name: "a:80".into(), domains: vec!["a".into()], ..Default::default() };
        let resources = [
            EncodedResource::new(
                ResourceType::RouteConfiguration,
                "http.80",
                &config.encode_to_vec(),
                vec![],
            ),
            EncodedResource::new(
                ResourceType::VirtualHost,
                "http.80/a",
                &host.encode_to_vec(),
                vec![],
            ),
            EncodedResource::new(
                ResourceType::VirtualHost,
                "http.8080/a",
                &host.encode_to_vec(),
                vec![],
            ),
        ];
        let here = |resource: &EncodedResource| {
            let host = HostProvenance {
                origins: vec!["here".to_owned()],
                routes: vec![vec!["there".to_owned()]],
            };
            let is_host = resource.resource_type() == ResourceType::VirtualHost;
            let hosts = is_host.then(|| (resource.name().to_string(), host));
            Some(Provenance { origins: Vec::new(), virtual_hosts: hosts.into_iter().collect() })
        };
        let dump = config_dump(&resources, here);
        let entry = &dump["configs"][2]["dynamic_route_configs"][0];
        assert_eq!(entry["route_config"]["virtual_hosts"][0]["name"], "a:80");
        assert_eq!(entry["route_config"]["virtual_hosts"].as_array().map(Vec::len), Some(1));
        assert!(entry["route_config"].get("vhds").is_none());
        assert_eq!(entry["virtual_host_origins"], json!({ "a": ["here"] }));
        assert_eq!(entry["route_origins"]["a"], json!([["there"]]));
    }
}
