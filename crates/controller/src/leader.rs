//! Which replica leads: it alone writes to the cluster.
//!
//! In: a Lease of the own namespace. Out: whether this replica holds it.
//!
//! What the leader writes is a function of what every replica knows, so two that both believe to
//! lead for a moment do no harm.
//!
//! **Invariant:** leads only while the last renewal went well; gives the lease up when it stops.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;

use crate::world::Shared;

/// Name of the Lease.
const LEASE: &str = "heddle-leader";
/// For how long a renewal holds, and how long before its end the next is due. Unit: seconds. A
/// leader that dies is replaced within the sum of the first and one.
const HOLDS: u64 = 10;
const EARLY: u64 = 4;
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Run until told to stop.
pub(crate) async fn run(
    client: Client,
    name: String,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    loop {
        let namespace = client.default_namespace().to_owned();
        let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(namespace)
            .with_identity(name.clone())
            .with_duration(HOLDS)
            .with_grace(EARLY)
            .build();
        let built = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => None,
            built = manager => Some(built),
        };
        match built {
            None => return Ok(()),
            Some(Ok(manager)) => {
                follow(&manager, &shared, &mut stopped).await;
                shared.leading.send_replace(false);
            }
            Some(Err(error)) => tracing::debug!("the lease {LEASE} cannot be had: {error}"),
        }
        if *stopped.borrow() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Follow the lease until something fails or this is told to stop.
async fn follow(manager: &LeaseManager, shared: &Shared, stopped: &mut watch::Receiver<bool>) {
    loop {
        let changed = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => None,
            changed = manager.changed() => Some(changed),
        };
        match changed {
            None => {
                // The next leader need not wait for the end of this one's time. An error leaves it
                // to do just that.
                let _ = tokio::time::timeout(PAUSE, manager.release()).await;
                return;
            }
            Some(Ok(leading)) => {
                tracing::info!(leading, "the leader changed");
                shared.leading.send_replace(leading);
            }
            Some(Err(error)) => {
                tracing::warn!("the lease {LEASE} cannot be renewed: {error}");
                return;
            }
        }
    }
}
