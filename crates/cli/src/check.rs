//! From files to what a controller would make of them, and everything that is wrong on the way.
//!
//! In: files, and the proxies to resolve for. Out: the engine that has them; problems go to the
//! findings of the files.
//!
//! **Invariant:** the same code as the controller's, from lowering to Envoy's own rules; only
//! delivery is left out.

use std::sync::Arc;

use envoy_api::EncodedResource;
use model::{Batch, Engine, Problem, Proxy, ProxyKey, Reason, ir};

use crate::files::{Files, Finding};

/// Lower every object and resolve it for these proxies. The key of a proxy is its index.
pub(crate) fn resolve(files: &mut Files, proxies: impl IntoIterator<Item = Proxy>) -> Engine {
    let mut changes = Vec::new();
    let mut findings = Vec::new();
    for (file, raw) in files.objects.values() {
        let (change, problems) = config::lower(raw.clone());
        changes.push(change);
        findings.extend(problems.into_iter().map(|problem| {
            let place = Some((*file, raw.locate(&problem.field)));
            Finding { problem, place }
        }));
    }
    let mut engine = Engine::new();
    let connected = (0..).map(ProxyKey).zip(proxies).collect();
    engine.apply(Batch { changes, connected, disconnected: Vec::new() });
    for problem in engine.problems() {
        let place = files.place(&problem.object, &problem.field);
        findings.push(Finding { problem, place });
    }
    files.findings.extend(findings);
    engine
}

/// Encode a resource. None where it breaks a rule of Envoy's, which is noted.
pub(crate) fn encode(files: &mut Files, resource: &Arc<ir::Resource>) -> Option<EncodedResource> {
    let (encoded, violations) = translate::encode(resource);
    for violation in &violations {
        let Some(origin) = resource.origins().0.first() else { continue };
        let message = format!(
            "Envoy would refuse {encoded:?}: {} {}, so the resource is withheld",
            violation.field, violation.message
        );
        let problem = Problem::error(&origin.object, &*origin.field, Reason::Invalid, message);
        let place = files.place(&origin.object, &origin.field);
        files.findings.push(Finding { problem, place });
    }
    violations.is_empty().then_some(encoded)
}
