//! Requests without pause, while something happens.
//!
//! **Invariant:** every answer is counted; only a 200 is no failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use house::client::Client;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 4;
pub(crate) const HOST: &str = "reviews.example.com";

/// Clients that send until they are stopped.
pub(crate) struct Traffic {
    clients: JoinSet<()>,
    seen: Arc<Seen>,
}

/// What they saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    total: AtomicU64,
    counts: Mutex<Counts>,
}

/// What came back since this was last asked.
#[derive(Default, Debug, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Answers by what they said.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Failures, and what the first was.
    failed: u64,
    first: Option<String>,
}

// === impl Traffic ===

impl Traffic {
    pub(crate) fn start(gateway: SocketAddr) -> Self {
        Self::of(gateway, HOST)
    }

    /// Requests for this host at this address.
    pub(crate) fn of(address: SocketAddr, host: &'static str) -> Self {
        let seen = Arc::new(Seen::default());
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let seen = Arc::clone(&seen);
            clients.spawn(async move {
                let mut client = Client::new(address);
                while !seen.stop.load(Ordering::Relaxed) {
                    let answer = ask_for(&mut client, host).await;
                    seen.lock().add(answer);
                    seen.total.fetch_add(1, Ordering::Relaxed);
                    // Two cores are shared with the cluster.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        Self { clients, seen }
    }

    /// What came back since this was last asked.
    pub(crate) fn take(&self) -> Counts {
        std::mem::take(&mut *self.seen.lock())
    }

    /// Stop; what came back since the last look.
    pub(crate) async fn end(&mut self) -> Result<Counts> {
        self.seen.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended?;
        }
        Ok(self.take())
    }

    /// Stop, and fail if any request since the last look has. How many there were.
    pub(crate) async fn stop(mut self) -> Result<u64> {
        self.end().await?.good()?;
        let total = self.seen.total.load(Ordering::Relaxed);
        ensure!(total > 0, "there were no requests");
        Ok(total)
    }
}

// === impl Seen ===

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Counts ===

impl Counts {
    fn add(&mut self, answer: Result<String>) {
        match answer {
            Ok(text) => *self.answers.entry(text).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                self.first.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    /// How many said this.
    pub(crate) fn of(&self, text: &str) -> u64 {
        self.answers.get(text).copied().unwrap_or_default()
    }

    /// How many were answered, if none failed.
    pub(crate) fn good(&self) -> Result<u64> {
        let total = self.answers.values().sum::<u64>();
        let first = self.first.as_deref().unwrap_or_default();
        ensure!(
            self.failed == 0,
            "{} of {} requests failed: {first}",
            self.failed,
            total + self.failed
        );
        Ok(total)
    }
}

/// One request; what the app said.
pub(crate) async fn ask(client: &mut Client) -> Result<String> {
    ask_for(client, HOST).await
}

/// One request for this host; the name of the backend, or what the app said.
async fn ask_for(client: &mut Client, host: &str) -> Result<String> {
    let answer = client.get(host, "/").await?;
    let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
    ensure!(answer.status == 200, "{}: {text}", answer.status);
    Ok(answer.backend.unwrap_or(text))
}
