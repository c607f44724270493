//! `heddle wait`: wait until a URL answers.
//!
//! In images without a shell it stands in for `curl`: in the probe of a gateway, whose Envoy says on
//! loopback only whether it is ready, and in `helm test`.
//!
//! **Invariant:** succeeds only after an answer that is no error.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

use crate::admin;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Arguments of `wait`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to ask: http://HOST:PORT/PATH
    #[arg(value_name = "URL")]
    url: String,
    /// Seconds after which to give up; 0 asks once, for a second at most
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Some((address, path)) =
        args.url.strip_prefix("http://").and_then(|rest| rest.split_once('/'))
    else {
        bail!("{:?} is not understood; use http://HOST:PORT/PATH", args.url);
    };
    let path = format!("/{path}");
    admin::wait_for(async {
        let deadline = Instant::now() + Duration::from_secs(args.timeout.max(1));
        loop {
            let answer = timeout_at(deadline, admin::request(address, &path)).await;
            let error = match answer {
                Ok(Ok(_)) => return Ok(ExitCode::SUCCESS),
                Ok(Err(error)) => error,
                Err(_) => bail!("no answer from {} within {} s", args.url, args.timeout.max(1)),
            };
            if args.timeout == 0 || Instant::now() + PAUSE >= deadline {
                return Err(error.context(format!("{} is not ready", args.url)));
            }
            sleep(PAUSE).await;
        }
    })
}
