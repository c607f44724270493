//! The loop: the one writer of everything that proxies are sent.
//!
//! In: the inbox. Out: publications, scopes of streams, and the world that people may ask about.
//!
//! Batching is adaptive: an event that finds the loop idle is handled at once; what arrives while
//! a batch is under way is merged into the next. There is no fixed wait.
//!
//! Before every source has synced the engine is fed, but nothing is published: a proxy must never
//! see half a world.
//!
//! **Invariant:** waits for nobody but the inbox.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use futures::future::OptionFuture;
use model::{Batch, Change, Engine, ProxyKey, Row, Severity, Update};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use xds::{ScopeId, StreamId};

use crate::event::{Event, FileProblem, SourceUpdate};
use crate::metrics;
use crate::problems::Rejections;
use crate::publish::Offer;
use crate::pushes::{Push, Pushes, StreamIds};
use crate::world::{Objects, Rows, Scopes, Shared, World};

/// Events taken into one batch at most, so that a storm is published now and then.
const BATCH: usize = 4096;

/// How long the engine keeps the scope of a stream that ended, as its proxy will most likely come
/// back: Envoy does within seconds, and a thousand that were cut off do so at once.
const PARTING: Duration = Duration::from_secs(10);
/// Streams that ended and are kept at most.
const PARTED: usize = 16_384;

/// The loop and its state.
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    engine: Engine,
    offer: Offer,
    objects: Objects,
    rows: Rows,
    scopes: Arc<Scopes>,
    files: Arc<Vec<FileProblem>>,
    streams: BTreeMap<ProxyKey, Stream>,
    by_scope: BTreeMap<ScopeId, StreamIds>,
    /// Streams that ended before the inbox said that they came.
    ended: Vec<ProxyKey>,
    /// Streams that ended and when, oldest first: the engine takes them for connected.
    parted: VecDeque<(Instant, ProxyKey)>,
    rejections: Rejections,
    pushes: Pushes,
    verify: bool,
    synced: bool,
}

struct Stream {
    scope: Option<ScopeId>,
    tell: watch::Sender<Option<ScopeId>>,
}

/// What a batch has besides what goes to the engine.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    synced: bool,
    sources: bool,
    streams: Vec<xds::Event>,
    parted: Vec<ProxyKey>,
    events: Vec<String>,
}

/// The first events of a batch, in words.
fn described(events: &[Event]) -> Vec<String> {
    events.iter().take(Push::LINES).map(ToString::to_string).collect()
}

/// Whether anything that proxies are offered differs.
fn differs_for_proxies(update: &Update) -> bool {
    !(update.resources.is_empty() && update.layers.is_empty() && update.scopes.is_empty())
}

// === impl Pipeline ===

impl Pipeline {
    /// A loop without objects and streams.
    pub(crate) fn new(shared: Arc<Shared>, trust_domain: Option<Arc<str>>, verify: bool) -> Self {
        Self {
            shared,
            engine: trust_domain.map_or_else(Engine::new, Engine::of_trust_domain),
            offer: Offer::default(),
            objects: Objects::default(),
            rows: Rows::default(),
            scopes: Arc::default(),
            files: Arc::default(),
            streams: BTreeMap::new(),
            by_scope: BTreeMap::new(),
            ended: Vec::new(),
            parted: VecDeque::new(),
            rejections: Rejections::default(),
            pushes: Pushes::default(),
            verify,
            synced: false,
        }
    }

    /// Run until told to stop.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Event>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut events = Vec::new();
        loop {
            let forget = self.parted.front().map(|(at, _)| *at + PARTING);
            let forget = OptionFuture::from(forget.map(|at| sleep_until(at.into())));
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
                count = inbox.recv_many(&mut events, BATCH) => if count == 0 { return Ok(()) },
                Some(()) = forget => {}
            }
            self.handle(Instant::now(), &mut events);
        }
    }

    /// Handle a batch.
    fn handle(&mut self, started: Instant, events: &mut Vec<Event>) {
        let at = SystemTime::now();
        let count = events.len();
        let mut gathered = Gathered { events: described(events), ..Gathered::default() };
        for event in events.drain(..) {
            self.gather(event, &mut gathered);
        }
        self.gather_ended(&mut gathered);
        let Gathered { mut batch, synced, sources, streams, parted, mut events } = gathered;
        // Before those of this batch: the engine has heard of these.
        batch.disconnected = self.forgotten(started);
        if !batch.disconnected.is_empty() {
            events.push(format!("{} streams ended a while ago", batch.disconnected.len()));
        }
        let mut rejections = false;
        for key in parted {
            let scope = self.streams.remove(&key).and_then(|stream| stream.scope);
            self.leave(key, scope);
            rejections |= self.rejections.forget_stream(key);
            self.parted.push_back((started, key));
        }
        let update = self.engine.apply(batch);
        if self.verify {
            for difference in self.engine.verify() {
                tracing::error!("the engine differs from a fresh one: {difference}");
            }
        }
        self.note_scopes(&update);
        let first = synced && !self.synced;
        self.synced |= synced;
        let (resources, scopes) = self.offer.apply(&update);
        for (resource_type, name) in &resources {
            self.rejections.forget_resource(*resource_type, name);
        }
        for event in &streams {
            rejections |= self.note(event);
        }
        if !self.synced {
            return;
        }
        if first || differs_for_proxies(&update) {
            self.shared.publisher.publish(self.offer.publication());
        }
        self.assign(&update);
        let took = started.elapsed();
        let of = |scope: &ScopeId| self.by_scope.get(scope).cloned().unwrap_or_default();
        let woken = scopes.iter().map(|scope| (*scope, of(scope))).collect();
        self.pushes.add(Push {
            revision: self.offer.revision(),
            at,
            took,
            events,
            touched: update.touched,
            ran: Push::lines(&update.ran),
            ran_count: update.ran.len(),
            resources: Push::first(&resources),
            resource_count: resources.len(),
            woken,
        });
        let differs =
            first || sources || rejections || update.touched || differs_for_proxies(&update);
        let world = if differs {
            let world = self.world();
            self.log_new_problems(&world);
            world
        } else {
            World { pushes: self.pushes.clone(), ..(**self.shared.world.load()).clone() }
        };
        self.shared.world.store(Arc::new(world));
        if first {
            self.shared.ready.send_replace(true);
            tracing::info!(objects = self.objects.size(), "sources are synced; serving");
        }
        metrics::batch(took, count);
        tracing::debug!(events = count, resources = resources.len(), ?took, "batch");
    }

    fn gather(&mut self, event: Event, gathered: &mut Gathered) {
        match event {
            Event::Source(SourceUpdate { objects, files }) => {
                gathered.sources = true;
                for (change, object) in objects {
                    match object {
                        Some(object) => {
                            self.objects.insert_mut(Arc::clone(&change.owner), object);
                        }
                        None => drop(self.objects.remove_mut(&change.owner)),
                    }
                    self.keep(&change);
                    gathered.batch.changes.push(change);
                }
                if let Some(files) = files {
                    self.files = Arc::new(files);
                }
            }
            Event::Synced => gathered.synced = true,
            Event::Connected { key, proxy, scope } => {
                self.streams.insert(key, Stream { scope: None, tell: scope });
                gathered.batch.connected.push((key, *proxy));
            }
            Event::Disconnected(key) => gathered.parted.push(key),
            Event::Stream(event) => gathered.streams.push(event),
        }
    }

    /// Take the ends of streams for which the inbox had no room.
    fn gather_ended(&mut self, gathered: &mut Gathered) {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.append(&mut ended);
        drop(ended);
        for key in std::mem::take(&mut self.ended) {
            match self.streams.contains_key(&key) {
                true => gathered.parted.push(key),
                false => self.ended.push(key),
            }
        }
    }

    /// The streams that ended long ago, or that are too many to keep.
    fn forgotten(&mut self, now: Instant) -> Vec<ProxyKey> {
        let over = self.parted.iter().take_while(|(at, _)| now.duration_since(*at) >= PARTING);
        let count = over.count().max(self.parted.len().saturating_sub(PARTED));
        self.parted.drain(..count).map(|(_, key)| key).collect()
    }

    /// Keep what people may ask about of an object.
    fn keep(&mut self, change: &Change) {
        let asked = |row: &&Row| matches!(row, Row::Service(_) | Row::EndpointSlice(_));
        let rows: Arc<[Row]> = change.rows.iter().filter(asked).cloned().collect();
        if rows.is_empty() {
            self.rows.remove_mut(&change.owner);
        } else {
            self.rows.insert_mut(Arc::clone(&change.owner), rows);
        }
    }

    /// Take over which scopes there are.
    fn note_scopes(&mut self, update: &Update) {
        for (id, layers) in &update.scopes {
            let scopes = Arc::make_mut(&mut self.scopes);
            let about = layers.as_ref().and_then(|_| self.engine.about(*id));
            match about {
                Some(about) => drop(scopes.insert(ScopeId(id.0), about)),
                None => drop(scopes.remove(&ScopeId(id.0))),
            }
        }
    }

    /// Tell streams their scope; after publication, so that the scope is there when they look.
    fn assign(&mut self, update: &Update) {
        for (key, scope) in &update.assigned {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let now = ScopeId(scope.0);
            let before = stream.scope.replace(now);
            stream.tell.send_replace(Some(now));
            self.leave(*key, before);
            self.by_scope.entry(now).or_default().insert_mut(StreamId(key.0));
        }
    }

    /// A stream is not of this scope any more.
    fn leave(&mut self, key: ProxyKey, scope: Option<ScopeId>) {
        let Some(scope) = scope else { return };
        if let Some(streams) = self.by_scope.get_mut(&scope) {
            streams.remove_mut(&StreamId(key.0));
            if streams.is_empty() {
                self.by_scope.remove(&scope);
            }
        }
    }

    fn note(&mut self, event: &xds::Event) -> bool {
        let stream = self.streams.get(&ProxyKey(event.stream.0));
        let scope = stream.and_then(|s| s.scope);
        let world = self.shared.world.load();
        self.rejections.note(event, &|kind, name| world.source_of(scope?, kind, name))
    }

    /// Log problems between objects that were not there before; those within objects are logged by
    /// their source.
    fn log_new_problems(&self, world: &World) {
        let known = Arc::clone(&self.shared.world.load().problems);
        for problem in world.problems.difference(&known) {
            let object = world.objects.get(&problem.object);
            let place = object.and_then(|object| object.place(&problem.field)).unwrap_or_default();
            match problem.severity {
                Severity::Error => tracing::error!(%place, "{problem}"),
                Severity::Warning => tracing::warn!(%place, "{problem}"),
            }
        }
    }

    fn world(&self) -> World {
        let mut problems = self.engine.problems();
        problems.extend(self.offer.problems().cloned());
        problems.extend(self.rejections.problems());
        World {
            revision: self.offer.revision(),
            objects: self.objects.clone(),
            rows: self.rows.clone(),
            scopes: Arc::clone(&self.scopes),
            files: Arc::clone(&self.files),
            problems: Arc::new(problems),
            pushes: self.pushes.clone(),
            resources: self.offer.resources().clone(),
            views: Arc::clone(self.offer.views()),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{Capabilities, Proxy};

    use super::*;

    fn pipeline() -> (Pipeline, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        let mut pipeline = Pipeline::new(Arc::clone(&shared), None, true);
        pipeline.handle(Instant::now(), &mut vec![Event::Synced]);
        (pipeline, shared)
    }

    fn connected(key: u64) -> Event {
        let id = "sidecar~10.0.0.1~a.default~default.svc.cluster.local";
        let proxy = Proxy::parse(id, None, Capabilities::of(None, true)).expect("a proxy");
        let scope = watch::channel(None).0;
        Event::Connected { key: ProxyKey(key), proxy: Box::new(proxy), scope }
    }

    #[test]
    fn a_stream_that_ends_while_the_inbox_is_full_is_gone() {
        let (mut pipeline, shared) = pipeline();
        let now = Instant::now();
        pipeline.handle(now, &mut vec![connected(1)]);
        // The second's end is heard of before its beginning is.
        shared.ended.lock().expect("nothing panicked").extend([ProxyKey(2), ProxyKey(1)]);
        pipeline.handle(now, &mut vec![Event::Synced]);
        assert_eq!((pipeline.streams.len(), pipeline.ended.len()), (0, 1));
        pipeline.handle(now, &mut vec![connected(2), connected(3)]);
        let left: Vec<_> = pipeline.streams.keys().collect();
        assert_eq!((left, pipeline.ended.len()), (vec![&ProxyKey(3)], 0));
        assert_eq!(pipeline.by_scope.len(), 1);
    }

    #[test]
    fn a_scope_outlives_its_streams_for_a_while() {
        let (mut pipeline, _) = pipeline();
        let mut now = Instant::now();
        let mut step = |after: Duration, event| {
            now += after;
            pipeline.handle(now, &mut vec![event]);
            (pipeline.streams.len(), pipeline.scopes.keys().map(|id| id.0).collect::<Vec<_>>())
        };
        let (count, first) = step(Duration::ZERO, connected(1));
        assert_eq!((count, first.len()), (1, 1));
        let ended = |key| Event::Disconnected(ProxyKey(key));
        assert_eq!(step(Duration::ZERO, ended(1)), (0, first.clone()));
        assert_eq!(step(PARTING / 2, connected(2)), (1, first.clone()));
        assert_eq!(step(PARTING / 2, Event::Synced), (1, first.clone()));
        assert_eq!(step(PARTING, ended(2)), (0, first.clone()));
        assert_eq!(step(PARTING / 2, Event::Synced), (0, first));
        assert_eq!(step(PARTING / 2, Event::Synced), (0, vec![]));
    }

    #[test]
    fn a_stream_that_comes_and_ends_among_too_many_leaves_no_scope() {
        let (mut pipeline, _) = pipeline();
        let now = Instant::now();
        let ended = |key| Event::Disconnected(ProxyKey(key));
        let mut events = vec![connected(0), ended(0)];
        events.extend((1..=PARTED as u64).map(ended));
        pipeline.handle(now, &mut events);
        assert_eq!(pipeline.scopes.len(), 1);
        pipeline.handle(now + PARTING, &mut vec![Event::Synced]);
        assert_eq!(pipeline.scopes.len(), 0);
    }

    #[test]
    fn only_so_many_streams_that_ended_are_kept() {
        let (mut pipeline, _) = pipeline();
        let ended = (0..PARTED as u64 + 10).map(|key| Event::Disconnected(ProxyKey(key)));
        let now = Instant::now();
        pipeline.handle(now, &mut ended.collect());
        pipeline.handle(now, &mut vec![Event::Synced]);
        assert_eq!(pipeline.parted.len(), PARTED);
    }
}
