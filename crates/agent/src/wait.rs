//! `heddle-agent wait`: until the proxy beside is ready.
//!
//! In a pod whose proxy starts beside its application this is what holds the application back: the
//! proxy's `postStart`, or a startup probe.
//!
//! **Invariant:** succeeds only after an answer that says so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use tokio::time::{Instant, sleep};

use crate::call;
use crate::settings::values::Time;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const LONGEST: usize = 64 << 10;

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// After which to give up; 0 asks once
    #[arg(long, default_value = "60s", value_name = "TIME")]
    timeout: Time,
    /// Where the agent serves /healthz/ready
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    address: IpAddr,
    /// Its port
    #[arg(long, default_value_t = 15021, value_name = "PORT")]
    status_port: u16,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(async {
        let (Time(timeout), address) = (args.timeout, (args.address, args.status_port).into());
        let deadline = Instant::now() + timeout;
        loop {
            let Err(error) = ask(address).await else { return Ok(()) };
            if Instant::now() + PAUSE >= deadline {
                return Err(error.context(format!("not ready after {timeout:?}")));
            }
            sleep(PAUSE).await;
        }
    })
}

async fn ask(address: SocketAddr) -> Result<()> {
    let request = Request::get("/healthz/ready")
        .header(header::HOST, address.to_string())
        .body(Empty::new())?;
    let answer = call::send(address, false, request, PATIENCE).await?;
    if answer.status().is_success() {
        return Ok(());
    }
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
    bail!("{}", String::from_utf8_lossy(&body).trim().replace('\n', "; "))
}
