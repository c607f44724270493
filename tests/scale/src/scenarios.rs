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
    /// Whether go-control-plane is measured too.
    pub(crate) with_go: bool,
}

/// Memory of a server at which a scenario stops. Unit: bytes.
const MOST_MEMORY: u64 = 8 << 30;
/// What slow readers may cost. Unit: MiB.
const MOST_GROWN: f64 = 64.0;
/// The bursts of one lane.
#[derive(Default)]
struct Rounds(Vec<Burst>);

// === impl Scenario ===

impl Scenario {
    /// Those of a short run: a minute.
    pub(crate) const SHORT: &[Self] = &[Self::S1, Self::S2, Self::S3, Self::S6];

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
    /// Bursts of each lane are interleaved: the machine drifts.
    fn rounds(self) -> usize {
        if self.short { 2 } else { 5 }
    }

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
    let (n, world) = (sizes.proxies, World::new(sizes.proxies, 10));
    let connected = |mut lane: Lane| {
        let connected = lane.connect(n)?;
        eprintln!("S1 {}: {}", lane.server.name, by_type(&connected.report));
        anyhow::Ok((lane.server.peak()?, connected))
    };
    let lanes = Lane::all(world, sizes.with_go)?;
    let mut delta = lanes.into_iter().map(connected).collect::<Result<Vec<_>>>()?;
    let mut full = [connected(Lane::state_of_the_world(world)?)?];
    let mut rows = Vec::new();
    for (variant, done) in [("delta", &mut delta[..]), ("state of the world", &mut full)] {
        // Bars are for delta.
        let at_most = |most| if variant == "delta" { sizes.at_most(most) } else { Bar::None };
        let of = |what: &str| format!("S1 {n} proxies connect, {n} services, {variant}: {what}");
        let (seconds, mib) = (Unit::Seconds, Unit::Mebibytes);
        let (configured, memory) = (of("all configured"), of("peak memory"));
        let bytes = of("bytes per proxy");
        rows.extend([
            figure(configured, seconds, at_most(5.0), done, |(_, c)| Some(c.took.as_secs_f64())),
            figure(of("server CPU"), seconds, at_most(4.0), done, |(_, c)| Some(c.seconds)),
            figure(memory, mib, at_most(500.0), done, |(peak, _)| Some(mebibytes(*peak))),
            figure(bytes, Unit::Bytes, Bar::None, done, |(_, c)| {
                Some(c.report.received as f64 / f64::from(n))
            }),
        ]);
    }
    Ok(rows)
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
    let mut rows = Vec::new();
    let worlds = [World::new(100, 10), World::new(1000, 10), World::new(100, 100)];
    for world in worlds.into_iter().take(if sizes.short { 1 } else { worlds.len() }) {
        let mut lanes = Lane::all(world, sizes.with_go)?;
        for lane in &mut lanes {
            lane.connect(sizes.proxies)?;
        }
        let mut done = bursts(&mut lanes, sizes.rounds(), |lane| flips(lane, 20, 150))?;
        rows.extend(s2_rows(sizes, world, sizes.proxies, 20.0, &mut done));
    }
    if !sizes.short {
        // One server after the other: together they would have too many files.
        let (world, proxies) = (World::new(100, 10), sizes.proxies * 9);
        let mut done = Vec::new();
        for mut lane in Lane::all(world, sizes.with_go)? {
            lane.connect(proxies)?;
            done.extend(bursts(std::slice::from_mut(&mut lane), sizes.rounds(), |l| {
                flips(l, 4, 1500)
            })?);
        }
        rows.extend(s2_rows(sizes, world, proxies, 150.0, &mut done));
    }
    Ok(rows)
}

/// One endpoint in the middle of the world changes; the period is in milliseconds.
fn flips(lane: &mut Lane, count: u32, period: u64) -> Result<Burst> {
    let subject = Subject::Endpoint(lane.world.services / 2);
    lane.change(count, Duration::from_millis(period), |_| subject, |_| true)
}

fn s2_rows(sizes: Sizes, world: World, proxies: u32, p99: f64, done: &mut [Rounds]) -> Vec<Row> {
    let World { services, endpoints, .. } = world;
    let of = format!("S2 one of {endpoints} endpoints, {services} services, {proxies} proxies");
    let bars = (sizes.at_most(p99), sizes.at_most(15.0), sizes.times_floor(2.5));
    push_rows(&of, bars.0, bars.1, bars.2, Bar::None, done)
}

fn s3(sizes: Sizes) -> Result<Vec<Row>> {
    let (n, world) = (sizes.proxies, World::new(sizes.proxies, 10));
    let mut lanes = Lane::all(world, sizes.with_go)?;
    for lane in &mut lanes {
        lane.connect(n)?;
    }
    let mut done = bursts(&mut lanes, sizes.rounds(), |lane| {
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
    let mut lanes = Lane::all(world, sizes.with_go)?;
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
    let times = if sizes.short { 1 } else { 9 };
    let (world, proxies) = (World::new(sizes.proxies, 10), sizes.proxies * times);
    let of = |what: &str| format!("S6 {proxies} proxies, {} services, {what}", world.services);
    let mut rows = Vec::new();
    let mut plain = Vec::new();
    for mut lane in Lane::all(world, false)? {
        lane.connect(proxies)?;
        plain.push(come_back(&mut lane, false)?);
    }
    rows.extend(s6_rows(&of("plain text, sockets reset"), sizes, &plain));
    let mut lane = Lane::secure(world)?;
    lane.connect(proxies)?;
    for (what, killed) in [("sockets reset", false), ("server killed and restarted", true)] {
        let back = come_back(&mut lane, killed)?;
        rows.extend(s6_rows(&of(&format!("TLS, {what}")), sizes, &[back]));
    }
    Ok(rows)
}

/// What it took until all proxies were back.
struct Back {
    /// And had what changed meanwhile.
    took: Option<Duration>,
    /// Processor time of the server.
    seconds: f64,
    /// The most bytes that one was sent where nothing changed.
    bytes: u64,
}

fn come_back(lane: &mut Lane, killed: bool) -> Result<Back> {
    let disturb = |lane: &mut Lane| match killed {
        true => lane.server.kill_and_restart(),
        false => lane.fleet.reset(),
    };
    disturb(lane)?;
    let bytes = lane.again()?;
    let processor = lane.server.processor()?;
    let before = processor.seconds()?;
    let took = lane.resynced(disturb, Subject::Endpoint(lane.world.services / 2))?;
    // A server that was started anew counts from nothing.
    let before = if killed { 0.0 } else { before };
    Ok(Back { took, seconds: lane.server.processor()?.seconds()? - before, bytes })
}

fn s6_rows(of: &str, sizes: Sizes, back: &[Back]) -> Vec<Row> {
    let what = |what: &str| format!("{of}: {what}");
    let took: Vec<_> = back.iter().map(|b| b.took.map(|took| took.as_secs_f64())).collect();
    let seconds: Vec<_> = back.iter().map(|b| Some(b.seconds)).collect();
    let bytes: Vec<_> = back.iter().map(|b| Some(b.bytes as f64)).collect();
    vec![
        row(what("all have what is new"), Unit::Seconds, sizes.at_most(6.0), &took),
        row(what("server CPU"), Unit::Seconds, Bar::None, &seconds),
        row(what("most bytes of a stream"), Unit::Bytes, Bar::AtMost(1024.0), &bytes),
    ]
}

fn s8(sizes: Sizes) -> Result<Vec<Row>> {
    let n = sizes.proxies;
    let (world, slow) = (World::new(100, 100), n / 10);
    // 15 KB seven times a second.
    let (period, count) = (Duration::from_millis(150), if sizes.short { 20 } else { 40 });
    let mut lanes = Lane::all(world, sizes.with_go)?;
    for lane in &mut lanes {
        lane.connect(n)?;
    }
    let of = |what: &str| format!("S8 {n} proxies, 100 KB/s each, {what}");
    let mut rows = Vec::new();
    for (what, pace) in [("a tenth frozen", Pace::Frozen), ("a tenth at 1 KB/s", Pace::Slow(1024))]
    {
        let mut clean: Vec<Rounds> = lanes.iter().map(|_| Rounds::default()).collect();
        let mut disturbed: Vec<Rounds> = lanes.iter().map(|_| Rounds::default()).collect();
        let mut grown = vec![0.0_f64; lanes.len()];
        for _ in 0..sizes.rounds() {
            for (at, lane) in lanes.iter_mut().enumerate() {
                let burst = |lane: &mut Lane, pace| {
                    lane.fleet.pace(0..slow, pace)?;
                    let subject = Subject::Endpoint(50);
                    lane.change(count, period, |_| subject, |proxy| proxy >= slow)
                };
                clean[at].0.push(burst(lane, Pace::Normal)?);
                let before = lane.server.resident()?;
                disturbed[at].0.push(burst(lane, pace)?);
                let more = mebibytes(lane.server.resident()?) - mebibytes(before);
                grown[at] = grown[at].max(more);
                lane.fleet.pace(0..slow, Pace::Normal)?;
                lane.again()?;
            }
        }
        let late =
            |rounds: &mut [Rounds]| rounds.iter_mut().map(|r| r.late(99)).collect::<Vec<_>>();
        let (clean, disturbed) = (late(&mut clean), late(&mut disturbed));
        let ratio = |(with, without): (&Option<f64>, &Option<f64>)| Some((*with)? / (*without)?);
        let ratios: Vec<_> = disturbed.iter().zip(&clean).map(ratio).collect();
        let grown: Vec<_> = grown.into_iter().map(Some).collect();
        let of = |more: &str| of(&format!("{what}: {more}"));
        rows.extend([
            row(of("p99 without them"), Unit::Milliseconds, Bar::None, &clean),
            row(of("p99 of the others"), Unit::Milliseconds, Bar::None, &disturbed),
            row(of("the one to the other"), Unit::Ratio, sizes.at_most(1.3), &ratios),
            row(of("memory grown"), Unit::Mebibytes, Bar::AtMost(MOST_GROWN), &grown),
        ]);
    }
    Ok(rows)
}

fn s10(sizes: Sizes) -> Result<Vec<Row>> {
    let n = sizes.proxies * 5;
    let world = World::new(sizes.proxies, 10);
    let time = Duration::from_secs(if sizes.short { 5 } else { 60 });
    let mut used = Vec::new();
    for mut lane in Lane::all(world, sizes.with_go)? {
        lane.connect(n)?;
        used.push(Some(lane.idle(time)?));
    }
    let what = format!("S10 {n} idle streams: server");
    Ok(vec![row(what, Unit::Cores, sizes.at_most(0.01), &used)])
}
