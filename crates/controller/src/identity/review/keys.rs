//! The public keys by which a cluster signs its tokens, to tell forged ones cheaply.
//!
//! In: a token. Out: whether it may be real.
//!
//! **Invariant:** a good signature lets nobody in, it only has the API server asked; where the keys
//! are not known every token may be real.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use identity::jwt::{Signature, Signatures};
use kube::Client;
use tokio::time::{Instant, timeout};

/// Where an API server has them; every ServiceAccount may read it.
const PATH: &str = "/openid/v1/jwks";
/// Shortest time between two readings: keys change rarely, and strangers can name any key.
const PAUSE: Duration = Duration::from_secs(10);
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys.
pub(super) struct Keys {
    client: Client,
    known: ArcSwapOption<Signatures>,
    read: Mutex<Option<Instant>>,
}

// === impl Keys ===

impl Keys {
    /// Those of the cluster that this is a client of.
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: ArcSwapOption::empty(), read: Mutex::default() }
    }

    /// Whether a token may be of this cluster.
    pub(super) async fn may_be_real(&self, token: &str) -> bool {
        let verdict = self.verdict(token);
        let new = matches!(verdict, None | Some(Signature::UnknownKey));
        if new && self.is_due() {
            self.refresh().await;
        }
        let verdict = if new { self.verdict(token) } else { verdict };
        matches!(verdict, None | Some(Signature::Good))
    }

    fn verdict(&self, token: &str) -> Option<Signature> {
        self.known.load().as_ref().map(|known| known.check(token))
    }

    /// Whether to read them now; whoever is told so does it.
    fn is_due(&self) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let due = read.is_none_or(|read| read.elapsed() >= PAUSE);
        if due {
            *read = Some(Instant::now());
        }
        due
    }

    async fn refresh(&self) {
        let Ok(request) = http::Request::get(PATH).body(Vec::new()) else { return };
        let text = match timeout(PATIENCE, self.client.request_text(request)).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return tracing::debug!("the cluster's keys cannot be read: {error}"),
            Err(_) => return tracing::debug!("the cluster's keys were not read in {PATIENCE:?}"),
        };
        match Signatures::new(text.as_bytes()) {
            Ok(keys) => self.known.store(Some(Arc::new(keys))),
            // Not all are known, so none is.
            Err(error) => {
                tracing::debug!("{error}");
                self.known.store(None);
            }
        }
    }
}
