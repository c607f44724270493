//! Sidecar: what the sidecars of some workloads may reach.
//!
//! In: the object. Out: one `SidecarScope` row.
//!
//! **Invariant:** what cannot be read never widens what is reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{HostPattern, HostScope, OutboundPolicy, SidecarScope};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{decode, later, nothing};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Field, OnBad, Type, field, not_yet};
use crate::text;

/// The kind.
pub(crate) struct Sidecar;

/// What becomes of requests to hosts that nothing declares.
pub(crate) const OUTBOUND_POLICY: &[Field] = &[
    field("mode", Type::Enum(&["ALLOW_ANY", "REGISTRY_ONLY"])).or_parent(),
    not_yet("egressProxy").of(later::DESTINATION),
];

const EGRESS: Type = Type::Object(&[
    field("hosts", Type::List(&Type::Text, OnBad::Field)).required(),
    // Without its port a listener would be for all of them.
    not_yet("port").or_parent(),
    not_yet("bind").or_parent(),
    not_yet("captureMode"),
]);

const SPEC: Type = Type::Object(&[
    // Without its selector it would apply to the whole namespace.
    field(
        "workloadSelector",
        Type::Object(&[
            field("labels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
            field("matchLabels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
        ]),
    )
    .or_parent(),
    not_yet("ingress"),
    field("egress", Type::List(&EGRESS, OnBad::Field)),
    not_yet("inboundConnectionPool"),
    field("outboundTrafficPolicy", Type::Object(OUTBOUND_POLICY)),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    workload_selector: Option<Selector>,
    egress: Option<Vec<Option<Egress>>>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    labels: BTreeMap<Arc<str>, Arc<str>>,
    match_labels: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Deserialize)]
struct Egress {
    #[serde(default)]
    hosts: Vec<Option<String>>,
}

/// The decoded form of `OUTBOUND_POLICY`.
#[derive(Deserialize)]
pub(crate) struct OutboundTrafficPolicy {
    mode: Option<String>,
}

/// Whether a host is let through or taken out again.
enum Entry {
    In(HostPattern),
    Out(HostPattern),
    /// `~/*`: nothing.
    Nothing,
}

// === impl Sidecar ===

impl Kind for Sidecar {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec { workload_selector, egress, outbound_traffic_policy } = spec;
        let Selector { mut labels, match_labels } = workload_selector.unwrap_or_default();
        labels.extend(match_labels);
        let mut excluded = Vec::new();
        let egress = egress.map(|listeners| {
            let mut included = Vec::new();
            for (i, listener) in listeners.into_iter().enumerate() {
                let hosts = listener.map(|l| l.hosts).unwrap_or_default();
                for (j, host) in hosts.into_iter().enumerate() {
                    let Some(host) = host else { continue };
                    match entry(&host, &raw.owner.namespace) {
                        Ok(Entry::In(pattern)) => included.push(pattern),
                        Ok(Entry::Out(pattern)) => excluded.push(pattern),
                        Ok(Entry::Nothing) => {}
                        Err(why) => {
                            let field = format!("spec.egress[{i}].hosts[{j}]");
                            let reason = Reason::WrongType;
                            problems.push(Problem::error(&raw.owner, field, reason, why));
                            // One that takes something out must not be lost.
                            if host.starts_with('~') {
                                included.clear();
                                return included;
                            }
                        }
                    }
                }
            }
            included
        });
        let row = SidecarScope {
            namespace: Arc::clone(&raw.owner.namespace),
            created: raw.created,
            selector: labels,
            egress,
            excluded,
            outbound: outbound_traffic_policy.and_then(|p| p.lower()),
        };
        (Change { owner: raw.owner, rows: vec![Row::SidecarScope(row.into())] }, problems)
    }
}

/// `namespace/host`, where the namespace is a name, `.`, `*` or `~`, and `~name` takes out.
fn entry(text: &str, own: &Arc<str>) -> Result<Entry, String> {
    let Some((namespace, host)) = text.split_once('/') else {
        return Err(format!("must be like namespace/host, but is {text:?}; `*/{text}` is any"));
    };
    if namespace == "~" {
        return match host {
            "*" => Ok(Entry::Nothing),
            _ => Err(format!("`~` is for no host at all and written `~/*`, not {text:?}")),
        };
    }
    text::host(host)?;
    let (out, namespace) = match namespace.strip_prefix('~') {
        Some(rest) => (true, rest),
        None => (false, namespace),
    };
    let scope = match namespace {
        "*" => HostScope::Any,
        "." => HostScope::Namespace(Arc::clone(own)),
        name => {
            text::dns_name(name)?;
            HostScope::Namespace(Arc::from(name))
        }
    };
    let pattern = HostPattern { scope, host: Arc::from(host.to_ascii_lowercase()) };
    Ok(if out { Entry::Out(pattern) } else { Entry::In(pattern) })
}

// === impl OutboundTrafficPolicy ===

impl OutboundTrafficPolicy {
    /// The policy; none where the mode is not said.
    pub(crate) fn lower(&self) -> Option<OutboundPolicy> {
        match self.mode.as_deref()? {
            "REGISTRY_ONLY" => Some(OutboundPolicy::RegistryOnly),
            _ => Some(OutboundPolicy::AllowAny),
        }
    }
}
