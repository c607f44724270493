//! `backend ADDRESS:PORT NAME [http|echo|first]`: a server that says who it is and what it was asked.
//! `backend load HOST:PORT NAME`: a client that asks for the host NAME at HOST:PORT without pause.
//!
//! In: where to listen or to ask, what to call itself, what to speak. Out: a JSON line per HTTP
//! request; of a client at its end what came back.
//!
//! **Invariant:** ends on SIGTERM and SIGINT with exit code 0.

#![allow(clippy::print_stdout, reason = "a tool")]

use anyhow::{Context as _, Result};
use house::backend::{Backend, Speaks};
use house::load::Traffic;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [load, to, host] if load == "load" => call(to, host, asked).await,
        [address, name] => serve(address, name, Speaks::Http, asked).await,
        [address, name, speaks] => serve(address, name, speaks.parse()?, asked).await,
        _ => anyhow::bail!(
            "usage: backend ADDRESS:PORT NAME [http|echo|first], or backend load HOST:PORT NAME"
        ),
    }
}

async fn serve(
    address: &str,
    name: &str,
    speaks: Speaks,
    asked: impl Future<Output = ()>,
) -> Result<()> {
    let address = address.parse().with_context(|| format!("{address:?} is no ADDRESS:PORT"))?;
    let backend = Backend::start_as(speaks, address, name).await?;
    println!("backend {name} listens on {}", backend.address);
    tokio::select! {
        () = backend.join() => {}
        () = asked => {}
    }
    Ok(())
}

async fn call(to: &str, host: &str, asked: impl Future<Output = ()>) -> Result<()> {
    let mut found =
        tokio::net::lookup_host(to).await.with_context(|| format!("looking up {to}"))?;
    let address = found.next().with_context(|| format!("{to} has no address"))?;
    let mut traffic = Traffic::start(address, host);
    asked.await;
    println!("{}", serde_json::to_string(&traffic.end().await?)?);
    Ok(())
}
