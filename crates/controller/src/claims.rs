//! What a proxy may claim.
//!
//! In: the node of a stream, the identity that its credential proved. Out: nothing, or what does
//! not fit.
//!
//! **Invariant:** asked before anything is computed or sent for the stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_api::envoy::config::core::v3::Node;
use identity::{SpiffeId, Verified};
use model::{Proxy, Role};
use prost_types::value::Kind;

/// What proxies of a port must prove.
pub(crate) enum Policy {
    /// Nothing: the port is for proxies of this machine.
    Open,
    /// An identity; these may be gateways.
    Proven(Arc<BTreeSet<SpiffeId>>),
}

// === impl Policy ===

impl Policy {
    /// Whether a proxy may be what its node says. Out: its identity, if the port knows any.
    pub(crate) fn check(
        &self,
        node: &Node,
        proxy: &Proxy,
        extensions: &http::Extensions,
    ) -> Result<Option<Verified>, String> {
        let Self::Proven(gateways) = self else { return Ok(None) };
        let verified = extensions.get::<Verified>();
        let verified = verified.ok_or("it proved no identity")?;
        let id = &verified.id;
        let claimed = |what: &str, value: &str, own: &str| match value == own {
            true => Ok(()),
            false => Err(format!("it claims the {what} {value:?}, and its credential proves {id}")),
        };
        claimed("namespace", &proxy.namespace, id.namespace())?;
        for (key, what, own) in [
            ("NAMESPACE", "namespace", id.namespace()),
            ("SERVICE_ACCOUNT", "service account", id.service_account()),
        ] {
            let value = node.metadata.as_ref().and_then(|m| m.fields.get(key));
            match value.and_then(|v| v.kind.as_ref()) {
                None | Some(Kind::NullValue(_)) => {}
                Some(Kind::StringValue(value)) => claimed(what, value, own)?,
                Some(_) => return Err(format!("its metadata {key} is no text")),
            }
        }
        if proxy.role == Role::Router && !gateways.contains(id) {
            return Err(format!(
                "it claims to be a gateway (router~), and {id} is none; if it should be one, add \
                 {}/{} to --gateway-identity",
                id.namespace(),
                id.service_account()
            ));
        }
        Ok(Some(verified.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use identity::Method;
    use model::Capabilities;
    use prost_types::{Struct, Value};

    use super::*;

    const GATEWAY: &str = "router~10.0.0.9~gw-1.edge~edge.svc.cluster.local";
    const SIDECAR: &str = "sidecar~10.0.0.9~web-1.edge~edge.svc.cluster.local";

    fn verified(namespace: &str, account: &str) -> Verified {
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let now = SystemTime::now();
        let expires = now + Duration::from_secs(600);
        Verified::new(id.parse().expect("valid"), Method::Certificate, expires, now).expect("good")
    }

    fn check(id: &str, who: Option<Verified>, metadata: &[(&str, Kind)]) -> Result<(), String> {
        let fields = metadata
            .iter()
            .map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) }));
        let node = Node {
            id: id.to_owned(),
            metadata: Some(Struct { fields: fields.collect() }),
            ..Default::default()
        };
        let proxy = Proxy::parse(id, None, Capabilities { vhds: true, mutual_tls: false })
            .expect("a node id");
        let mut extensions = http::Extensions::new();
        if let Some(who) = who {
            extensions.insert(who);
        }
        let gateways = [verified("edge", "gateway").id].into();
        Policy::Proven(Arc::new(gateways)).check(&node, &proxy, &extensions).map(|_| ())
    }

    fn text(value: &str) -> Kind {
        Kind::StringValue(value.to_owned())
    }

    #[test]
    fn a_proxy_is_what_its_credential_proves_and_nothing_else() {
        let web = || Some(verified("edge", "web"));
        let gateway = || Some(verified("edge", "gateway"));
        let own = [("NAMESPACE", text("edge")), ("SERVICE_ACCOUNT", text("web"))];
        assert_eq!(check(SIDECAR, web(), &[]), Ok(()));
        assert_eq!(check(SIDECAR, web(), &own), Ok(()));
        assert_eq!(check(SIDECAR, web(), &[("NAMESPACE", Kind::NullValue(0))]), Ok(()));
        assert_eq!(check(GATEWAY, gateway(), &[]), Ok(()));
        let other = || Some(verified("other", "web"));
        for (id, who, metadata, says) in [
            (SIDECAR, None, &[][..], "proved no identity"),
            (SIDECAR, other(), &[], "namespace \"edge\""),
            (SIDECAR, web(), &[("NAMESPACE", text("other"))], "namespace \"other\""),
            (SIDECAR, web(), &[("SERVICE_ACCOUNT", text("admin"))], "service account \"admin\""),
            (SIDECAR, web(), &[("NAMESPACE", Kind::BoolValue(true))], "no text"),
            (GATEWAY, web(), &[], "--gateway-identity"),
            (GATEWAY, other(), &[], "namespace \"edge\""),
        ] {
            let refused = check(id, who, metadata).expect_err(says);
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn an_open_port_asks_for_nothing() {
        let proxy = Proxy::parse(GATEWAY, None, Capabilities { vhds: true, mutual_tls: false })
            .expect("a node id");
        let checked = Policy::Open.check(&Node::default(), &proxy, &http::Extensions::new());
        assert!(checked.is_ok_and(|identity| identity.is_none()));
    }
}
