//! Places: which endpoints a proxy prefers because of where it runs.
//!
//! In: a policy, where the proxy runs, where endpoints are. Out: for each place its priority and its
//! share.
//!
//! Failover is in force where endpoints can be set aside: the same subzone first, then the same
//! zone, the same region, the region that the policy names, all others. Where the policy lists
//! labels, those in which endpoints agree with the proxy decide instead. A distribution gives
//! shares, and leaves out the places that it does not name.
//!
//! **Invariant:** priorities begin at 0 and have no gaps: Envoy would refuse them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cluster::effective_policy;
use super::{ClusterKey, Key, Labels};
use crate::ir::{Place, Places, Spot};
use crate::object::Origins;
use crate::rows::{Locality, LocalityBalance, TrafficPolicy};
use crate::snapshot::IndexKey;
use crate::track::{Query, View};

/// What of a proxy decides which endpoints it prefers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Near {
    /// Where it runs.
    pub locality: Locality,
    /// Those of its labels that a policy asks for.
    pub labels: Labels,
}

/// Labels in which policies ask whether endpoints agree with clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AskedLabels;

impl Query for AskedLabels {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        let of_mesh = Arc::clone(&view.mesh().locality);
        let mut asked: BTreeSet<_> = of_mesh.priority.iter().map(|(key, _)| key.clone()).collect();
        for (_, policy) in view.bucket(&IndexKey::PlacePolicy, |s| &s.policies) {
            asked.extend(policy.asked_labels().cloned());
        }
        asked
    }

    fn key(&self) -> Key {
        Key::AskedLabels
    }
}

/// Those of some labels that have one of these keys.
pub(super) fn asked(keys: &BTreeSet<Arc<str>>, labels: &Labels) -> Labels {
    let own = |key: &Arc<str>| Some((Arc::clone(key), Arc::clone(labels.get(key)?)));
    keys.iter().filter_map(own).collect()
}

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
    near: &Near,
    weights: &BTreeMap<Spot, u32>,
) -> Option<Places> {
    let policy = effective_policy(view, cluster, &mut Origins::default());
    let balance = balance(view, &policy)?;
    let (here, unknown) = (&near.locality, Locality::default());
    let from = balance.distribute.iter().find(|(from, _)| *here != unknown && covers(from, here));
    if let Some((_, to)) = from {
        let shares = to.iter().flat_map(|(pattern, share)| {
            let inside: Vec<_> =
                weights.iter().filter(|(spot, _)| covers(pattern, &spot.locality)).collect();
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
    if !balance.priority.is_empty() {
        return Some(prioritized(weights, |spot| disagreement(&balance, near, spot)));
    }
    if *here == unknown {
        return None;
    }
    let next = balance.failover.iter().find(|(from, _)| *from == here.region).map(|(_, to)| to);
    Some(prioritized(weights, |spot| {
        let there = &spot.locality;
        match (here.region == there.region, here.zone == there.zone) {
            (true, true) if here.subzone == there.subzone => 0,
            (true, true) => 1,
            (true, false) => 2,
            (false, _) if next == Some(&there.region) => 3,
            (false, _) => 4,
        }
    }))
}

/// Priorities in the order of ranks.
fn prioritized(weights: &BTreeMap<Spot, u32>, rank: impl Fn(&Spot) -> usize) -> Places {
    let ranks: BTreeSet<usize> = weights.keys().map(&rank).collect();
    let priorities: BTreeMap<usize, u32> = ranks.into_iter().zip(0..).collect();
    let place = |spot: &Spot| Place { priority: priorities[&rank(spot)], share: None };
    weights.keys().map(|spot| (spot.clone(), place(spot))).collect()
}

/// How many labels are left from the first on in which an endpoint does not agree.
fn disagreement(balance: &LocalityBalance, near: &Near, spot: &Spot) -> usize {
    let none = Labels::new();
    let labels = spot.labels.as_deref().unwrap_or(&none);
    let agrees = |(key, value): &(Arc<str>, Option<Arc<str>>)| {
        let there = told(&spot.locality, labels, key);
        match value {
            Some(value) => there == Some(value),
            None => there == told(&near.locality, &near.labels, key),
        }
    };
    balance.priority.len() - balance.priority.iter().take_while(|asked| agrees(asked)).count()
}

/// The value of a label; those of places are told by the place.
fn told<'a>(place: &'a Locality, labels: &'a Labels, key: &str) -> Option<&'a Arc<str>> {
    let of_place = match key {
        "topology.kubernetes.io/region" => &place.region,
        "topology.kubernetes.io/zone" => &place.zone,
        "topology.istio.io/subzone" => &place.subzone,
        _ => return labels.get(key),
    };
    Some(of_place).filter(|part| !part.is_empty())
}

/// Whether a pattern such as `region/zone/*` covers a place; what it does not say is any.
fn covers(pattern: &str, place: &Locality) -> bool {
    let parts = [&place.region, &place.zone, &place.subzone];
    pattern == "*"
        || pattern.split('/').zip(parts).all(|(wanted, part)| wanted == "*" || *wanted == **part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// A spot of a rank; several have the same.
    fn spot(rank: usize, n: u8) -> Spot {
        let (region, zone) = (rank.to_string().into(), n.to_string().into());
        let locality = Locality { region, zone, ..Locality::default() };
        Spot { locality: Arc::new(locality), labels: None }
    }

    fn rank(spot: &Spot) -> usize {
        spot.locality.region.parse().unwrap_or_default()
    }

    fn spots() -> impl Strategy<Value = BTreeMap<Spot, u32>> {
        let spot = (0..5_usize, 0..4_u8).prop_map(|(rank, n)| spot(rank, n));
        proptest::collection::btree_map(spot, any::<u32>(), 0..12)
    }

    proptest! {
        #[test]
        fn r88_priorities_move_only_when_all_places_of_a_nearer_rank_come_or_go(
            before in spots(),
            after in spots(),
        ) {
            let ranks = |of: &BTreeMap<Spot, u32>| of.keys().map(rank).collect::<BTreeSet<_>>();
            let (old, new) = (ranks(&before), ranks(&after));
            let then = prioritized(&after, rank);
            for (spot, place) in prioritized(&before, rank) {
                let nearer: Vec<_> = old.range(..rank(&spot)).collect();
                prop_assert_eq!(place.priority as usize, nearer.len(), "no gaps");
                if let Some(moved) = then.get(&spot)
                    && new.range(..rank(&spot)).eq(nearer)
                {
                    prop_assert_eq!(moved.priority, place.priority, "{:?}", spot);
                }
            }
        }
    }
}
