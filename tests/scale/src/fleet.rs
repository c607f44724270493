//! Thousands of simulated Envoys in one process.
//!
//! In: the address of a server, commands. Out: what was seen and when, what was sent, and what each
//! proxy holds in the end.
//!
//! One worker thread, one read buffer: a buffer for each connection would be paid for in page
//! faults, and would look like a slow server.
//!
//! **Invariant:** the worker waits for nothing but its sockets, its commands and the time.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use mio::{Events, Poll, Token, Waker};
use rand::Rng as _;

use crate::connection::{Connection, Pace, Read, Tls};
use crate::known::Known;
use crate::proxy::{Proxy, Tally, Variant};
use crate::wire::Http2;
use crate::world::{self, Change, World};

const BUFFER: usize = 256 << 10;
/// As in our bootstrap: pauses before another attempt grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Connections that wait for a first byte; the backlog of a listener is 4,096, and what is beyond
/// waits a second for another SYN.
const CONNECTING: usize = 3000;
/// The same by TLS: all handshakes are the work of one thread here, and none may take 10 s.
const SHAKING_HANDS: usize = 300;
const TICK: Duration = Duration::from_millis(5);
/// Slow readers read a tenth of their rate this often.
const SLOW_TURN: Duration = Duration::from_millis(100);
/// A fleet is quiet when nothing came for this long.
const QUIET: Duration = Duration::from_millis(400);
const WAKE: Token = Token(usize::MAX);

/// What a fleet is.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) server: SocketAddr,
    pub(crate) world: World,
    pub(crate) variant: Variant,
    /// Certificates, one for each namespace.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whether nodes carry the list of extensions that a stock Envoy sends.
    pub(crate) extensions: bool,
}

/// A change that a proxy got to see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) proxy: u32,
    pub(crate) change: Change,
    pub(crate) at: Instant,
}

/// What happened since the last report, and what is held now.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) tally: Tally,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Most that one proxy was sent.
    pub(crate) most: u64,
    /// Connections that ended, and attempts that failed.
    pub(crate) ended: u64,
    pub(crate) seen: Vec<Seen>,
}

/// A closure that looks at all proxies and at what is known.
type Look = Box<dyn FnOnce(&[Proxy], &Known) + Send>;

enum Command {
    Connect(u32),
    /// Cut every connection; all come back and say what they hold.
    Reset,
    Pace(Range<u32>, Pace),
    Report(mpsc::Sender<Report>),
    Look(Look),
    Stop,
}

/// Read by the main thread without asking.
#[derive(Debug, Default)]
struct Progress {
    /// Streams that got a first byte.
    connected: AtomicUsize,
    configured: AtomicUsize,
    /// Microseconds from the start of the fleet to the last response.
    last: AtomicU64,
}

/// A running fleet; it ends when dropped.
pub(crate) struct Fleet {
    commands: mpsc::Sender<Command>,
    waker: Waker,
    worker: Option<JoinHandle<Result<()>>>,
    progress: Arc<Progress>,
    began: Instant,
    count: usize,
}

struct Worker {
    options: Options,
    poll: Poll,
    commands: mpsc::Receiver<Command>,
    progress: Arc<Progress>,
    began: Instant,
    extensions: Vec<u8>,
    known: Known,
    proxies: Vec<Proxy>,
    lines: Vec<Line>,
    report: Report,
    buffer: Vec<u8>,
    /// Lines with more to read than their turn allowed.
    again: Vec<usize>,
    /// Lines that wait for another attempt.
    retrying: BTreeSet<(Instant, usize)>,
    /// Lines that wait for their turn to connect.
    queue: VecDeque<usize>,
    connecting: usize,
    slow: bool,
    slow_turn: Instant,
}

/// What connects one proxy.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    attempts: u32,
    pace: Pace,
    received: u64,
    configured: bool,
}

// === impl Report ===

impl Report {
    /// Join what happened later.
    pub(crate) fn add(&mut self, later: Self) {
        let Self { tally, received, sent, most, ended, seen } = later;
        self.tally.add(tally);
        self.received += received;
        self.sent += sent;
        self.most = self.most.max(most);
        self.ended += ended;
        self.seen.extend(seen);
    }
}

// === impl Fleet ===

impl Fleet {
    pub(crate) fn start(options: Options) -> Result<Self> {
        let poll = Poll::new().context("epoll")?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (commands, received) = mpsc::channel();
        let progress = Arc::<Progress>::default();
        let began = Instant::now();
        let extensions = if options.extensions { world::extensions() } else { Vec::new() };
        let worker = Worker {
            options,
            poll,
            commands: received,
            progress: progress.clone(),
            began,
            extensions,
            known: Known::default(),
            proxies: Vec::new(),
            lines: Vec::new(),
            report: Report::default(),
            buffer: vec![0; BUFFER],
            again: Vec::new(),
            retrying: BTreeSet::new(),
            queue: VecDeque::new(),
            connecting: 0,
            slow: false,
            slow_turn: began,
        };
        let thread = std::thread::Builder::new().name("fleet".to_owned());
        let worker = Some(thread.spawn(move || worker.run())?);
        Ok(Self { commands, waker, worker, progress, began, count: 0 })
    }

    /// Let this many more proxies connect, all at once.
    pub(crate) fn connect(&mut self, count: u32) -> Result<()> {
        self.count += count as usize;
        self.tell(Command::Connect(count))
    }

    pub(crate) fn reset(&self) -> Result<()> {
        self.progress.connected.store(0, Ordering::Relaxed);
        self.tell(Command::Reset)
    }

    pub(crate) fn pace(&self, proxies: Range<u32>, pace: Pace) -> Result<()> {
        self.tell(Command::Pace(proxies, pace))
    }

    /// What happened since the last report.
    pub(crate) fn report(&self) -> Result<Report> {
        let (sender, receiver) = mpsc::channel();
        self.tell(Command::Report(sender))?;
        receiver.recv().map_err(|_| anyhow!("the fleet has ended"))
    }

    /// Ask something of all proxies and of what they hold.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&[Proxy], &Known) -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        // Nobody is left to miss the answer if sending it fails.
        let look = move |proxies: &[Proxy], known: &Known| drop(sender.send(look(proxies, known)));
        self.tell(Command::Look(Box::new(look)))?;
        receiver.recv().map_err(|_| anyhow!("the fleet has ended"))
    }

    /// Streams that got a byte since they were opened last.
    pub(crate) fn connected(&self) -> usize {
        self.progress.connected.load(Ordering::Relaxed)
    }

    /// When the last response came.
    pub(crate) fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.progress.last.load(Ordering::Relaxed))
    }

    /// Wait until all proxies have a configuration and nothing comes any more. Out: when the last
    /// response came.
    pub(crate) fn settled(&self, patience: Duration) -> Result<Instant> {
        let began = Instant::now();
        let deadline = began + patience;
        loop {
            let configured = self.progress.configured.load(Ordering::Relaxed);
            let (connected, last) = (self.connected(), self.last());
            let all = configured == self.count && connected >= self.count;
            if all && last.max(began).elapsed() > QUIET {
                return Ok(last);
            }
            self.check()?;
            ensure!(
                Instant::now() < deadline,
                "of {} proxies {connected} are connected and {configured} configured after \
                 {patience:?}; the last response came {:.1?} ago",
                self.count,
                last.elapsed()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(self.worker.as_ref().is_some_and(|w| !w.is_finished()), "the fleet has ended");
        Ok(())
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| anyhow!("the fleet has ended"))?;
        self.waker.wake().context("waking the fleet")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended with an error already, which is told here.
        let _ended = self.tell(Command::Stop);
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the fleet ended: {error:#}"),
            Some(Err(_)) => eprintln!("the fleet panicked"),
            _ => {}
        }
    }
}

// === impl Worker ===

impl Worker {
    fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let timers = self.slow || !self.retrying.is_empty();
            let timeout = match (self.again.is_empty(), timers) {
                (false, _) => Some(Duration::ZERO),
                (true, true) => Some(TICK),
                (true, false) => None,
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.context("epoll")?,
            }
            for event in &events {
                if event.token() == WAKE {
                    continue;
                }
                let line = event.token().0;
                if event.is_writable() {
                    self.write(line);
                }
                if event.is_readable() && self.lines[line].pace == Pace::Normal {
                    self.read(line, BUFFER);
                }
            }
            for line in std::mem::take(&mut self.again) {
                if self.lines[line].pace == Pace::Normal {
                    self.read(line, BUFFER);
                }
            }
            self.take_turns()?;
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return Ok(()),
                    command => self.obey(command)?,
                }
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Connect(count) => {
                for _ in 0..count {
                    self.queue.push_back(self.lines.len());
                    self.lines.push(Line::default());
                    self.proxies.push(Proxy::new(self.options.variant));
                }
                self.take_turns()?;
            }
            Command::Reset => {
                for line in 0..self.lines.len() {
                    self.hang_up(line);
                }
            }
            Command::Pace(proxies, pace) => {
                self.slow |= matches!(pace, Pace::Slow(_));
                for line in proxies.start as usize..proxies.end as usize {
                    self.lines[line].pace = pace;
                    if let Some(connection) = &self.lines[line].connection {
                        connection.set_pace(pace)?;
                    }
                    // What came meanwhile told the poll already.
                    self.again.push(line);
                }
            }
            Command::Report(to) => {
                let mut report = std::mem::take(&mut self.report);
                for line in &mut self.lines {
                    report.most = report.most.max(std::mem::take(&mut line.received));
                }
                // Nobody is left to miss it if this fails.
                let _gone = to.send(report);
            }
            Command::Look(look) => look(&self.proxies, &self.known),
            Command::Stop => {}
        }
        Ok(())
    }

    /// Connect those whose turn it is; read a little for those that are slow.
    fn take_turns(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some((at, line)) = self.retrying.first().copied().filter(|(at, _)| *at <= now) {
            self.retrying.remove(&(at, line));
            self.queue.push_back(line);
        }
        let most = if self.options.tls.is_some() { SHAKING_HANDS } else { CONNECTING };
        while self.connecting < most
            && let Some(line) = self.queue.pop_front()
        {
            self.connect(line)?;
        }
        if self.slow && now >= self.slow_turn {
            self.slow_turn = now + SLOW_TURN;
            for line in 0..self.lines.len() {
                if let Pace::Slow(rate) = self.lines[line].pace {
                    self.read(line, (rate as usize / 10).max(1));
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, line: usize) -> Result<()> {
        let Options { server, world, variant, tls, .. } = &self.options;
        let number = line as u32;
        let tls = tls.as_ref().map(|tls| tls.client(&world.namespace_of(number))).transpose()?;
        let mut http2 = Http2::open(&server.to_string(), variant.path(), tls.is_some());
        let mut node = world.node(number, tls.is_some());
        node.extend_from_slice(&self.extensions);
        let mut send = |message: Vec<u8>| http2.send(&message);
        self.proxies[line].open(&node, &self.known, &mut send);
        // Several addresses: one has not enough ports for thousands that come back.
        let from = Ipv4Addr::new(127, 0, 0, 2 + (line % 8) as u8);
        let connection =
            Connection::open(*server, from, self.poll.registry(), Token(line), http2, tls)?;
        self.lines[line].connection = Some(connection);
        self.connecting += 1;
        Ok(())
    }

    fn write(&mut self, line: usize) {
        let written = self.lines[line].connection.as_mut().map(Connection::write);
        match written {
            Some(Ok(bytes)) => self.report.sent += bytes as u64,
            Some(Err(_)) => self.hang_up(line),
            None => {}
        }
    }

    fn read(&mut self, line: usize, limit: usize) {
        let Self { lines, proxies, known, report, buffer, .. } = self;
        let (state, proxy) = (&mut lines[line], &mut proxies[line]);
        let Some(connection) = &mut state.connection else { return };
        let first = !connection.answered();
        let Report { tally, seen, .. } = report;
        let before: u64 = tally.messages.iter().sum();
        let (mut at, mut requests) = (None, Vec::new());
        let number = line as u32;
        let read = connection.read(&mut buffer[..limit], &mut |part| {
            // One look at the clock for all that one read gave.
            let at = *at.get_or_insert_with(Instant::now);
            let mut see = |change| seen.push(Seen { proxy: number, change, at });
            proxy.receive(part, known, tally, &mut see, &mut |request| requests.push(request))
        });
        let bytes = read.as_ref().map_or(0, |(bytes, _)| *bytes as u64);
        report.received += bytes;
        state.received += bytes;
        if first && connection.answered() {
            self.connecting -= 1;
            state.attempts = 0;
            self.progress.connected.fetch_add(1, Ordering::Relaxed);
        }
        if report.tally.messages.iter().sum::<u64>() > before {
            let last = at.unwrap_or_else(Instant::now) - self.began;
            self.progress.last.store(last.as_micros() as u64, Ordering::Relaxed);
        }
        let configured = proxy.is_configured();
        if configured != std::mem::replace(&mut state.configured, configured) {
            let count = &self.progress.configured;
            match configured {
                true => count.fetch_add(1, Ordering::Relaxed),
                false => count.fetch_sub(1, Ordering::Relaxed),
            };
        }
        for request in requests {
            connection.http2().send(&request);
        }
        match read {
            Ok((_, Read::More)) => self.again.push(line),
            Ok((_, Read::Blocked)) => {}
            Ok((_, Read::Ended)) => return self.hang_up(line),
            Err(error) => {
                self.report.tally.faults.push(format!("{error:#}"));
                return self.hang_up(line);
            }
        }
        self.write(line);
    }

    /// The connection is over; another one is made after a pause.
    fn hang_up(&mut self, line: usize) {
        let state = &mut self.lines[line];
        let Some(connection) = state.connection.take() else { return };
        if !connection.answered() {
            self.connecting -= 1;
        }
        self.report.ended += 1;
        let longest = (RETRY.0 * 2u32.saturating_pow(state.attempts)).min(RETRY.1);
        state.attempts = (state.attempts + 1).min(16);
        let pause = longest.mul_f64(rand::rng().random());
        self.retrying.insert((Instant::now() + pause, line));
    }
}
