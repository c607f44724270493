//! The scenarios, by the numbers of their specification.
//!
//! In: which, and how large. Out: rows of the table.
//!
//! **Invariant:** a scenario is a few lines over lanes; what is measured is the same for all.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::connection::Pace;
use crate::lane::{Burst, Lane};
use crate::measure::by_type;
use crate::table::{Bar, Row, Unit};
use crate::world::{Subject, World};

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// All proxies connect at once
    S1,
    /// One endpoint changes
    S2,
    /// One weight of a split changes
    S3,
    /// Endpoints change all the time
    S4,
    /// Many services and endpoints
    S5,
    /// All proxies come back, and nothing changed
    S6,
    /// Some proxies do not read
    S8,
    /// Idle streams
    S10,
}

/// How large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Proxies where the specification says 1,000.
    pub(crate) proxies: u32,
    /// Whether only ratios to the floor are held against bars.
    pub(crate) short: bool,
}

/// Memory of a server at which a scenario stops. Unit: bytes.
const MOST_MEMORY: u64 = 8 << 30;
/// What slow readers may cost. Unit: MiB.
const MOST_GROWN: f64 = 64.0;
/// Bursts of each lane are interleaved: the machine drifts.
const ROUNDS: usize = 5;

/// The bursts of one lane.
#[derive(Default)]
struct Rounds(Vec<Burst>);

// === impl Scenario ===

impl Scenario {
    pub(crate) fn run(self, sizes: Sizes) -> Result<Vec<Row>> {
        match self {
            Self::S1 => s1(sizes),
            Self::S2 => s2(sizes),
            Self::S3 => s3(sizes),
            Self::S4 => s4(sizes),
            Self::S5 => s5(sizes),
            Self::S6 => s6(sizes),
            Self::S8 => s8(sizes),
            Self::S10 => s10(sizes),
        }
    }
}

// === impl Sizes ===

impl Sizes {
    /// A bar on an absolute figure, which a short run says nothing about.
    fn at_most(self, most: f64) -> Bar {
        if self.short { Bar::None } else { Bar::AtMost(most) }
    }

    /// A bar on a ratio; a short run is only to notice what is far off.
    fn times_floor(self, most: f64) -> Bar {
        Bar::TimesFloor(if self.short { 2.0 * most } else { most })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A row of what each lane gives, in the order of lanes.
fn row(what: String, unit: Unit, bar: Bar, values: &[Option<f64>]) -> Row {
    let value = |at: usize| values.get(at).copied().flatten();
    Row { what, unit, heddle: value(0), floor: value(1), go: value(2), bar }
}

/// A row of a figure of every lane.
fn figure<T>(
    what: String,
    unit: Unit,
    bar: Bar,
    lanes: &mut [T],
    of: impl Fn(&mut T) -> Option<f64>,
) -> Row {
    let values: Vec<_> = lanes.iter_mut().map(of).collect();
    row(what, unit, bar, &values)
}

fn s1(sizes: Sizes) -> Result<Vec<Row>> {
    let mut done = Vec::new();
    for mut lane in Lane::all(World::new(sizes.proxies, 10), true)? {
        let connected = lane.connect(sizes.proxies)?;
        eprintln!("S1 {}: {}", lane.server.name, by_type(&connected.report));
        done.push((lane.server.peak()?, connected));
    }
    let of = |what: &str| {
        format!("S1 {} proxies connect, {} services: {what}", sizes.proxies, sizes.proxies)
    };
    let done = &mut done;
    let proxies = f64::from(sizes.proxies);
    let (seconds, at_most) = (Unit::Seconds, |most| sizes.at_most(most));
    Ok(vec![
        figure(of("all configured"), seconds, at_most(5.0), done, |(_, c)| {
            Some(c.took.as_secs_f64())
        }),
        figure(of("server CPU"), seconds, at_most(4.0), done, |(_, c)| Some(c.seconds)),
        figure(of("peak memory"), Unit::Mebibytes, at_most(500.0), done, |(peak, _)| {
            Some(mebibytes(*peak))
        }),
        figure(of("bytes per proxy"), Unit::Bytes, Bar::None, done, |(_, c)| {
            Some(c.report.received as f64 / proxies)
        }),
    ])
}

/// Bursts of changes at every lane in turn. Out: for each lane its bursts.
fn bursts(
    lanes: &mut [Lane],
    rounds: usize,
    mut burst: impl FnMut(&mut Lane) -> Result<Burst>,
) -> Result<Vec<Rounds>> {
    let mut done: Vec<Rounds> = lanes.iter().map(|_| Rounds::default()).collect();
    for _ in 0..rounds {
        for (lane, done) in lanes.iter_mut().zip(&mut done) {
            let burst = burst(lane)?;
            lane.verify(&burst.report)?;
            done.0.push(burst);
        }
    }
    Ok(done)
}

// === impl Rounds ===

impl Rounds {
    /// The median over rounds.
    fn median(&mut self, of: impl Fn(&mut Burst) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = self.0.iter_mut().map(of).collect();
        let mut values = values?;
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// A percentile of how late proxies saw a change. Unit: milliseconds.
    fn late(&mut self, percent: usize) -> Option<f64> {
        self.median(|burst| burst.stale.percentile(percent).map(milliseconds))
    }

    /// Processor time of the server per proxy and push. Unit: microseconds.
    fn cost(&mut self) -> Option<f64> {
        self.median(|burst| Some(burst.seconds * 1e6 / burst.pushes))
    }

    fn bytes(&mut self) -> Option<f64> {
        self.median(|burst| Some(burst.report.received as f64 / burst.pushes))
    }

    /// Processor time of the server while changes were under way. Unit: cores.
    fn cores(&mut self) -> Option<f64> {
        self.median(|burst| Some(burst.seconds / burst.lasted.as_secs_f64()))
    }
}

/// Rows that S2 and S3 have in common.
fn push_rows(of: &str, p99: Bar, cpu: Bar, ratio: Bar, size: Bar, done: &mut [Rounds]) -> Vec<Row> {
    let what = |what: &str| format!("{of}: {what}");
    let ms = Unit::Milliseconds;
    vec![
        figure(what("p50"), ms, Bar::None, done, |r| r.late(50)),
        figure(what("p99"), ms, p99, done, |r| r.late(99)),
        figure(what("until the last proxy, median"), ms, Bar::None, done, |rounds| {
            rounds
                .median(|b| Some(milliseconds(house::statistics::percentile(&mut b.stale.all, 50))))
        }),
        figure(what("server CPU per proxy and push"), Unit::Microseconds, cpu, done, Rounds::cost),
        figure(what("the same, to the floor"), Unit::Microseconds, ratio, done, Rounds::cost),
        figure(what("bytes per proxy and push"), Unit::Bytes, size, done, Rounds::bytes),
    ]
}

fn s2(sizes: Sizes) -> Result<Vec<Row>> {
    let n = sizes.proxies;
    let mut rows = Vec::new();
    for world in [World::new(100, 10), World::new(1000, 10), World::new(100, 100)] {
        let mut lanes = Lane::all(world, true)?;
        for lane in &mut lanes {
            lane.connect(n)?;
        }
        let subject = Subject::Endpoint(world.services / 2);
        let mut done = bursts(&mut lanes, ROUNDS, |lane| {
            lane.change(20, Duration::from_millis(150), |_| subject, |_| true)
        })?;
        let of = format!(
            "S2 one of {} endpoints, {} services, {n} proxies",
            world.endpoints, world.services
        );
        let bars = (sizes.at_most(20.0), sizes.at_most(15.0), sizes.times_floor(2.5));
        rows.extend(push_rows(&of, bars.0, bars.1, bars.2, Bar::None, &mut done));
        if sizes.short {
            break;
        }
    }
    Ok(rows)
}

fn s3(sizes: Sizes) -> Result<Vec<Row>> {
    let (n, world) = (sizes.proxies, World::new(sizes.proxies, 10));
    let mut lanes = Lane::all(world, true)?;
    for lane in &mut lanes {
        lane.connect(n)?;
    }
    let mut done = bursts(&mut lanes, ROUNDS, |lane| {
        lane.change(15, Duration::from_millis(200), |_| Subject::Weight(0), |_| true)
    })?;
    let of = format!("S3 one weight, {n} hosts, {n} proxies");
    let bars = (sizes.at_most(25.0), Bar::AtMost(1024.0));
    Ok(push_rows(&of, bars.0, Bar::None, Bar::None, bars.1, &mut done))
}

fn s4(sizes: Sizes) -> Result<Vec<Row>> {
    let (n, world) = (sizes.proxies, World::new(sizes.proxies, 10));
    let changes = if sizes.short { 500 } else { 6000 };
    let period = Duration::from_millis(10);
    let mut lanes = Lane::all(world, true)?;
    for lane in &mut lanes {
        lane.connect(n)?;
    }
    // Every service in turn, far from each other.
    let subject = |number: u32| Subject::Endpoint(number.wrapping_mul(617) % world.services);
    let mut done = bursts(&mut lanes, 1, |lane| lane.change(changes, period, subject, |_| true))?;
    let of = |what: &str| format!("S4 100 endpoint changes/s, {n} proxies: {what}");
    let ms = Unit::Milliseconds;
    let mut rows = vec![
        figure(of("p50"), ms, Bar::None, &mut done, |r| r.late(50)),
        figure(of("p99"), ms, sizes.at_most(100.0), &mut done, |r| r.late(99)),
        figure(of("max"), ms, Bar::None, &mut done, |r| r.late(100)),
        figure(of("server"), Unit::Cores, sizes.at_most(1.0), &mut done, Rounds::cores),
    ];
    drop(lanes);
    let world = World { narrowed: true, ..world };
    let mut lane = Lane::all(world, false)?.remove(0);
    lane.connect(n)?;
    let unseen =
        |number: u32| Subject::Endpoint(number.wrapping_mul(617) % (world.services / 10) * 10 + 7);
    let burst = lane.change(changes, period, unseen, |_| false)?;
    lane.verify(&burst.report)?;
    let used = burst.seconds / burst.lasted.as_secs_f64();
    let what = "S4 the same, of services that no proxy sees: server".to_owned();
    rows.push(row(what, Unit::Cores, sizes.at_most(0.05), &[Some(used)]));
    Ok(rows)
}

fn s5(sizes: Sizes) -> Result<Vec<Row>> {
    let (world, proxies) = (World::new(sizes.proxies * 10, 10), sizes.proxies * 5);
    let mut lane = Lane::all(world, false)?.remove(0);
    let mut took = Duration::ZERO;
    // Step by step, so that a server that takes too much does not take the machine along.
    while lane.proxies < proxies && lane.server.resident()? < MOST_MEMORY {
        took += lane.connect(proxies / 20)?.took;
        eprintln!("S5: {} proxies, {:.0} MiB", lane.proxies, mebibytes(lane.server.resident()?));
    }
    let (services, n) = (world.services, lane.proxies);
    let of = |what: &str| {
        format!("S5 {services} services of 10 endpoints, {n} of {proxies} proxies: {what}")
    };
    let memory = mebibytes(lane.server.resident()?);
    let at_the_end = (n == proxies).then_some(memory);
    Ok(vec![
        row(of("ready"), Unit::Seconds, Bar::None, &[Some(lane.server.ready.as_secs_f64())]),
        row(of("all configured"), Unit::Seconds, Bar::None, &[Some(took.as_secs_f64())]),
        row(of("memory so far"), Unit::Mebibytes, Bar::None, &[Some(memory)]),
        row(of("memory of all"), Unit::Mebibytes, sizes.at_most(800.0), &[at_the_end]),
    ])
}

fn s6(sizes: Sizes) -> Result<Vec<Row>> {
    let (world, proxies) =
        (World::new(sizes.proxies, 10), sizes.proxies * if sizes.short { 1 } else { 9 });
    let mut lane = Lane::secure(world)?;
    let connected = lane.connect(proxies)?;
    let of =
        |what: &str| format!("S6 {proxies} proxies with TLS, {} services: {what}", world.services);
    let seconds = |took: Duration| Some(took.as_secs_f64());
    let mut rows =
        vec![row(of("first connect"), Unit::Seconds, Bar::None, &[seconds(connected.took)])];
    for (what, kills) in [("sockets reset", false), ("server killed and restarted", true)] {
        let disturb = |lane: &mut Lane| match kills {
            true => lane.server.kill_and_restart(),
            false => lane.fleet.reset(),
        };
        disturb(&mut lane)?;
        let quiet = lane.again()?;
        let subject = Subject::Endpoint(world.services / 2);
        let took = lane.resynced(disturb, subject)?;
        let of = |more: &str| of(&format!("{what}, {more}"));
        rows.push(row(
            of("all have what is new"),
            Unit::Seconds,
            sizes.at_most(6.0),
            &[took.and_then(seconds)],
        ));
        rows.push(row(
            of("bytes resent, the most of a stream"),
            Unit::Bytes,
            Bar::AtMost(1024.0),
            &[Some(quiet as f64)],
        ));
    }
    Ok(rows)
}

fn s8(sizes: Sizes) -> Result<Vec<Row>> {
    let n = sizes.proxies;
    let world = World::new(100, 100);
    let mut lane = Lane::all(world, false)?.remove(0);
    lane.connect(n)?;
    // 15 KB seven times a second.
    let (period, count) = (Duration::from_millis(150), if sizes.short { 30 } else { 200 });
    let slow = n / 10;
    let mut burst = |pace| {
        lane.fleet.pace(0..slow, pace)?;
        let before = lane.server.resident()?;
        let subject = Subject::Endpoint(50);
        let mut burst = lane.change(count, period, |_| subject, |proxy| proxy >= slow)?;
        let grown = mebibytes(lane.server.resident()?) - mebibytes(before);
        anyhow::Ok((burst.stale.percentile(99).map(milliseconds), grown, burst.report.ended))
    };
    let (clean, _, _) = burst(Pace::Normal)?;
    let frozen = burst(Pace::Frozen)?;
    let crawling = burst(Pace::Slow(1024))?;
    lane.fleet.pace(0..slow, Pace::Normal)?;
    lane.fleet.settled(Duration::from_secs(60))?;
    lane.verify(&lane.fleet.report()?)?;
    let of = |what: &str| format!("S8 {n} proxies, 100 KB/s each: {what}");
    let mut rows = vec![row(of("p99"), Unit::Milliseconds, Bar::None, &[clean])];
    for (what, (p99, grown, ended)) in [("a tenth frozen", frozen), ("a tenth at 1 KB/s", crawling)]
    {
        let ratio = p99.zip(clean).map(|(with, without)| with / without);
        rows.push(row(
            of(&format!("{what}, p99 of the others")),
            Unit::Milliseconds,
            Bar::None,
            &[p99],
        ));
        rows.push(row(
            of(&format!("{what}, to the clean run")),
            Unit::Ratio,
            sizes.at_most(1.3),
            &[ratio],
        ));
        rows.push(row(
            of(&format!("{what}, memory grown")),
            Unit::Mebibytes,
            Bar::AtMost(MOST_GROWN),
            &[Some(grown)],
        ));
        eprintln!("S8 {what}: {ended} streams were ended");
    }
    Ok(rows)
}

fn s10(sizes: Sizes) -> Result<Vec<Row>> {
    let n = sizes.proxies * 5;
    let world = World::new(sizes.proxies, 10);
    let time = Duration::from_secs(if sizes.short { 5 } else { 60 });
    let mut used = Vec::new();
    for mut lane in Lane::all(world, true)? {
        lane.connect(n)?;
        used.push(Some(lane.idle(time)?));
    }
    let what = format!("S10 {n} idle streams: server");
    Ok(vec![row(what, Unit::Cores, sizes.at_most(0.01), &used)])
}
