//! Proves that a connection is captured.
//!
//! In: rules that were applied. Out: nothing, or what was not captured.
//!
//! A connection goes to an address that nobody has, as one of the workload would; it must come to
//! the port of the proxy, which must not run yet. What comes in cannot be sent from within: that
//! its rules are there is left to the one step in which all of them were applied.
//!
//! Rules that capture nothing that leaves have nothing to be proved.
//!
//! **Invariant:** sends to no machine that there is, and waits a bounded time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::rules::{OUTBOUND, Rules};

/// Time for a connection to be made, and to be seen.
const PATIENCE: Duration = Duration::from_secs(2);
/// What goes through it.
const SAID: &[u8] = b"heddle-agent init --check";

/// Check both families.
pub(super) fn run(rules: &Rules) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if own == rules.user || rustix::process::getegid().as_raw() == rules.group {
        bail!("--check cannot be made as the proxy's own user or group: those are not captured");
    }
    let targets: Vec<_> = [false, true].into_iter().filter_map(|v6| rules.captured(v6)).collect();
    let mut proved = targets.is_empty();
    for address in targets {
        proved |= family(address).with_context(|| format!("--check: connecting to {address}"))?;
    }
    if !proved {
        bail!("--check: there is no route by which a connection could leave");
    }
    Ok(())
}

/// Whether a connection of this family is captured; false: there is no way that it could go.
fn family(to: SocketAddr) -> Result<bool> {
    let loopback: IpAddr =
        if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let listener = match TcpListener::bind((loopback, OUTBOUND)) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => return Ok(false),
        listener => listener.context("opening the port of the proxy, which must not run yet")?,
    };
    listener.set_nonblocking(true)?;
    let mut connection = match TcpStream::connect_timeout(&to, PATIENCE) {
        // No route: nothing leaves at all.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable
            ) =>
        {
            return Ok(false);
        }
        connection => connection.context("it is not captured")?,
    };
    connection.write_all(SAID).context("it is not captured")?;
    let deadline = Instant::now() + PATIENCE;
    let mut seen = loop {
        match listener.accept() {
            Ok((seen, _)) => break seen,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => bail!("it is not captured: somebody else has answered"),
        }
    };
    seen.set_nonblocking(false)?;
    seen.set_read_timeout(Some(PATIENCE))?;
    let mut heard = vec![0; SAID.len()];
    seen.read_exact(&mut heard).context("reading what was captured")?;
    if heard != SAID {
        bail!("another connection was captured");
    }
    tracing::debug!("captured {to}");
    Ok(true)
}
