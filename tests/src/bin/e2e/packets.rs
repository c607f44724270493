//! What somebody reads who sees every packet of a pod: this program again, in the pod's network.
//!
//! In: words to look for. Out: how many packets there were, and how many held each word.
//!
//! **Invariant:** looks at what leaves and enters the pod, not at what stays in it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use serde::{Deserialize, Serialize};

use crate::inside::{Inside, Running};

/// Reads packets until its input ends; prints what it saw.
pub(crate) const READ: &str = "--read-packets";

/// Longest packet, before the kernel cuts it to what the device takes.
const LONGEST: usize = 1 << 17;
/// Addresses of both ends, which packets that stay in the pod have not.
const ADDRESSES: usize = 12;
/// What is printed once packets are read.
const READY: &str = "reading";

/// Somebody who reads the packets of a pod.
pub(crate) struct Packets(Running);

/// What was read.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Packets.
    pub(crate) total: usize,
    words: BTreeMap<String, usize>,
}

/// Read packets of this network, until standard input ends.
pub(crate) fn read(words: &[&str]) -> Result<ExitCode> {
    let (family, flags) = (AddressFamily::PACKET, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::RAW, flags, Some(eth::ALL))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100)))?;
    println!("{READY}");
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    // Ends with the process.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.store(true, Ordering::Relaxed);
    });
    let (mut seen, mut buffer) = (Seen::default(), vec![0; LONGEST]);
    loop {
        let length = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            // Whatever was underway has been read.
            Err(Errno::AGAIN) if ended.load(Ordering::Relaxed) => break,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(error) => return Err(error).context("reading packets"),
        };
        seen.add(&buffer[..length], words);
    }
    println!("{}", serde_json::to_string(&seen)?);
    Ok(ExitCode::SUCCESS)
}

// === impl Seen ===

impl Seen {
    fn add(&mut self, packet: &[u8], words: &[&str]) {
        if packet.iter().take(ADDRESSES).all(|byte| *byte == 0) {
            return;
        }
        self.total += 1;
        for word in words {
            if packet.windows(word.len()).any(|part| part == word.as_bytes()) {
                *self.words.entry((*word).to_owned()).or_default() += 1;
            }
        }
    }

    /// Packets with this word.
    pub(crate) fn holding(&self, word: &str) -> usize {
        self.words.get(word).copied().unwrap_or_default()
    }
}

// === impl Packets ===

impl Packets {
    /// Read those of a pod from now on.
    pub(crate) fn of(inside: &Inside, words: &[&str]) -> Result<Self> {
        let mut running = inside.start(&[&[READ], words].concat())?;
        let line = running.line()?;
        ensure!(line.trim() == READY, "it does not read: {line:?}");
        Ok(Self(running))
    }

    /// What was read.
    pub(crate) fn stop(self) -> Result<Seen> {
        let said = self.0.stop()?;
        serde_json::from_str(&said).with_context(|| format!("{said:?}"))
    }
}
