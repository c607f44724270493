//! Resources that nobody configured: what a proxy gets when the real one is missing or refused.
//!
//! In: a name. Out: the smallest message that Envoy accepts. Hand-encoded: each has two or three
//! fields.
//!
//! **Invariant:** a stub routes no traffic; it only makes Envoy stop waiting.

use std::sync::Arc;

use envoy_api::resource::put_field;
use envoy_api::{EncodedResource, ResourceType};

/// An empty ClusterLoadAssignment: "this cluster has no endpoints" ends warming at once.
pub(super) fn no_endpoints(name: &Arc<str>) -> Arc<EncodedResource> {
    let mut body = Vec::new();
    put_field(&mut body, 1, name.as_bytes());
    encoded(ResourceType::Endpoints, name, &body)
}

/// What stands in for a resource of which the proxy never accepted any version.
pub(super) fn stand_in(refused: &EncodedResource) -> Option<Arc<EncodedResource>> {
    let name = refused.name();
    match refused.resource_type() {
        ResourceType::Cluster => {
            // `name`; no `type` means STATIC and no `load_assignment` no endpoints.
            let mut body = Vec::new();
            put_field(&mut body, 1, name.as_bytes());
            Some(encoded(ResourceType::Cluster, name, &body))
        }
        ResourceType::Endpoints => Some(no_endpoints(name)),
        ResourceType::RouteConfiguration => {
            let mut body = Vec::new();
            put_field(&mut body, 1, name.as_bytes());
            put_field(&mut body, 2, &answering_500(b"refused", [&Arc::from("*")]));
            Some(encoded(ResourceType::RouteConfiguration, name, &body))
        }
        ResourceType::VirtualHost if refused.claims().is_empty() => Some(unreachable_host(refused)),
        ResourceType::VirtualHost => {
            let inner = inner_name(refused);
            let body = answering_500(&inner, refused.claims());
            let claims = refused.claims().to_vec();
            let host = EncodedResource::new(ResourceType::VirtualHost, name.clone(), &body, vec![]);
            Some(Arc::new(host.with_claims(claims)))
        }
        ResourceType::Listener | ResourceType::Secret => None,
    }
}

/// The virtual host with a domain that no request names, so that its real domains are free.
pub(super) fn unreachable_host(host: &EncodedResource) -> Arc<EncodedResource> {
    let domain = format!("{:016x}.invalid", xxhash_rust::xxh3::xxh3_64(host.name().as_bytes()));
    let mut body = Vec::new();
    put_field(&mut body, 1, &inner_name(host));
    put_field(&mut body, 2, domain.as_bytes());
    encoded(ResourceType::VirtualHost, host.name(), &body)
}

fn encoded(resource_type: ResourceType, name: &Arc<str>, body: &[u8]) -> Arc<EncodedResource> {
    Arc::new(EncodedResource::new(resource_type, name.clone(), body, vec![]))
}

/// `VirtualHost { name, domains, routes: [{ match: { prefix: "" }, direct_response: 500 }] }`.
fn answering_500<'a>(name: &[u8], domains: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<u8> {
    let mut route_match = Vec::new();
    put_field(&mut route_match, 1, b"");
    // DirectResponseAction.status, field 1, varint 500.
    let direct_response = [0x08, 0xf4, 0x03];
    let mut route = Vec::new();
    put_field(&mut route, 1, &route_match);
    put_field(&mut route, 7, &direct_response);
    let mut host = Vec::new();
    put_field(&mut host, 1, name);
    for domain in domains {
        put_field(&mut host, 2, domain.as_bytes());
    }
    put_field(&mut host, 3, &route);
    host
}

/// `VirtualHost.name` as the resource itself says it, which need not be the resource's name.
fn inner_name(host: &EncodedResource) -> Vec<u8> {
    #[derive(prost::Message)]
    struct Named {
        #[prost(bytes = "vec", tag = "1")]
        name: Vec<u8>,
    }
    match <Named as prost::Message>::decode(host.body()) {
        Ok(named) if !named.name.is_empty() => named.name,
        _ => host.name().as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_keeps_the_inner_name_and_claims_nothing() {
        let mut body = Vec::new();
        put_field(&mut body, 1, b"inner");
        put_field(&mut body, 2, b"example.org");
        let host = EncodedResource::new(ResourceType::VirtualHost, "80/outer", &body, vec![])
            .with_claims(vec!["example.org".into()]);
        let placeholder = unreachable_host(&host);
        assert!(placeholder.claims().is_empty());
        assert_eq!(placeholder.name(), host.name());
        assert!(placeholder.body().starts_with(b"\x0a\x05inner\x12"));
        assert!(placeholder.body().ends_with(b".invalid"));
    }

    #[test]
    fn a_stand_in_host_answers_500_on_the_refused_domains() {
        let host = EncodedResource::new(ResourceType::VirtualHost, "80/x", b"", vec![])
            .with_claims(vec!["a".into(), "b".into()]);
        let stub = stand_in(&host).unwrap();
        assert_eq!(stub.claims(), host.claims());
        assert_eq!(
            &stub.body()[..],
            b"\x0a\x0480/x\x12\x01a\x12\x01b\x1a\x09\x0a\x02\x0a\x00\x3a\x03\x08\xf4\x03"
        );
    }
}
