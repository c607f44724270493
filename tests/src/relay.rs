//! A way from one proxy to the replicas of a controller, which can be cut.
//!
//! In: connections of the proxy; where the replicas are. Out: each connection goes to the next
//! replica in turn that takes it; what came back is counted.
//!
//! **Invariant:** bytes pass as they are; a connection ends when either side ends it or when it is
//! cut, and then at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The replicas that take connections, shared by relays.
#[derive(Clone, Debug, Default)]
pub struct Targets(Arc<Mutex<Vec<SocketAddr>>>);

/// A relay, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where the proxy connects.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What a relay has carried since it was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    /// Connections that reached a replica.
    pub connections: u64,
    /// Those of them that have not ended.
    pub open: u64,
    /// How often all were cut.
    cuts: u64,
    /// Bytes from replicas to the proxy.
    pub bytes: u64,
    /// When the last connection reached a replica.
    pub last: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    targets: Targets,
    turn: AtomicU64,
    carried: Mutex<Carried>,
    /// Bytes to the proxy that are left before a cut.
    left: Mutex<Option<usize>>,
    cuts: watch::Sender<()>,
}

// === impl Targets ===

impl Targets {
    /// New connections go to these from now on.
    pub fn set(&self, targets: Vec<SocketAddr>) {
        *lock(&self.0) = targets;
    }
}

// === impl Relay ===

impl Relay {
    /// A relay on a free port of this address.
    pub async fn start(address: IpAddr, targets: &Targets) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await.context("a relay cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { targets: targets.clone(), ..Shared::default() });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// End every connection.
    pub fn cut(&self) {
        let mut carried = lock(&self.shared.carried);
        carried.cuts += 1;
        carried.open = 0;
        self.shared.cuts.send_replace(());
    }

    /// End the connection that brings the proxy this many bytes more, wherever that is in a message;
    /// none: no longer.
    pub fn cut_after(&self, bytes: Option<usize>) {
        *lock(&self.shared.left) = bytes;
    }

    /// What it has carried.
    pub fn carried(&self) -> Carried {
        *lock(&self.shared.carried)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this future, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((proxy, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let mut cuts = shared.cuts.subscribe();
            if let Some((replica, before)) = shared.connect().await {
                // However it ends, both sides are told.
                let _ = tokio::select! {
                    ended = shared.carry(proxy, replica) => ended,
                    _ = cuts.changed() => Ok(()),
                };
                let mut carried = lock(&shared.carried);
                carried.open -= u64::from(carried.cuts == before);
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

// === impl Shared ===

impl Shared {
    /// A connection to the next replica that takes one, and how often all were cut before.
    async fn connect(&self) -> Option<(TcpStream, u64)> {
        let mut targets = lock(&self.targets.0).clone();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let first = turn.checked_rem(targets.len())?;
        targets.rotate_left(first);
        for target in targets {
            if let Ok(stream) = TcpStream::connect(target).await {
                let mut carried = lock(&self.carried);
                carried.connections += 1;
                carried.open += 1;
                carried.last = Some(Instant::now());
                return Some((stream, carried.cuts));
            }
        }
        None
    }

    /// Carry bytes both ways until one side ends.
    async fn carry(&self, proxy: TcpStream, replica: TcpStream) -> std::io::Result<()> {
        for stream in [&proxy, &replica] {
            stream.set_nodelay(true)?;
            // Bytes that are on their way are lost when it is cut, as they are with a machine.
            stream.set_zero_linger()?;
        }
        let (mut from_proxy, mut to_proxy) = proxy.into_split();
        let (mut from_replica, mut to_replica) = replica.into_split();
        let back = async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                let count = from_replica.read(&mut buffer).await?;
                let (passed, cut) = self.pass(count);
                to_proxy.write_all(&buffer[..passed]).await?;
                if count == 0 || cut {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = back => ended,
            ended = tokio::io::copy(&mut from_proxy, &mut to_replica) => ended.map(|_| ()),
        }
    }

    /// How many of some bytes go on to the proxy, and whether the connection ends after them.
    fn pass(&self, count: usize) -> (usize, bool) {
        let mut left = lock(&self.left);
        let passed = left.map_or(count, |left| left.min(count));
        let cut = *left == Some(passed);
        *left = left.map(|left| left - passed).filter(|_| !cut);
        lock(&self.carried).bytes += passed as u64;
        (passed, cut)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// A replica that says its number and then its whole life long the same.
    async fn replica(says: u8) -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move { while stream.write_all(&[says; 64]).await.is_ok() {} });
            }
        });
        Ok(address)
    }

    #[tokio::test]
    async fn each_connection_goes_to_the_next_replica_and_ends_where_it_is_cut() -> Result<()> {
        let targets = Targets::default();
        targets.set(vec![replica(1).await?, replica(2).await?]);
        let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), &targets).await?;
        let mut seen = Vec::new();
        for bytes in [1, 100, 1000] {
            relay.cut_after(Some(bytes));
            let before = relay.carried().bytes;
            let mut heard = Vec::new();
            let mut stream = TcpStream::connect(relay.address).await?;
            // A connection that is cut may take back what was not read yet.
            let _reset = stream.read_to_end(&mut heard).await;
            assert_eq!(relay.carried().bytes - before, bytes as u64);
            seen.extend(heard.first().copied());
        }
        assert!(seen.is_sorted_by(|a, b| a != b), "{seen:?}");
        assert_eq!(relay.carried().connections, 3);
        let mut stream = TcpStream::connect(relay.address).await?;
        stream.read_u8().await?;
        assert_eq!(relay.carried().open, 1);
        relay.cut();
        assert_eq!(relay.carried().open, 0);
        let mut rest = Vec::new();
        let _reset = stream.read_to_end(&mut rest).await;
        Ok(())
    }
}
