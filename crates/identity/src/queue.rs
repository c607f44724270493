//! Work for the processor, on threads of its own.
//!
//! In: jobs, each on behalf of an identity. Out: their results.
//!
//! Identities take turns: who asks for thousands waits behind its own, not before others.
//!
//! **Invariant:** runs nothing on the threads that serve streams; what waits is bounded, in total
//! and by identity.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::spiffe::SpiffeId;

/// Jobs of one identity that may wait: a node that starts hundreds of one Deployment's pods.
const OF_ONE: usize = 512;
/// Jobs that may wait in total.
const OF_ALL: usize = 8192;

type Job = Box<dyn FnOnce() + Send>;

/// Too much waits already; the caller should try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are waiting; try again")]
pub struct Busy;

/// The queue; its threads end when it is dropped.
pub struct SigningQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: HashMap<SpiffeId, VecDeque<Job>>,
    /// Identities that have something waiting; the first is next.
    turns: VecDeque<SpiffeId>,
    total: usize,
    closed: bool,
}

// === impl SigningQueue ===

impl SigningQueue {
    /// A queue with half of the processors, and at least one.
    pub fn new() -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((processors / 2).max(1))
    }

    fn with_threads(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() });
        let queue = Self(shared);
        for number in 0..threads {
            let shared = Arc::clone(&queue.0);
            let thread = std::thread::Builder::new().name(format!("signing-{number}"));
            thread.spawn(move || shared.work())?;
        }
        Ok(queue)
    }

    /// Run a job when it is the identity's turn. A job whose caller is gone is left out.
    pub async fn run<T: Send + 'static>(
        &self,
        id: &SpiffeId,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (sender, result) = oneshot::channel();
        let job = move || {
            if !sender.is_closed() {
                // Nobody waits any more when this fails.
                let _ = sender.send(job());
            }
        };
        self.0.state().add(id, Box::new(job))?;
        self.0.wake.notify_one();
        // A job that is dropped was dropped because the queue ended.
        result.await.map_err(|_| Busy)
    }
}

impl Drop for SigningQueue {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.wake.notify_all();
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            match state.next() {
                Some(job) => {
                    drop(state);
                    job();
                    state = self.state();
                }
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

// === impl State ===

impl State {
    fn add(&mut self, id: &SpiffeId, job: Job) -> Result<(), Busy> {
        if self.total >= OF_ALL {
            return Err(Busy);
        }
        match self.waiting.get_mut(id) {
            Some(own) if own.len() >= OF_ONE => return Err(Busy),
            Some(own) => own.push_back(job),
            None => {
                self.waiting.insert(id.clone(), VecDeque::from([job]));
                self.turns.push_back(id.clone());
            }
        }
        self.total += 1;
        Ok(())
    }

    fn next(&mut self) -> Option<Job> {
        let id = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&id)?;
        let job = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&id);
        } else {
            self.turns.push_back(id);
        }
        self.total -= 1;
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn id(account: &str) -> SpiffeId {
        format!("spiffe://td/ns/a/sa/{account}").parse().expect("valid")
    }

    fn noted(log: &Arc<Mutex<Vec<String>>>, what: String) -> Job {
        let log = Arc::clone(log);
        Box::new(move || log.lock().expect("no panic").push(what))
    }

    #[test]
    fn identities_take_turns_however_much_one_of_them_asks_for() {
        let log = Arc::default();
        let mut state = State::default();
        for n in 0..5 {
            state.add(&id("greedy"), noted(&log, format!("greedy {n}"))).expect("room");
        }
        state.add(&id("modest"), noted(&log, "modest 0".to_owned())).expect("room");
        while let Some(job) = state.next() {
            job();
        }
        let log = log.lock().expect("no panic").clone();
        assert_eq!(log[..3], ["greedy 0", "modest 0", "greedy 1"]);
        assert_eq!((log.len(), state.total), (6, 0));
        assert!(state.waiting.is_empty() && state.turns.is_empty());
    }

    #[test]
    fn what_waits_is_bounded_by_identity_and_in_total() {
        let mut state = State::default();
        for _ in 0..OF_ONE {
            state.add(&id("greedy"), Box::new(|| ())).expect("room");
        }
        assert_eq!(state.add(&id("greedy"), Box::new(|| ())), Err(Busy));
        assert_eq!(state.add(&id("modest"), Box::new(|| ())), Ok(()));
        let added = (0..OF_ALL)
            .filter(|n| state.add(&id(&format!("n{n}")), Box::new(|| ())).is_ok())
            .count();
        assert_eq!(added, OF_ALL - OF_ONE - 1);
    }

    #[tokio::test]
    async fn a_job_runs_on_a_thread_of_the_queue() {
        let queue = SigningQueue::new().expect("threads");
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        let ran = queue.run(&id("a"), name).await.expect("ran");
        assert!(ran.starts_with("signing-"), "{ran}");
    }

    #[tokio::test]
    async fn a_caller_that_left_is_not_worked_for() {
        let queue = Arc::new(SigningQueue::with_threads(1).expect("a thread"));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let run = |account: &str, job: Job| {
            let (queue, id) = (Arc::clone(&queue), id(account));
            tokio::spawn(async move { queue.run(&id, job).await })
        };
        let (begin, begun) = oneshot::channel();
        let first = run(
            "a",
            Box::new(move || {
                begin.send(()).expect("waited for");
                wait.recv().expect("told to go on");
            }),
        );
        begun.await.expect("the only thread is busy");
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let gone = run(
            "b",
            Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        );
        while queue.0.state().total < 1 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.is_err());
        go.send(()).expect("waited for");
        first.await.expect("no panic").expect("ran");
        queue.run(&id("c"), || ()).await.expect("ran");
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
