//! `leash PROGRAM ARGS…`: runs a program until its own standard input closes.
//!
//! In: a program; a pipe whose other end its owner holds. Out: the program's exit code.
//!
//! **Invariant:** once the pipe closes, for whatever reason, the program is asked to end, and five
//! seconds later made to, and what it started with it.

#![allow(clippy::print_stderr, reason = "a tool")]

use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("leash: needs a program");
        return ExitCode::from(2);
    };
    let spawned = Command::new(&program).args(args).stdin(Stdio::null()).process_group(0).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            eprintln!("leash: cannot start {}: {error}", program.display());
            return ExitCode::from(127);
        }
    };
    let (closed, owner) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        drop(closed);
    });
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
        if owner.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Disconnected) {
            return end(child);
        }
    }
}

fn end(mut child: Child) -> ExitCode {
    // The standard library can only kill; `kill` is a command everywhere, and the id is that of a
    // child that was not yet waited for, so it is nobody else's.
    let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    let deadline = Instant::now() + GRACE;
    while asked.as_ref().is_ok_and(|status| status.success()) && Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // What it started would have nobody any more.
    let started = house::process::children(child.id()).unwrap_or_default();
    let killed = child.kill().and_then(|()| child.wait());
    for id in started {
        let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
    }
    eprintln!("leash: had to kill {} ({killed:?})", child.id());
    ExitCode::from(137)
}
