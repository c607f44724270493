//! What the mesh said when, and clients that judge each answer by it.
//!
//! In: states of the mesh with the backends that each allows. Out: how many answers there were, and
//! those that are not allowed.
//!
//! A state is valid for a proxy from its writing until half a second after the ACK of the next:
//! Envoy's workers swap after the ACK, on a busy machine not at once. A 404 needs a state without a route for the host; nothing allows a
//! 503, but this: a proxy by state of the world that comes back while something else is written says
//! what it listens to, not what its routes lead to. The new clusters are the whole set, and reach it
//! before the new routes can.
//!
//! **Invariant:** an answer is judged when it comes: a state that is written later cannot allow it.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use house::client::Client;
use house::world::Allowed;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Time between an ACK and the last answer of the state before.
pub(crate) const SWAP: Duration = Duration::from_millis(500);
/// Longer than any request takes.
const KEPT: Duration = Duration::from_secs(20);
/// Failures that are told in full.
const TOLD: usize = 5;

/// States of the mesh, the oldest first.
pub(crate) struct Journal {
    states: Mutex<VecDeque<State>>,
    stop: AtomicBool,
}

/// What the mesh said for some time.
struct State {
    /// The edit that made it.
    by: String,
    /// Whether connections ended while it was on its way.
    disturbed: bool,
    from: Instant,
    /// Until when, for each proxy.
    until: Vec<Option<Instant>>,
    allowed: Allowed,
}

/// What came back.
struct Seen {
    /// Number of the proxy.
    proxy: usize,
    host: String,
    began: Instant,
    ended: Instant,
    /// How it is answered when the mesh has no route.
    absent: &'static str,
    /// Whether the proxy is served by state of the world.
    whole: bool,
    /// Backend, or what there was instead.
    outcome: Result<String, String>,
}

/// A proxy, as its clients know it.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) address: SocketAddr,
    /// How it answers for a host that has no route.
    pub(crate) absent: &'static str,
    /// Whether it is served by state of the world.
    pub(crate) whole: bool,
}

/// What is to be said of an answer.
enum Verdict {
    Allowed,
    /// A 503 while a proxy that came back goes from one state to the next.
    Between,
    /// Why it is not allowed.
    Refused(String),
}

/// What a client saw.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// 503 that are allowed to proxies that came back.
    pub(crate) between: u64,
    /// The first failures.
    pub(crate) told: Vec<String>,
}

// === impl Journal ===

impl Journal {
    /// A mesh that says this to so many proxies.
    pub(crate) fn new(allowed: Allowed, proxies: usize) -> Self {
        let states = VecDeque::from([State::new("start".to_owned(), false, allowed, proxies)]);
        Self { states: Mutex::new(states), stop: AtomicBool::new(false) }
    }

    /// What the mesh says from now on. `disturbed`: connections end before all proxies know.
    pub(crate) fn write(&self, by: String, disturbed: bool, allowed: Allowed) {
        let mut states = self.states();
        let proxies = states.back().map_or(0, |state| state.until.len());
        states.push_back(State::new(by, disturbed, allowed, proxies));
        while states.front().is_some_and(|state| state.is_over(KEPT)) {
            states.pop_front();
        }
    }

    /// A proxy has what was written last.
    pub(crate) fn settled(&self, proxy: usize) {
        let until = Instant::now() + SWAP;
        for state in self.states().iter_mut().rev().skip(1) {
            if state.until[proxy].is_some() {
                break;
            }
            state.until[proxy] = Some(until);
        }
    }

    /// Every backend that was allowed within the last second: requests that were on their way have
    /// ended.
    pub(crate) fn recent_backends(&self) -> BTreeSet<String> {
        let states = self.states();
        let recent = states.iter().filter(|state| !state.is_over(Duration::from_secs(1)));
        recent.flat_map(|state| state.allowed.values().flatten().cloned()).collect()
    }

    /// Tell the clients to stop.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// A host of the last states: one that is new, that stays, or that just went.
    fn host(&self, rng: &mut StdRng) -> Option<String> {
        let states = self.states();
        states.iter().rev().take(3).flat_map(|state| state.allowed.keys()).choose(rng).cloned()
    }

    fn states(&self) -> MutexGuard<'_, VecDeque<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn new(by: String, disturbed: bool, allowed: Allowed, proxies: usize) -> Self {
        Self { by, disturbed, from: Instant::now(), until: vec![None; proxies], allowed }
    }

    /// Whether it has ended for every proxy, and that long ago.
    fn is_over(&self, ago: Duration) -> bool {
        self.until.iter().all(|until| until.is_some_and(|until| until.elapsed() > ago))
    }
}

/// Ask a proxy for one host after another until the journal says stop. `pause`: the longest between
/// two requests.
pub(crate) async fn send(
    journal: Arc<Journal>,
    number: usize,
    proxy: Asked,
    pause: Duration,
    seed: u64,
) -> Tally {
    let mut rng = StdRng::seed_from_u64(seed);
    let Asked { address, absent, whole } = proxy;
    let mut client = Client::new(address);
    let mut tally = Tally::default();
    while !journal.stop.load(Ordering::Relaxed) {
        // Some requests open a connection, which may be to another worker.
        if rng.random_range(0..20) == 0 {
            client = Client::new(address);
        }
        let Some(host) = journal.host(&mut rng) else { continue };
        let began = Instant::now();
        let outcome = match client.get(&host, "/").await {
            Ok(answer) => match (answer.status.as_u16(), answer.backend) {
                (200, Some(backend)) => Ok(backend),
                (status, _) => Err(format!("{status} {}", String::from_utf8_lossy(&answer.body))),
            },
            Err(error) => Err(format!("{error:#}")),
        };
        let ended = Instant::now();
        let seen = Seen { proxy: number, host, began, ended, absent, whole, outcome };
        tally.requests += 1;
        match judge(&seen, &journal.states()) {
            Verdict::Allowed => {}
            Verdict::Between => tally.between += 1,
            Verdict::Refused(why) => {
                tally.failed += 1;
                if tally.told.len() < TOLD {
                    tally.told.push(why);
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(rng.random())).await;
    }
    tally
}

/// Whether an answer is allowed.
fn judge(seen: &Seen, states: &VecDeque<State>) -> Verdict {
    let Seen { proxy, host, began, ended, absent, whole, outcome } = seen;
    let valid = states.iter().filter(|state| {
        state.from <= *ended && state.until[*proxy].is_none_or(|until| until >= *began)
    });
    let valid: Vec<&State> = valid.collect();
    let allowed = valid.iter().any(|state| match (state.allowed.get(host), outcome) {
        (Some(backends), Ok(backend)) => backends.contains(backend),
        (None, Err(text)) => text.starts_with(absent),
        (Some(_), Err(_)) | (None, Ok(_)) => false,
    });
    if allowed {
        return Verdict::Allowed;
    }
    // One whose predecessor is valid too is on its way.
    let disturbed = valid.iter().skip(1).any(|state| state.disturbed);
    let unavailable = outcome.as_ref().is_err_and(|text| text.starts_with("503"));
    if *whole && disturbed && unavailable {
        return Verdict::Between;
    }
    let since = |state: &State| {
        format!(
            "{}, {:?} before the answer: {:?}",
            state.by,
            *ended - state.from,
            state.allowed.get(host)
        )
    };
    let states: Vec<String> = valid.into_iter().map(since).collect();
    let states = states.join("\n    ");
    Verdict::Refused(format!("proxy {proxy}, {host}: {outcome:?}; valid were\n    {states}"))
}

mod tests {
    //! The judge itself, on answers made up.

    use super::*;

    fn state(from: Instant, until: Option<Instant>, backend: Option<&str>) -> State {
        let backends = |name: &str| BTreeSet::from([name.to_owned()]);
        let allowed = backend.map(|name| ("a".to_owned(), backends(name))).into_iter().collect();
        State { from, until: vec![until], ..State::new("test".to_owned(), false, allowed, 1) }
    }

    fn seen(outcome: Result<&str, &str>, at: Instant) -> Seen {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        let host = "a".to_owned();
        Seen { proxy: 0, host, began: at, ended: at, absent: "404", whole: false, outcome }
    }

    fn refused(outcome: Result<&str, &str>, at: Instant, states: &VecDeque<State>) -> bool {
        matches!(judge(&seen(outcome, at), states), Verdict::Refused(_))
    }

    #[test]
    fn given_two_states_then_an_answer_of_the_first_is_allowed_only_while_it_is_valid() {
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        let states =
            [state(start, Some(at(20)), Some("one")), state(at(10), None, Some("two"))].into();
        assert!(!refused(Ok("one"), at(5), &states));
        assert!(refused(Ok("two"), at(5), &states));
        assert!(!refused(Ok("one"), at(15), &states) && !refused(Ok("two"), at(15), &states));
        assert!(refused(Ok("one"), at(25), &states));
    }

    #[test]
    fn given_a_route_then_404_is_refused_and_503_always_is() {
        let now = Instant::now();
        let with = [state(now, None, Some("one"))].into();
        let without = [state(now, None, None)].into();
        assert!(refused(Err("404 "), now, &with) && !refused(Err("404 "), now, &without));
        assert!(refused(Err("503 "), now, &with) && refused(Err("503 "), now, &without));
        assert!(refused(Ok("one"), now, &without));
    }

    #[test]
    fn given_a_disturbed_edit_then_only_a_proxy_by_state_of_the_world_may_answer_503_meanwhile() {
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        let first = state(start, Some(at(20)), Some("one"));
        let second = State { disturbed: true, ..state(at(10), None, Some("two")) };
        let states = [first, second].into();
        for (seconds, whole, between) in
            [(15, true, true), (15, false, false), (5, true, false), (25, true, false)]
        {
            let seen = Seen { whole, ..seen(Err("503 "), at(seconds)) };
            assert_eq!(matches!(judge(&seen, &states), Verdict::Between), between, "{seconds} s");
        }
    }
}
