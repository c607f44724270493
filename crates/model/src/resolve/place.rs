//! Places: which endpoints a proxy prefers because of where it runs.
//!
//! In: a policy, where the proxy runs, where endpoints are. Out: for each place its priority and its
//! share.
//!
//! Failover is in force where endpoints can be set aside: the same subzone first, then the same
//! zone, the same region, the region that the policy names, all others. A distribution gives shares
//! instead, and leaves out the places that it does not name.
//!
//! **Invariant:** priorities begin at 0 and have no gaps: Envoy would refuse them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ClusterKey;
use super::cluster::effective_policy;
use crate::ir::{Place, Places};
use crate::object::Origins;
use crate::rows::{Locality, LocalityBalance, TrafficPolicy};
use crate::track::View;

/// What a policy says of places; none when they do not matter.
fn balance(view: &View<'_>, policy: &TrafficPolicy) -> Option<Arc<LocalityBalance>> {
    let own = policy.load_balancer.as_ref().and_then(|lb| lb.locality.clone());
    let balance = own.unwrap_or_else(|| Arc::clone(&view.mesh().locality));
    let matters = !balance.distribute.is_empty() || policy.outlier_detection.is_some();
    (balance.enabled && matters).then_some(balance)
}

/// Whether it matters for a cluster where its clients run.
pub(super) fn matters(view: &View<'_>, cluster: &ClusterKey) -> bool {
    let policy = effective_policy(view, cluster, &mut Origins::default());
    cluster.has_endpoints && balance(view, &policy).is_some()
}

/// Whether shares of places are in force for a cluster, wherever its clients run.
pub(super) fn distributes(view: &View<'_>, policy: &TrafficPolicy) -> bool {
    balance(view, policy).is_some_and(|balance| !balance.distribute.is_empty())
}

/// Priority and share of each place.
pub(super) fn places(
    view: &View<'_>,
    cluster: &ClusterKey,
    near: &Locality,
    weights: &BTreeMap<Locality, u32>,
) -> Option<Places> {
    let policy = effective_policy(view, cluster, &mut Origins::default());
    let balance = balance(view, &policy)?;
    let from = balance.distribute.iter().find(|(from, _)| covers(from, near));
    if let Some((_, to)) = from {
        let shares = to.iter().flat_map(|(pattern, share)| {
            let inside: Vec<_> =
                weights.iter().filter(|(place, _)| covers(pattern, place)).collect();
            let sum: u64 = inside.iter().map(|(_, weight)| u64::from(**weight)).sum();
            inside.into_iter().map(move |(place, weight)| {
                // Of 100 in all; finer where a pattern has several places.
                let part = u64::from(*share) * 1000 * u64::from(*weight) / sum.max(1);
                let share = u32::try_from(part).unwrap_or(u32::MAX).max(1);
                (place.clone(), Place { priority: 0, share: Some(share) })
            })
        });
        let mut places = Places::new();
        for (place, share) in shares {
            // The first pattern that covers a place has it.
            places.entry(place).or_insert(share);
        }
        return (!places.is_empty()).then_some(places);
    }
    if !balance.distribute.is_empty() {
        return None;
    }
    let next = balance.failover.iter().find(|(from, _)| *from == near.region).map(|(_, to)| to);
    let rank = |place: &Locality| match (near.region == place.region, near.zone == place.zone) {
        (true, true) if near.subzone == place.subzone => 0,
        (true, true) => 1,
        (true, false) => 2,
        (false, _) if next == Some(&place.region) => 3,
        (false, _) => 4,
    };
    let ranks: BTreeSet<u32> = weights.keys().map(rank).collect();
    let priorities: BTreeMap<u32, u32> = ranks.into_iter().zip(0..).collect();
    let place = |place: &Locality| Place { priority: priorities[&rank(place)], share: None };
    Some(weights.keys().map(|locality| (locality.clone(), place(locality))).collect())
}

/// Whether a pattern such as `region/zone/*` covers a place; what it does not say is any.
fn covers(pattern: &str, place: &Locality) -> bool {
    let parts = [&place.region, &place.zone, &place.subzone];
    pattern == "*"
        || pattern.split('/').zip(parts).all(|(wanted, part)| wanted == "*" || *wanted == **part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_does_not_exclude() {
        let place = |region: &str, zone: &str, subzone: &str| Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: subzone.into(),
        };
        let here = place("us", "us-1", "a");
        for (pattern, expected) in [
            ("*", true),
            ("us", true),
            ("us/*", true),
            ("us/us-1/*", true),
            ("us/us-1/a", true),
            ("us/us-1/b", false),
            ("us/us-2/*", false),
            ("eu", false),
        ] {
            assert_eq!(covers(pattern, &here), expected, "{pattern}");
        }
    }
}
