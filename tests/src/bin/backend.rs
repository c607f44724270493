//! `backend ADDRESS:PORT NAME [http|echo|first]`: a server that says who it is and what it was asked.
//!
//! In: where to listen, what to call itself, what to speak. Out: a JSON line per HTTP request.
//!
//! **Invariant:** ends on SIGTERM and SIGINT with exit code 0.

#![allow(clippy::print_stdout, reason = "a tool")]

use anyhow::{Context as _, Result};
use house::backend::{Backend, Speaks};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (address, name, speaks) = match &args[..] {
        [address, name] => (address, name, Speaks::Http),
        [address, name, speaks] => (address, name, speaks.parse()?),
        _ => anyhow::bail!("usage: backend ADDRESS:PORT NAME [http|echo|first]"),
    };
    let address = address.parse().with_context(|| format!("{address:?} is no ADDRESS:PORT"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let backend = Backend::start_as(speaks, address, name).await?;
    println!("backend {name} listens on {}", backend.address);
    tokio::select! {
        () = backend.join() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
