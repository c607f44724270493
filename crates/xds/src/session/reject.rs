//! NACKs: who is to blame, and what happens to the others.
//!
//! In: the error text and the response it is about. Out: suspects to be sent again alone, or one
//! culprit that is parked until its content changes.
//!
//! **Invariant:** a rejection touches its own stream and its own type only.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_api::ResourceType;

use super::message::Rejection;
use super::state::{Parked, Sent, TypeState};
use super::stub;
use crate::publication::ScopeView;

/// Work a NACK into the state of its type.
pub(super) fn reject(
    state: &mut TypeState,
    resource_type: ResourceType,
    nonce: u64,
    sent: Sent,
    error: String,
    view: Option<&ScopeView>,
) -> Rejection {
    let names: BTreeSet<_> = sent.items.keys().cloned().collect();
    let named = blamed(resource_type, &error, &names);
    let parked = names.len() == 1;
    let mut resources = Vec::new();
    for (name, resource) in sent.items {
        if !named.is_empty() && !named.contains(&name) {
            state.accept(nonce, name, resource, view);
            continue;
        }
        state.refuse(nonce, &name);
        let version = resource.as_ref().map(|r| r.version());
        resources.push((name.clone(), version));
        state.todo.insert(name.clone());
        if !parked {
            state.alone.insert(name, version);
            continue;
        }
        let was_stand_in = state.parked.get_mut(&name).filter(|parked| {
            let stand_in = parked.stand_in.as_ref().map(|r| r.version());
            stand_in.is_some() && stand_in == version
        });
        if let Some(parked) = was_stand_in {
            // Even the stand-in was refused: nothing is left to try.
            parked.stand_in = None;
            continue;
        }
        let stand_in = resource.as_deref().and_then(stub::stand_in);
        let claims = resource.map_or(Vec::new(), |r| r.claims().to_vec());
        let parked = Parked { version, claims, stand_in };
        state.parked.insert(name, parked);
    }
    state.tally.rejected += 1;
    state.tally.rejected_nonce = nonce;
    state.tally.error = Some(error.clone());
    Rejection { resource_type, nonce: nonce.to_string(), resources, parked, error }
}

/// Names of a CDS or LDS response that the error blames; none = the error does not say.
///
/// Envoy writes `Error adding/updating cluster(s) a: reason, b: reason` and, a line each,
/// `Error adding/updating listener(s) a: reason`. A name too many only costs a re-send.
fn blamed(
    resource_type: ResourceType,
    error: &str,
    names: &BTreeSet<Arc<str>>,
) -> BTreeSet<Arc<str>> {
    let prefix = match resource_type {
        ResourceType::Cluster => "Error adding/updating cluster(s) ",
        ResourceType::Listener => "Error adding/updating listener(s) ",
        _ => return BTreeSet::new(),
    };
    let Some((_, list)) = error.split_once(prefix) else {
        return BTreeSet::new();
    };
    let blames = |name: &&Arc<str>| {
        list.match_indices(&***name).any(|(at, _)| {
            (at == 0 || list[..at].ends_with([' ', '\n', ',']))
                && list[at + name.len()..].starts_with(": ")
        })
    };
    names.iter().filter(blames).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blame(resource_type: ResourceType, error: &str, names: &[&str]) -> Vec<String> {
        let names = names.iter().map(|n| Arc::from(*n)).collect();
        let blamed = blamed(resource_type, error, &names);
        blamed.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn a_cds_or_lds_error_blames_exactly_the_names_it_lists() {
        let cds = "Error adding/updating cluster(s) a|80: bad ip, ca|80: type: unknown";
        let names = ["a|80", "b", "ca|80", "80", "type"];
        assert_eq!(blame(ResourceType::Cluster, cds, &names), ["a|80", "ca|80", "type"]);
        let lds = "Error adding/updating listener(s) l1: duplicate\nl2: bad";
        assert_eq!(blame(ResourceType::Listener, lds, &["l1", "l2", "l"]), ["l1", "l2"]);
        assert!(blame(ResourceType::Listener, cds, &names).is_empty());
        assert!(blame(ResourceType::Cluster, "Proto constraint: a: bad", &["a"]).is_empty());
        assert!(blame(ResourceType::VirtualHost, cds, &names).is_empty());
    }
}
