//! The JSON of `/debug/`.
//!
//! **Invariant:** sorted, so that two looks at the same state are equal; never a secret.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use envoy_api::dump;
use identity::CertificateAuthority;
use model::Problem;
use serde_json::{Map, Value, json};
use xds::{EncodedResource, Protocol, ResourceType, StreamStatus, TypeStatus};

use super::Admin;
use crate::event::FileProblem;
use crate::pushes::Push;
use crate::sources::{SourceStates, Watched};
use crate::world::{Offered, World};

/// Every stream and the state of its types.
pub(super) fn syncz(admin: &Admin) -> Value {
    let mut streams = admin.streams.list();
    streams.sort_by(|a, b| (&a.node_id, a.id).cmp(&(&b.node_id, b.id)));
    let world = admin.shared.world.load();
    Value::Array(streams.iter().map(|stream| of_stream(admin, &world, stream)).collect())
}

fn of_stream(admin: &Admin, world: &World, stream: &StreamStatus) -> Value {
    let offered = stream.scope.and_then(|scope| world.offered(scope));
    let types: Map<String, Value> = stream
        .types
        .iter()
        .map(|t| {
            let holds_all = offered.as_ref().is_none_or(|o| holds_all(admin, stream, o, t));
            (t.resource_type.short_name().to_owned(), of_type(t, holds_all))
        })
        .collect();
    let synced = !types.is_empty() && types.values().all(|t| t["state"] == "SYNCED");
    json!({
        "proxy": &*stream.node_id,
        "stream": stream.id.0,
        "protocol": match stream.protocol { Protocol::Delta => "delta", Protocol::Sotw => "sotw" },
        "connectedSince": rfc3339(stream.connected_since),
        "scope": stream.scope.map(|s| s.0),
        "synced": synced,
        "types": types,
    })
}

/// The authority: certificates and counts, never a key.
pub(super) fn ca(ca: &CertificateAuthority) -> Value {
    let authority = ca.authority();
    let (about, stats) = (authority.about(), ca.stats());
    let root = |root: &identity::bundle::Root| json!({ "subject": root.subject, "notAfter": rfc3339(root.not_after) });
    json!({
        "trustDomain": ca.trust_domain().as_str(),
        "issuer": {
            "subject": about.subject,
            "serial": about.serial,
            "key": about.key,
            "selfSigned": about.self_signed,
            "notBefore": rfc3339(about.not_before),
            "notAfter": rfc3339(about.not_after),
        },
        "roots": authority.roots().roots().map(root).collect::<Vec<_>>(),
        "requests": stats.requests.get(),
        "issued": stats.issued.get(),
        "refused": stats.refusals(),
        "refusedFiles": stats.bad_files.get(),
        "connections": stats.connections.get(),
        "failedHandshakes": stats.handshake_failures.get(),
    })
}

/// Whether a proxy holds every resource of a type that it is offered, as it is offered. Of types
/// that are asked for by name it need not hold all.
fn holds_all(admin: &Admin, stream: &StreamStatus, offered: &Offered, t: &TypeStatus) -> bool {
    let held = admin.streams.held(stream.id, t.resource_type).unwrap_or_default();
    let wanted = offered.iter().filter(|((kind, _), _)| *kind == t.resource_type);
    let mut wanted = wanted.map(|((_, name), (resource, _))| (name, resource.version()));
    wanted.all(|(name, version)| match held.get(name) {
        Some(held) => *held == version,
        None => !t.wildcard,
    })
}

fn of_type(t: &TypeStatus, holds_all: bool) -> Value {
    let has_all = holds_all && !t.unanswered;
    let state = if t.error.is_some() && !t.parked.is_empty() {
        "ERROR"
    } else if t.sent == 0 && !has_all {
        "NOT_SENT"
    } else if t.in_flight > 0 || !t.waiting.is_empty() || !has_all || t.stale {
        "STALE"
    } else {
        "SYNCED"
    };
    json!({
        "state": state,
        "version": t.acked_version,
        "sentVersion": t.sent_version,
        "nonce": t.sent_nonce,
        "ackedNonce": t.acked_nonce,
        "sent": t.sent,
        "acked": t.acked,
        "rejected": t.rejected,
        "held": t.held,
        "inFlight": t.in_flight,
        "waiting": t.waiting,
        "parked": t.parked,
        "error": t.error.clone().unwrap_or_default(),
    })
}

/// Every object with its problems, and the problems of files.
pub(super) fn configz(world: &World) -> Value {
    let objects: Vec<Value> = world
        .objects
        .iter()
        .map(|(owner, object)| {
            let file = object.written.as_ref().map(|w| w.file.display().to_string());
            let problems = world.problems_of(owner);
            json!({
                "kind": owner.kind.name,
                "group": owner.kind.group,
                "namespace": &*owner.namespace,
                "name": &*owner.name,
                "source": &*owner.source,
                "file": file,
                "line": object.line(""),
                "generation": object.generation,
                "accepted": !problems.iter().any(|p| p.severity == model::Severity::Error),
                "problems": of_problems(&problems, |field| object.line(field)),
            })
        })
        .collect();
    let files: Vec<Value> = world.files.iter().map(of_file).collect();
    json!({ "revision": world.revision, "objects": objects, "files": files })
}

/// Every watch of a cluster.
pub(super) fn sourcez(sources: &SourceStates) -> Value {
    let one = |(kind, w): (&'static str, Watched)| {
        json!({
            "kind": kind,
            "state": w.state.as_str(),
            "since": rfc3339(w.since),
            "objects": w.objects,
            "error": w.error,
        })
    };
    Value::Array(sources.list().into_iter().map(one).collect())
}

fn of_problems(problems: &BTreeSet<&Problem>, line: impl Fn(&str) -> Option<u32>) -> Vec<Value> {
    let one = |p: &&Problem| {
        json!({
            "field": p.field,
            "line": line(&p.field),
            "severity": p.severity,
            "reason": p.reason,
            "message": p.message,
        })
    };
    problems.iter().map(one).collect()
}

fn of_file(problem: &FileProblem) -> Value {
    json!({
        "file": problem.file.display().to_string(),
        "line": problem.at.line,
        "column": problem.at.column,
        "object": problem.object.as_ref().map(ToString::to_string),
        "severity": problem.severity,
        "message": problem.message,
    })
}

/// The last batches, newest first.
pub(super) fn pushz(world: &World) -> Value {
    let one = |push: &Arc<Push>| {
        let ran = push.ran.iter().map(|(query, differs)| {
            json!({ "query": query, "outcome": if *differs { "differs" } else { "equal" } })
        });
        let resources = push.resources.iter().map(|(t, name)| format!("{t} {name}"));
        let woken = push.woken.iter().map(|(scope, streams)| {
            let streams: Vec<u64> = streams.iter().map(|s| s.0).collect();
            json!({ "scope": scope.0, "streams": streams })
        });
        json!({
            "revision": push.revision,
            "time": rfc3339(push.at),
            "tookMicroseconds": u64::try_from(push.took.as_micros()).unwrap_or(u64::MAX),
            "events": push.events,
            "outcome": push.outcome(),
            "ranCount": push.ran_count,
            "ran": ran.collect::<Vec<_>>(),
            "resourceCount": push.resource_count,
            "resources": resources.collect::<Vec<_>>(),
            "woken": woken.collect::<Vec<_>>(),
        })
    };
    Value::Array(world.pushes.newest_first().map(one).collect())
}

/// What a proxy is offered; none when it is not connected. Of two streams of one proxy, the newer.
pub(super) fn config_dump(admin: &Admin, proxy: &str) -> Option<Value> {
    let stream = stream_of(admin, proxy)?;
    let world = admin.shared.world.load();
    let offered = stream.scope.and_then(|scope| world.offered(scope)).unwrap_or_default();
    let provenance = |resource: &EncodedResource| {
        let key: (ResourceType, Arc<str>) = (resource.resource_type(), resource.name().clone());
        let (_, ir) = offered.get(&key)?;
        Some(translate::provenance(ir, |origin| world.describe(origin)))
    };
    Some(dump::config_dump(offered.values().map(|(encoded, _)| &**encoded), provenance))
}

/// The newest stream of a proxy.
pub(super) fn stream_of(admin: &Admin, proxy: &str) -> Option<StreamStatus> {
    let streams = admin.streams.list().into_iter();
    streams.filter(|s| &*s.node_id == proxy).max_by_key(|s| s.id)
}

/// A time such as `2026-01-31T12:00:00Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The proleptic Gregorian calendar, years beginning in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_709_210_096), "2024-02-29T12:34:56Z");
    }
}
