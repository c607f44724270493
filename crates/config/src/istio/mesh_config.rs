//! MeshConfig: settings of the whole mesh.
//!
//! In: an object of kind `MeshConfig`, or the bare settings that Istio users keep in a ConfigMap.
//! Out: one `Mesh` row.
//!
//! **Invariant:** a setting that cannot be read keeps its default; one of visibility, whose default
//! is everyone, comes to mean the own namespace.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use model::rows::{DefaultVisibility, Mesh};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::locality::{LOCALITY, Locality};
use super::proxy_config;
use super::retries::{RETRIES, Retries};
use super::sidecar::{OUTBOUND_POLICY, OutboundTrafficPolicy};
use super::{decode, nothing};
use crate::export_to::{EXPORT_TO, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Type, check, field, not_yet, parse_time};
use crate::text;
use crate::yaml::{self, Entry, Mark, Node, SyntaxError, Value};

/// The kind.
pub(crate) struct MeshConfig;

const SPEC: Type = Type::Object(&[
    field("rootNamespace", Type::Checked(text::dns_name)),
    field("connectTimeout", Type::Time(1)),
    field("defaultHttpRetryPolicy", Type::Object(RETRIES)),
    field("accessLogFile", Type::Checked(text::no_control)),
    not_yet("accessLogFormat"),
    not_yet("accessLogEncoding"),
    not_yet("ca"),
    not_yet("caCertificates"),
    not_yet("configSources"),
    // For whoever starts proxies; nothing of their configuration depends on it. Its fields are
    // checked below.
    field("defaultConfig", Type::Object(&[])).inert(),
    field("defaultDestinationRuleExportTo", EXPORT_TO),
    not_yet("defaultProviders"),
    field("defaultServiceExportTo", EXPORT_TO),
    not_yet("defaultTrafficPolicy"),
    field("defaultVirtualServiceExportTo", EXPORT_TO),
    not_yet("discoverySelectors"),
    not_yet("dnsRefreshRate"),
    field("enableAutoMtls", Type::Bool),
    not_yet("enablePrometheusMerge"),
    not_yet("enableTracing"),
    not_yet("extensionProviders"),
    not_yet("h2UpgradePolicy"),
    not_yet("inboundTrafficPolicy"),
    not_yet("ingressClass"),
    not_yet("ingressControllerMode"),
    not_yet("ingressSelector"),
    not_yet("ingressService"),
    field("localityLbSetting", LOCALITY),
    not_yet("meshMTLS"),
    field("outboundTrafficPolicy", Type::Object(OUTBOUND_POLICY)),
    not_yet("pathNormalization"),
    not_yet("serviceEntryVisibility"),
    not_yet("serviceScopeConfigs"),
    not_yet("serviceSettings"),
    not_yet("tcpKeepalive"),
    not_yet("tlsDefaults"),
    field("trustDomain", Type::Checked(text::dns_name)),
    not_yet("trustDomainAliases"),
    not_yet("verifyCertificateAtClient"),
    // What Istio's own installation writes and no proxy's configuration depends on.
    field("proxyHttpPort", Type::Any).inert(),
    field("proxyListenPort", Type::Any).inert(),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    root_namespace: Option<String>,
    connect_timeout: Option<String>,
    trust_domain: Option<Arc<str>>,
    enable_auto_mtls: Option<bool>,
    default_http_retry_policy: Option<Retries>,
    access_log_file: Option<String>,
    locality_lb_setting: Option<Locality>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    default_virtual_service_export_to: Option<Vec<String>>,
    default_destination_rule_export_to: Option<Vec<String>>,
    default_service_export_to: Option<Vec<String>>,
}

/// Read bare mesh settings: a text that is what an object would have in its `spec`, or such an
/// object.
pub fn read_mesh_config(source: &Arc<str>, text: &str) -> Result<RawObject, SyntaxError> {
    let node = yaml::parse(text)?;
    let owner = Arc::new(ObjectRef {
        source: Arc::clone(source),
        kind: model::Kind { name: Cow::Borrowed("MeshConfig"), group: Cow::Borrowed("heddle.io") },
        namespace: Arc::from(""),
        name: Arc::from("mesh"),
    });
    let spec = match node.get("kind").and_then(Node::as_str) {
        Some("MeshConfig") => node.get("spec").cloned().unwrap_or_else(empty),
        Some(kind) => {
            let message = format!(
                "{kind} is no MeshConfig; give the settings alone, as they stand in the `mesh` key \
                 of Istio's ConfigMap"
            );
            return Err(SyntaxError { at: node.locate("kind"), message });
        }
        None if node.is_null() => empty(),
        None => node,
    };
    let at = spec.at;
    let entry = Entry { key: "spec".to_owned(), at, duplicate: false, value: spec };
    let body = Node { value: Value::Map(vec![entry]), at };
    Ok(RawObject::new(owner, body, 0))
}

/// Settings that have a value, readable or not.
fn written(raw: &RawObject) -> BTreeSet<String> {
    let entries = raw.body.get("spec").and_then(Node::as_map).unwrap_or_default();
    entries.iter().filter(|e| !e.value.is_null()).map(|e| e.key.clone()).collect()
}

fn empty() -> Node {
    Node { value: Value::Map(Vec::new()), at: Mark::default() }
}

// === impl MeshConfig ===

impl Kind for MeshConfig {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        if &*raw.owner.name != "mesh" {
            let message = "there is one MeshConfig and its name is `mesh`; this one has no effect";
            let field = "metadata.name";
            problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
            return (nothing(raw), problems);
        }
        if let Some(proxy) = raw.body.get("spec").and_then(|spec| spec.get("defaultConfig")) {
            let fields = Type::Object(proxy_config::FIELDS);
            check(&raw.owner, "spec.defaultConfig", &mut proxy.clone(), &fields, &mut problems);
        }
        let written = written(&raw);
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec {
            root_namespace,
            connect_timeout,
            trust_domain,
            enable_auto_mtls,
            default_http_retry_policy,
            access_log_file,
            locality_lb_setting,
            outbound_traffic_policy,
            default_virtual_service_export_to,
            default_destination_rule_export_to,
            default_service_export_to,
        } = spec;
        let export_to = |field: &str, entries: Option<Vec<String>>| match entries {
            Some(entries) => visibility(entries.iter().map(String::as_str)).unwrap_or_default(),
            None if written.contains(field) => DefaultVisibility::own(),
            None => DefaultVisibility::default(),
        };
        let default = Mesh::default();
        let row = Mesh {
            root_namespace: root_namespace.map_or(default.root_namespace, Arc::from),
            domain: Arc::from(text::DOMAIN),
            trust_domain: trust_domain.unwrap_or(default.trust_domain),
            auto_mtls: enable_auto_mtls.unwrap_or(default.auto_mtls),
            connect_timeout: connect_timeout
                .as_deref()
                .and_then(parse_time)
                .unwrap_or(default.connect_timeout),
            default_retry: default_http_retry_policy.map_or(default.default_retry, Retries::lower),
            access_log_file: access_log_file.filter(|f| !f.is_empty()).map(Arc::from),
            locality: locality_lb_setting.map_or(default.locality, |setting| {
                let path = "spec.localityLbSetting";
                Arc::new(setting.lower(&raw.owner, path, &mut problems))
            }),
            outbound: outbound_traffic_policy.and_then(|p| p.lower()).unwrap_or_default(),
            rules_export_to: export_to(
                "defaultVirtualServiceExportTo",
                default_virtual_service_export_to,
            ),
            policies_export_to: export_to(
                "defaultDestinationRuleExportTo",
                default_destination_rule_export_to,
            ),
            services_export_to: export_to("defaultServiceExportTo", default_service_export_to),
        };
        (Change { owner: raw.owner, rows: vec![Row::Mesh(row.into())] }, problems)
    }
}
