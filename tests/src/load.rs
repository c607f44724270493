//! Requests without pause, while something happens.
//!
//! In: where to, which host, what must come back. Out: what came back, by what it said.
//!
//! **Invariant:** every answer is counted; another status than is expected is a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::client::Client;

const CONNECTIONS: usize = 4;

/// Clients that send until they are stopped; those of a guard that is dropped stop too.
#[derive(Debug)]
pub struct Traffic {
    clients: JoinSet<()>,
    seen: Arc<Seen>,
}

/// What they saw.
#[derive(Default, Debug)]
struct Seen {
    stop: AtomicBool,
    total: AtomicU64,
    counts: Mutex<Counts>,
}

/// What came back since this was last asked.
#[derive(Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Answers by what they said.
    pub answers: BTreeMap<String, u64>,
    /// Failures, and what the first was.
    failed: u64,
    first: Option<String>,
}

// === impl Traffic ===

impl Traffic {
    /// Requests for this host at this address.
    pub fn start(address: SocketAddr, host: &str) -> Self {
        Self::expecting(address, host, StatusCode::OK)
    }

    /// The same, and every answer must have this status.
    pub fn expecting(address: SocketAddr, host: &str, status: StatusCode) -> Self {
        let seen = Arc::new(Seen::default());
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (seen, host) = (Arc::clone(&seen), host.to_owned());
            clients.spawn(async move {
                let mut client = Client::new(address);
                while !seen.stop.load(Ordering::Relaxed) {
                    let answer = ask_for(&mut client, &host, status).await;
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
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.seen.lock())
    }

    /// Stop; what came back since the last look.
    pub async fn end(&mut self) -> Result<Counts> {
        self.seen.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended?;
        }
        Ok(self.take())
    }

    /// Stop, and fail if any request since the last look has. How many there were.
    pub async fn stop(mut self) -> Result<u64> {
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
    pub fn of(&self, text: &str) -> u64 {
        self.answers.get(text).copied().unwrap_or_default()
    }

    /// How many were answered, if none failed.
    pub fn good(&self) -> Result<u64> {
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

/// One request; the name of the backend, or what the app said.
pub async fn ask(client: &mut Client, host: &str) -> Result<String> {
    ask_for(client, host, StatusCode::OK).await
}

async fn ask_for(client: &mut Client, host: &str, status: StatusCode) -> Result<String> {
    let answer = client.get(host, "/").await?;
    let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
    ensure!(answer.status == status, "{}: {text}", answer.status);
    Ok(answer.backend.unwrap_or(text))
}
