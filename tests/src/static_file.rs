//! Everything that a proxy would discover, in one file of Envoy's.
//!
//! In: the resources of a golden case. Out: a bootstrap that says the same without discovery.
//!
//! **Invariant:** Envoy gets the very messages of the case; only how it comes by them differs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use envoy_api::ResourceType;
use envoy_api::bootstrap::Bootstrap;
use identity::{Authority, CertifiedRequest, PrivateKey, client};
use serde_json::{Map, Value, json};

use crate::golden::Outcome;

/// The file. `cluster` may say that a cluster is another one.
pub fn static_file(
    outcome: &Outcome,
    admin: Option<(String, u16)>,
    cluster: impl Fn(&str, Value) -> Value,
) -> Result<Value> {
    let of = |wanted: ResourceType| {
        let all = outcome.resources.iter();
        all.filter(move |r| r.encoded.resource_type() == wanted)
            .map(|r| (r.encoded.name().to_string(), r.body()))
    };
    let endpoints: BTreeMap<String, Value> = of(ResourceType::Endpoints).collect();
    let clusters = of(ResourceType::Cluster).map(|(name, mut body)| {
        if let (Some(set), Some(fields)) = (endpoints.get(&name), body.as_object_mut()) {
            fields.insert("type".to_owned(), "STATIC".into());
            fields.insert("load_assignment".to_owned(), set.clone());
            fields.remove("eds_cluster_config");
        }
        cluster(&name, body)
    });
    let mut routes: BTreeMap<String, Value> = of(ResourceType::RouteConfiguration).collect();
    for (name, host) in of(ResourceType::VirtualHost) {
        // `<route configuration>/<domain>`
        let parent = name.split('/').next().unwrap_or_default();
        let config = routes.get_mut(parent).and_then(Value::as_object_mut);
        let config = config.with_context(|| format!("{name} has no RouteConfiguration"))?;
        config.remove("vhds");
        match config.entry("virtual_hosts").or_insert_with(|| json!([])) {
            Value::Array(hosts) => hosts.push(host),
            none => *none = json!([host]),
        }
    }
    // Routes that no listener names would go unjudged.
    let all: String = of(ResourceType::Listener).map(|(_, l)| l.to_string()).collect();
    for name in routes.keys() {
        let named = format!("\"route_config_name\":{}", json!(name));
        ensure!(all.contains(&named), "no listener has routes {name}");
    }
    let listeners = of(ResourceType::Listener).map(|(_, mut listener)| {
        inline_routes(&mut listener, &routes);
        listener
    });
    let bootstrap = Bootstrap {
        node_id: "node".to_owned(),
        cluster: "cluster".to_owned(),
        xds_host: "127.0.0.1".to_owned(),
        xds_port: 1,
        metadata: Map::new(),
        admin_address: admin,
        sds_socket: Some("/nowhere/sds.sock".into()),
        ..Default::default()
    };
    let mut file = bootstrap.to_json();
    let known = file["static_resources"]["clusters"].as_array_mut();
    known.context("the cluster of the controller")?.extend(clusters);
    file["static_resources"]["listeners"] = listeners.collect();
    file.as_object_mut().context("a message")?.remove("dynamic_resources");
    inline_certificates(&mut file, &certificates()?);
    Ok(file)
}

/// Put the RouteConfiguration where the listener says that it is to be fetched.
fn inline_routes(value: &mut Value, routes: &BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            if let Some(rds) = fields.remove("rds") {
                let name = rds["route_config_name"].as_str().unwrap_or_default();
                let config = routes.get(name).cloned().unwrap_or_default();
                fields.insert("route_config".to_owned(), config);
            }
            fields.values_mut().for_each(|v| inline_routes(v, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| inline_routes(v, routes)),
        _ => {}
    }
}

/// By the field of Envoy that it is for: a certificate, its key, and the roots that it is trusted by.
/// Each call has roots of its own.
pub fn certificates() -> Result<BTreeMap<&'static str, Value>> {
    let now = SystemTime::now();
    let files = Authority::self_signed(&"cluster.local".parse()?, now)?;
    let authority = Authority::from_files(&files, now)?;
    let (id, key) = ("spiffe://cluster.local/ns/a/sa/b".parse()?, PrivateKey::generate()?);
    let csr = client::csr(&key, None)?;
    let request = CertifiedRequest::check(csr.as_bytes(), &id)?;
    let hour = Duration::from_secs(3600);
    let mut chain = authority.answer(&authority.issue(&id, &request, hour, now)?);
    let roots = chain.pop().context("roots")?;
    let text = |pem: &str| json!({ "inline_string": pem });
    Ok(BTreeMap::from([
        ("certificate_chain", text(&chain.concat())),
        ("private_key", text(&key.to_pem()?)),
        ("trusted_ca", text(&roots)),
    ]))
}

/// Put a certificate of ours where a file is named that a proxy would have.
fn inline_certificates(value: &mut Value, ours: &BTreeMap<&str, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match ours.get(name.as_str()) {
                    Some(own) => *value = own.clone(),
                    None => inline_certificates(value, ours),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| inline_certificates(v, ours)),
        _ => {}
    }
}
