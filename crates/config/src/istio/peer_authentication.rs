//! PeerAuthentication: whether workloads take mutual TLS, plain text, or both.
//!
//! In: the object. Out: one `PeerPolicy` row.
//!
//! **Invariant:** what cannot be read closes: a mode is then STRICT, and a policy whose workloads
//! are not known is for all of its namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{PeerMode, PeerPolicy};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{decode, lies, nothing};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Type, field};
use crate::text;

/// The kind.
pub(crate) struct PeerAuthentication;

const MODE: Type = Type::Enum(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]);
const MTLS: Type = Type::Object(&[field("mode", MODE)]);

const SPEC: Type = Type::Object(&[
    field(
        "selector",
        Type::Object(&[field("matchLabels", Type::Map(text::not_empty, &Type::Text)).or_parent()]),
    ),
    field("mtls", MTLS),
    field("portLevelMtls", Type::Map(port, &MTLS)),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: BTreeMap<String, Option<Mtls>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Mtls {
    mode: Option<String>,
}

fn port(text: &str) -> Result<(), String> {
    match text.parse::<u16>() {
        Ok(number) if number > 0 => Ok(()),
        _ => Err(format!("{text:?} is no port; use a number from 1 to 65535")),
    }
}

// === impl Mtls ===

impl Mtls {
    fn mode(&self) -> Option<PeerMode> {
        match self.mode.as_deref()? {
            "DISABLE" => Some(PeerMode::Disable),
            "PERMISSIVE" => Some(PeerMode::Permissive),
            "STRICT" => Some(PeerMode::Strict),
            _ => None,
        }
    }
}

// === impl PeerAuthentication ===

impl Kind for PeerAuthentication {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        // One without a spec is for the whole namespace and says nothing.
        let absent = raw.body.get("spec").is_none_or(|spec| spec.is_null());
        let spec = match absent {
            true => Spec::default(),
            false => match decode::<Spec>(&mut raw, &SPEC, &mut problems) {
                Some(spec) => spec,
                None => return (nothing(raw), problems),
            },
        };
        let Spec { selector, mtls, port_level_mtls } = spec;
        let bad = |problems: &[Problem], path: &str| problems.iter().any(|p| lies(&p.field, path));
        let closed =
            |problems: &[Problem], path: &str| bad(problems, path).then_some(PeerMode::Strict);
        let lost = bad(&problems, "spec.selector");
        let selector = selector.map(|s| s.match_labels).unwrap_or_default();
        let said = mtls.unwrap_or_default().mode();
        let mode = closed(&problems, "spec.mtls").or(said);
        // Who it was meant for is not known; what it would open is not opened for all.
        let mode = if lost { mode.map(|_| PeerMode::Strict) } else { mode };
        let mut ports = BTreeMap::new();
        for (text, own) in port_level_mtls {
            let Ok(number) = text.parse::<u16>() else { continue };
            let path = format!("spec.portLevelMtls.{text}");
            let said = own.unwrap_or_default().mode();
            ports.extend(closed(&problems, &path).or(said).map(|mode| (number, mode)));
        }
        if selector.is_empty() && !ports.is_empty() {
            let message = "has no effect in a policy for a whole namespace; add a selector";
            let field = "spec.portLevelMtls";
            problems.push(Problem::warning(&raw.owner, field, Reason::NotSupported, message));
            ports.clear();
        }
        let row = PeerPolicy {
            namespace: Arc::clone(&raw.owner.namespace),
            created: raw.created,
            selector,
            mode,
            ports,
        };
        (Change { owner: raw.owner, rows: vec![Row::PeerPolicy(row.into())] }, problems)
    }
}
