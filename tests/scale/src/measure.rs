//! What is made of what a fleet saw.
//!
//! In: changes with their times, what proxies saw and when. Out: staleness, losses, and whether
//! proxies hold in the end what the world says.
//!
//! **Invariant:** a change that a proxy never saw counts as lost, whatever it was that it saw.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use envoy_api::ResourceType;
use house::statistics::percentile;
use xxhash_rust::xxh3::xxh3_64;

use crate::fleet::{Fleet, Report, Seen};
use crate::known::{Known, TYPES};
use crate::proxy::Proxy;
use crate::world::{Change, Subject, World};

/// A change and when it was begun.
pub(crate) type Issued = (Change, Instant);

/// How late proxies saw changes.
#[derive(Debug, Default)]
pub(crate) struct Staleness {
    /// Of each change at each proxy that saw it, or something newer of the same subject.
    pub(crate) each: Vec<Duration>,
    /// Of each change, until the last proxy saw it.
    pub(crate) all: Vec<Duration>,
    /// Pairs of a change and a proxy that never saw it.
    pub(crate) lost: usize,
}

/// The last step of each subject that changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps(BTreeMap<Subject, u32>);

// === impl Staleness ===

impl Staleness {
    /// Of these changes, at the proxies that `counts` picks of `proxies`.
    pub(crate) fn of(
        issued: &[Issued],
        seen: &[Seen],
        proxies: u32,
        counts: impl Fn(u32) -> bool,
    ) -> Self {
        let mut subjects: HashMap<Subject, Vec<(u32, Instant, usize)>> = HashMap::new();
        for (at, (change, begun)) in issued.iter().enumerate() {
            subjects.entry(change.subject).or_default().push((change.step, *begun, at));
        }
        let mut out = Self { all: vec![Duration::ZERO; issued.len()], ..Self::default() };
        // How many of the changes of a subject a proxy has seen.
        let mut states: HashMap<(u32, Subject), usize, foldhash::fast::FixedState> =
            HashMap::default();
        for Seen { proxy, change, at } in seen.iter().filter(|seen| counts(seen.proxy)) {
            let Some(changes) = subjects.get(&change.subject) else { continue };
            let next = states.entry((*proxy, change.subject)).or_default();
            while let Some((step, begun, number)) = changes.get(*next)
                && *step <= change.step
            {
                let late = at.saturating_duration_since(*begun);
                out.each.push(late);
                out.all[*number] = out.all[*number].max(late);
                *next += 1;
            }
        }
        let expected = issued.len() * (0..proxies).filter(|proxy| counts(*proxy)).count();
        out.lost = expected - out.each.len();
        out
    }

    /// A percentile; none if changes were lost.
    pub(crate) fn percentile(&mut self, percent: usize) -> Option<Duration> {
        (self.lost == 0).then(|| percentile(&mut self.each, percent))
    }
}

// === impl Steps ===

impl Steps {
    pub(crate) fn note(&mut self, change: Change) {
        self.0.insert(change.subject, change.step);
    }

    /// Fail unless every proxy holds this world after these steps, and none was sent anything that
    /// an Envoy would refuse.
    pub(crate) fn verify(&self, fleet: &Fleet, world: World, report: &Report) -> Result<()> {
        let faults = &report.tally.faults;
        ensure!(
            faults.is_empty(),
            "an Envoy would have refused {} responses: {}",
            faults.len(),
            faults[0]
        );
        let mut expected: BTreeMap<Subject, u32> =
            world.first().map(|change| (change.subject, change.step)).collect();
        expected.extend(&self.0);
        let differences = fleet.look(move |proxies, known| {
            let mut good: HashMap<u64, ()> = HashMap::new();
            let mut differences = Vec::new();
            for (number, proxy) in proxies.iter().enumerate() {
                let digest = digest(proxy, known);
                if good.contains_key(&digest) {
                    continue;
                }
                match difference(proxy, known, world, number as u32, &expected) {
                    None => drop(good.insert(digest, ())),
                    Some(difference) => differences.push(format!("proxy {number}: {difference}")),
                }
            }
            differences
        })?;
        let first = differences.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        ensure!(differences.is_empty(), "{} final states differ: {first}", differences.len());
        Ok(())
    }
}

/// A number for all endpoints and hosts that a proxy holds.
fn digest(proxy: &Proxy, known: &Known) -> u64 {
    let kinds = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::VirtualHost];
    let contents = kinds.iter().flat_map(|kind| proxy.holds(*kind)).map(|id| known.content(id));
    let shared = contents.filter(|c| !known.name(c.kind, c.name).starts_with("inbound"));
    shared.fold(0, |sum, content| {
        let name = known.name(content.kind, content.name);
        sum.wrapping_add(content.hash ^ xxh3_64(name.as_bytes()))
    })
}

/// What a proxy holds otherwise than it should.
fn difference(
    proxy: &Proxy,
    known: &Known,
    world: World,
    number: u32,
    expected: &BTreeMap<Subject, u32>,
) -> Option<String> {
    let visible = |service: u32| world.is_visible(service, number);
    for service in (0..world.services).filter(|service| visible(*service)) {
        let name = World::cluster(service);
        let find = |kind| known.find(kind, &name).and_then(|id| proxy.held(kind, id));
        if find(ResourceType::Cluster).is_none() {
            return Some(format!("no cluster {name}"));
        }
        let Some(id) = find(ResourceType::Endpoints) else {
            return Some(format!("no endpoints {name}"));
        };
        let content = known.content(id);
        if content.endpoints != world.endpoints_of(service) {
            return Some(format!("{name} has {} endpoints, or others", content.endpoints.0));
        }
        let step = expected.get(&Subject::Endpoint(service));
        let shown = content.changes.first().map(|change| change.step);
        if shown != step.copied() {
            return Some(format!("{name} shows change {shown:?}, not {step:?}"));
        }
    }
    let kinds = [ResourceType::RouteConfiguration, ResourceType::VirtualHost];
    let hosts = kinds.iter().flat_map(|kind| proxy.holds(*kind));
    let mut splits: BTreeMap<u32, u32> = BTreeMap::new();
    for change in hosts.flat_map(|id| &known.content(id).changes) {
        let Subject::Weight(service) = change.subject else { continue };
        let step = expected.get(&change.subject);
        if Some(&change.step) != step {
            return Some(format!("service {service} has weight {}, not {step:?}", change.step));
        }
        splits.insert(service, change.step);
    }
    let wanted = world.split().filter(|service| visible(*service));
    wanted
        .filter(|service| !splits.contains_key(service))
        .map(|s| format!("no split of {s}"))
        .next()
}

/// Types by their names, with messages and resources of a report.
pub(crate) fn by_type(report: &Report) -> String {
    let names = TYPES.iter().map(|kind| kind.short_name());
    let counts = report.tally.messages.iter().zip(&report.tally.resources);
    let parts = names.zip(counts).map(|(name, (m, r))| format!("{name} {m}/{r}"));
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_state_stands_for_what_was_left_out_and_a_lost_change_is_noticed() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let change = |step| Change { subject: Subject::Endpoint(3), step };
        let issued = [(change(1), at(0)), (change(2), at(10)), (change(3), at(20))];
        let seen = |proxy, step, ms| Seen { proxy, change: change(step), at: at(ms) };
        let events = [seen(0, 1, 5), seen(1, 2, 15), seen(0, 3, 25)];
        let stale = Staleness::of(&issued, &events, 2, |_| true);
        assert_eq!(stale.lost, 1, "the second proxy never saw the third change");
        let ms: Vec<_> = stale.each.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [5, 15, 5, 15, 5]);
        assert_eq!(stale.all[0], Duration::from_millis(15));
        let mut healthy = Staleness::of(&issued, &events, 2, |proxy| proxy == 0);
        assert_eq!(healthy.percentile(100), Some(Duration::from_millis(15)));
    }
}
