//! A server with its fleet, and the moves that scenarios are made of.
//!
//! In: a world, a number of proxies. Out: what connecting, changing and waiting came to.
//!
//! **Invariant:** what changed is remembered, so that the end can be compared with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::connection::Tls;
use crate::fleet::{Fleet, Options, Report};
use crate::measure::{Issued, Staleness, Steps};
use crate::proxy::Variant;
use crate::servers::{Recording, Server};
use crate::world::{Change, Subject, World};

/// Time that proxies may take to be configured, or to see a change.
const PATIENCE: Duration = Duration::from_secs(180);
const LATE: Duration = Duration::from_secs(60);

/// A server with its fleet.
pub(crate) struct Lane {
    pub(crate) server: Server,
    pub(crate) fleet: Fleet,
    pub(crate) world: World,
    pub(crate) proxies: u32,
    steps: Steps,
    step: u32,
}

/// What it took to configure proxies.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) took: Duration,
    /// Processor time of the server.
    pub(crate) seconds: f64,
    pub(crate) report: Report,
}

/// What some changes came to.
#[derive(Debug)]
pub(crate) struct Burst {
    pub(crate) stale: Staleness,
    /// Processor time of the server, and time on the clock.
    pub(crate) seconds: f64,
    pub(crate) lasted: Duration,
    pub(crate) report: Report,
    /// Changes times proxies.
    pub(crate) pushes: f64,
}

// === impl Lane ===

impl Lane {
    /// A lane whose proxies are not connected yet.
    fn new(options: Options, server: Server) -> Result<Self> {
        let world = options.world;
        let fleet = Fleet::start(options)?;
        Ok(Self { server, fleet, world, proxies: 0, steps: Steps::default(), step: 1 })
    }

    /// One for each server of a world; what the others serve is what a proxy of Heddle was sent.
    pub(crate) fn all(world: World, with_go: bool) -> Result<Vec<Self>> {
        let heddle = Server::heddle(world, false)?;
        let recording = recorded(&heddle, world)?;
        let mut servers = vec![heddle, Server::floor(world, &recording)?];
        if with_go {
            servers.extend(Server::go_control_plane(world, &recording)?);
        }
        let lane = |server: Server| Self::new(options(&server, world), server);
        servers.into_iter().map(lane).collect()
    }

    /// One of Heddle alone, whose proxies come over mutual TLS.
    pub(crate) fn secure(world: World) -> Result<Self> {
        let server = Server::heddle(world, true)?;
        let tls = Some(Arc::new(Tls::of(&server.identity())?));
        Self::new(Options { tls, ..options(&server, world) }, server)
    }

    /// One of Heddle alone, whose proxies speak state of the world.
    pub(crate) fn state_of_the_world(world: World) -> Result<Self> {
        let server = Server::heddle(world, false)?;
        let variant = Variant::StateOfTheWorld;
        Self::new(Options { variant, ..options(&server, world) }, server)
    }

    /// Let more proxies connect, all at once.
    pub(crate) fn connect(&mut self, count: u32) -> Result<Connected> {
        let processor = self.server.processor()?;
        let (began, before) = (Instant::now(), processor.seconds()?);
        self.fleet.connect(count)?;
        self.proxies += count;
        let settled = self.fleet.settled(PATIENCE).with_context(|| self.server.name)?;
        let seconds = processor.seconds()? - before;
        let report = self.fleet.report()?;
        self.verify(&report)?;
        Ok(Connected { took: settled - began, seconds, report })
    }

    /// Change a subject again and again, `count` times, once in `period`; `counts` = the proxies
    /// that are looked at.
    pub(crate) fn change(
        &mut self,
        count: u32,
        period: Duration,
        subject: impl Fn(u32) -> Subject,
        counts: impl Fn(u32) -> bool,
    ) -> Result<Burst> {
        let _before = self.fleet.report()?;
        let processor = self.server.processor()?;
        let (began, before) = (Instant::now(), processor.seconds()?);
        let mut issued: Vec<Issued> = Vec::new();
        for number in 0..count {
            self.step += 1;
            let change = Change { subject: subject(number), step: self.step };
            issued.push((change, self.server.change(&[change])?));
            self.steps.note(change);
            let next = began + period * (number + 1);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let (ended, deadline) = (Instant::now(), Instant::now() + LATE);
        let mut report = Report::default();
        loop {
            // What is not settled by then is lost.
            let settled = self.fleet.settled(LATE);
            report.add(self.fleet.report()?);
            let stale = Staleness::of(&issued, &report.seen, self.proxies, &counts);
            if (stale.lost == 0 && settled.is_ok()) || Instant::now() > deadline {
                let seconds = processor.seconds()? - before;
                let lasted = ended.max(self.fleet.last()) - began;
                let pushes = f64::from(count) * f64::from(self.proxies);
                return Ok(Burst { stale, seconds, lasted, report, pushes });
            }
        }
    }

    /// Fail unless every proxy holds the world as it is now; say so where the server is not ours.
    pub(crate) fn verify(&self, report: &Report) -> Result<()> {
        let name = self.server.name;
        match self.steps.verify(&self.fleet, self.world, report) {
            Err(error) if !self.server.is_ours() => eprintln!("{name}: {error:#}"),
            other => other.with_context(|| name)?,
        }
        Ok(())
    }

    /// Wait until all proxies that were disturbed are back and hold the world as it is. Out: the most
    /// bytes that one was sent.
    pub(crate) fn again(&self) -> Result<u64> {
        let deadline = Instant::now() + LATE;
        let mut report = Report::default();
        loop {
            self.fleet.settled(PATIENCE)?;
            report.add(self.fleet.report()?);
            // One that did not read for long catches up with pauses.
            match self.verify(&report) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(report.most),
            }
        }
    }

    /// Disturb all streams, change a subject, and wait until every proxy has seen that. Out: how long
    /// it took from the disturbance.
    pub(crate) fn resynced(
        &mut self,
        disturb: impl FnOnce(&mut Self) -> Result<()>,
        subject: Subject,
    ) -> Result<Option<Duration>> {
        let began = Instant::now();
        disturb(self)?;
        let burst = self.change(1, Duration::ZERO, |_| subject, |_| true)?;
        self.verify(&burst.report)?;
        Ok((burst.stale.lost == 0).then(|| self.fleet.last() - began))
    }

    /// The processor time that the server uses while nothing changes. Unit: cores.
    pub(crate) fn idle(&self, time: Duration) -> Result<f64> {
        let processor = self.server.processor()?;
        let (began, before) = (Instant::now(), processor.seconds()?);
        std::thread::sleep(time);
        let report = self.fleet.report()?;
        ensure!(report.ended == 0, "{} streams of {} ended", report.ended, self.server.name);
        Ok((processor.seconds()? - before) / began.elapsed().as_secs_f64())
    }
}

/// Proxies that speak delta, in plain text.
fn options(server: &Server, world: World) -> Options {
    let variant = Variant::Delta;
    Options { server: server.address, world, variant, tls: None, extensions: true }
}

/// What a proxy of Heddle is sent of a world.
fn recorded(heddle: &Server, world: World) -> Result<Recording> {
    let mut fleet = Fleet::start(options(heddle, world))?;
    fleet.connect(1)?;
    fleet.settled(PATIENCE)?;
    Recording::of(&fleet)
}
