//! Domains that move between the virtual hosts of one RouteConfiguration.
//!
//! Two holders of a domain are a NACK, no holder is an outage. So the host that gives a domain
//! up and the one that takes it go in one response; one that is about to vanish is first given a
//! domain that nobody asks for.
//!
//! **Invariant:** in any response that goes out, no domain is taken that another host keeps,
//! unless the wait for it has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceType};

use super::plan::Addition;
use super::state::TypeState;
use super::{Session, stub};
use crate::publication::{ScopeView, parent_of};

/// Parent and domain → who newly claims it, as an index into the additions.
type Gains = BTreeMap<(String, Arc<str>), usize>;

// === impl Session ===

impl Session {
    /// Join additions between which a domain moves into one group; turn a removal into a
    /// placeholder where its domain is taken.
    ///
    /// A host that was refused is offered once more together with one that takes its domain: the
    /// two may have failed for lack of each other.
    pub(super) fn link_claims(
        &self,
        view: &ScopeView,
        additions: &mut Vec<Addition>,
        removals: &mut Vec<Arc<str>>,
    ) {
        let state = self.state(ResourceType::VirtualHost);
        if state.held.len() == 0 && state.sent.is_empty() {
            // Nobody has a domain that could move.
            return;
        }
        let gains = gains(state, additions);
        if gains.is_empty() {
            return;
        }
        let at: BTreeMap<Arc<str>, usize> =
            additions.iter().enumerate().map(|(i, a)| (a.resource.name().clone(), i)).collect();
        for name in state.on_stream_names() {
            let takers = takers(state, &gains, &name, at.get(&name).copied());
            if takers.is_empty() {
                continue;
            }
            for taker in &takers {
                additions[*taker].takes = true;
            }
            let takers = takers.into_iter().filter(|taker| !additions[*taker].alone);
            let takers: Vec<_> = takers.collect();
            if takers.is_empty() {
                continue;
            }
            let giver = match at.get(&name) {
                Some(giver) => Some(*giver),
                None => placeholder(state, &name, additions, removals)
                    .or_else(|| refused(state, view, &name, additions)),
            };
            for taker in takers {
                match giver {
                    Some(giver) => join(additions, giver, taker),
                    None => additions[taker].conflict = true,
                }
            }
        }
    }
}

/// Domains that additions claim and their hosts do not hold yet.
fn gains(state: &TypeState, additions: &[Addition]) -> Gains {
    let mut gains = Gains::new();
    for (i, addition) in additions.iter().enumerate() {
        let name = addition.resource.name();
        let Some(parent) = parent_of(name) else {
            continue;
        };
        let had = state.expected_content(name).map_or(&[][..], |host| host.claims());
        for domain in addition.resource.claims() {
            if had.binary_search(domain).is_err() {
                gains.insert((parent.to_owned(), domain.clone()), i);
            }
        }
    }
    gains
}

/// The additions that take a domain from the host `name`; with unknown content all that take any
/// domain of the same parent.
fn takers(state: &TypeState, gains: &Gains, name: &Arc<str>, own: Option<usize>) -> Vec<usize> {
    let Some(parent) = parent_of(name) else {
        return Vec::new();
    };
    let mut takers: Vec<usize> = match state.expected_content(name) {
        Some(host) => {
            let keys = host.claims().iter().map(|d| (parent.to_owned(), d.clone()));
            keys.filter_map(|key| gains.get(&key).copied()).collect()
        }
        None => {
            let of_parent = gains.iter().filter(|((p, _), _)| p == parent);
            of_parent.map(|(_, i)| *i).collect()
        }
    };
    takers.sort_unstable();
    takers.dedup();
    takers.retain(|taker| Some(*taker) != own);
    takers
}

/// Send a host that should vanish once more, out of the way.
fn placeholder(
    state: &TypeState,
    name: &Arc<str>,
    additions: &mut Vec<Addition>,
    removals: &mut Vec<Arc<str>>,
) -> Option<usize> {
    let removal = removals.iter().position(|removed| removed == name)?;
    let host = match state.expected_content(name) {
        Some(host) => stub::unreachable_host(host),
        None => {
            let unknown =
                EncodedResource::new(ResourceType::VirtualHost, name.clone(), b"", vec![]);
            stub::unreachable_host(&unknown)
        }
    };
    let refused = state.parked.get(name).and_then(|parked| parked.version);
    if refused == Some(host.version()) {
        return None;
    }
    removals.remove(removal);
    let group = additions.len();
    additions.push(Addition::new(host, group));
    Some(group)
}

/// Offer a refused host again.
fn refused(
    state: &TypeState,
    view: &ScopeView,
    name: &Arc<str>,
    additions: &mut Vec<Addition>,
) -> Option<usize> {
    let host = view.get(ResourceType::VirtualHost, name)?;
    state.parked.get(name)?;
    let group = additions.len();
    additions.push(Addition::new(host.clone(), group));
    Some(group)
}

fn join(additions: &mut [Addition], a: usize, b: usize) {
    if additions[a].alone {
        return;
    }
    let (from, to) = (additions[a].group, additions[b].group);
    for addition in additions.iter_mut().filter(|a| a.group == from) {
        addition.group = to;
    }
}
