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

/// Build the dump. `origins` says where a resource comes from; it stands beside the resource.
pub fn config_dump<'a>(
    resources: impl IntoIterator<Item = &'a EncodedResource>,
    origins: impl Fn(&EncodedResource) -> Option<Value>,
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
        if let Some(origins) = origins(resource) {
            entry.insert("origins".to_owned(), origins);
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
            let mut inner = Map::new();
            merge_virtual_hosts(&mut body, r.name(), &hosts, |host| {
                let origins = origins(host)?;
                let name = host.name().strip_prefix(&**r.name())?.strip_prefix('/')?;
                inner.insert(name.to_owned(), origins);
                Some(())
            });
            let mut entry = entry(r, "route_config", body);
            if !inner.is_empty() {
                entry.insert("virtual_host_origins".to_owned(), Value::Object(inner));
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
    mut each: impl FnMut(&EncodedResource) -> Option<()>,
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
        let dump = config_dump(&resources, |_| Some(json!(["here"])));
        let entry = &dump["configs"][2]["dynamic_route_configs"][0];
        assert_eq!(entry["route_config"]["virtual_hosts"][0]["name"], "a:80");
        assert_eq!(entry["route_config"]["virtual_hosts"].as_array().map(Vec::len), Some(1));
        assert!(entry["route_config"].get("vhds").is_none());
        assert_eq!(entry["virtual_host_origins"]["a"][0], "here");
    }
}
