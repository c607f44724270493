//! The watch of one kind: find it, list it, follow it, and begin again when that ends.
//!
//! In: the API server. Out: changes for the loop, and what is known of the watch itself.
//!
//! **Invariant:** an error changes nothing but the state of the watch; after the first reading the
//! kind counts as read for ever.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kube::api::ApiResource;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch as signal};

use super::Unsynced;
use super::index::{Index, Reading, Received, Said};
use crate::event::{Event, SourceUpdate};
use crate::sources::{SourceState, SourceStates};

/// Changes that are handed over at once, at most.
const CHUNK: usize = 512;
/// Pauses between attempts: from, and at most. A return of the API server is noticed within the
/// longest; each attempt is one small request.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Time without another failure after which a watch counts as resumed: longer than an attempt to
/// connect may take.
const SETTLED: Duration = Duration::from_secs(6);
/// Pause after which a kind that the API server does not have is looked for again.
const ABSENT: Duration = Duration::from_secs(10);

/// One watch.
pub(super) struct Watch {
    client: Client,
    reading: Reading,
    inbox: mpsc::Sender<Event>,
    unsynced: Option<Arc<Unsynced>>,
    states: Arc<SourceStates>,
    index: Index,
    /// Changes to be handed over.
    said: Vec<Said>,
    /// Attempts that failed since one went well.
    failed: u32,
    /// Whether lists are asked for as streams: not every API server can send them so.
    streaming: bool,
}

/// Why a watch of one API resource ended.
enum Ended {
    /// It has to be found again.
    Lost,
    /// Nobody listens any more.
    Closed,
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(
        client: Client,
        reading: Reading,
        inbox: mpsc::Sender<Event>,
        unsynced: Arc<Unsynced>,
        states: Arc<SourceStates>,
    ) -> Self {
        states.set(reading.name(), SourceState::Reading, 0);
        Self {
            client,
            reading,
            inbox,
            unsynced: Some(unsynced),
            states,
            index: Index::new(),
            said: Vec::new(),
            failed: 0,
            streaming: true,
        }
    }

    /// Run until told to stop.
    pub(super) async fn run(mut self, mut stopped: signal::Receiver<bool>) {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&mut self) {
        loop {
            match self.find().await {
                Ok(Some(resource)) => match self.follow(&resource).await {
                    Ended::Lost => {}
                    Ended::Closed => return,
                },
                Ok(None) => {
                    self.said.extend(self.index.clear());
                    if !self.say().await {
                        return;
                    }
                    self.read(SourceState::Absent).await;
                    tokio::time::sleep(ABSENT).await;
                }
                Err(error) => self.wait(&error.to_string()).await,
            }
        }
    }

    /// The resource of the API server that serves the kind. None when the API server says that it
    /// has none.
    async fn find(&self) -> kube::Result<Option<ApiResource>> {
        let resource = |group: &str, version: &str, kind: &str, plural: &str| ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: match group {
                "" => version.to_owned(),
                _ => format!("{group}/{version}"),
            },
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let known = match &self.reading {
            Reading::MeshConfig { .. } => {
                return Ok(Some(resource("", "v1", "ConfigMap", "configmaps")));
            }
            Reading::Kind(known) => known,
        };
        let resource = |version: &str| resource(known.group, version, known.name, known.plural);
        if known.group.is_empty() {
            return Ok(known.versions.first().map(|version| resource(version)));
        }
        let groups = self.client.list_api_groups().await?.groups;
        let Some(group) = groups.into_iter().find(|g| g.name == known.group) else {
            return Ok(None);
        };
        for version in known.versions {
            if !group.versions.iter().any(|v| v.version == *version) {
                continue;
            }
            let name = format!("{}/{version}", known.group);
            let served = self.client.list_api_group_resources(&name).await?.resources;
            if served.iter().any(|r| r.name == known.plural) {
                return Ok(Some(resource(version)));
            }
        }
        Ok(None)
    }

    /// List a resource, then follow it.
    async fn follow(&mut self, resource: &ApiResource) -> Ended {
        let mut config = watcher::Config::default();
        if self.streaming {
            config = config.streaming_lists();
        }
        let api: Api<Received> = match &self.reading {
            Reading::Kind(_) => Api::all_with(self.client.clone(), resource),
            Reading::MeshConfig { name } => {
                config = config.fields(&format!("metadata.name={name}"));
                let namespace = self.client.default_namespace().to_owned();
                Api::namespaced_with(self.client.clone(), &namespace, resource)
            }
        };
        let mut events = pin!(watcher(api, config));
        loop {
            // What comes at once goes together.
            let ready = if self.said.len() < CHUNK { events.next().now_or_never() } else { None };
            let event = match ready {
                Some(event) => event,
                None => {
                    if !self.say().await {
                        return Ended::Closed;
                    }
                    tokio::select! {
                        event = events.next() => event,
                        () = tokio::time::sleep(SETTLED), if self.failed > 0 => {
                            self.settled();
                            continue;
                        }
                    }
                }
            };
            match event {
                None => return Ended::Lost,
                Some(Ok(event)) => {
                    if !self.note(event).await {
                        return Ended::Closed;
                    }
                }
                Some(Err(error)) if self.streaming && cannot_stream(&error) => {
                    tracing::debug!(kind = self.reading.name(), "lists come as a whole: {error}");
                    self.streaming = false;
                    return Ended::Lost;
                }
                Some(Err(error)) => {
                    self.wait(&describe(&error)).await;
                    // Nothing is at this URL: the CRD is gone, or serves other versions now.
                    if code(&error) == Some(404) {
                        return Ended::Lost;
                    }
                }
            }
        }
    }

    /// Note an event. False when nobody listens any more.
    async fn note(&mut self, event: watcher::Event<Received>) -> bool {
        match event {
            watcher::Event::Init => self.index.begin(),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                self.said.extend(self.index.applied(&self.reading, object));
            }
            watcher::Event::Delete(object) => self.said.extend(self.index.deleted(&object)),
            watcher::Event::InitDone => {
                self.said.extend(self.index.finish());
                if !self.say().await {
                    return false;
                }
                self.read(SourceState::Watching).await;
            }
        }
        true
    }

    /// Hand over what was noted. False when nobody listens any more.
    async fn say(&mut self) -> bool {
        if self.said.is_empty() {
            return true;
        }
        let objects = std::mem::take(&mut self.said);
        let update = SourceUpdate { objects, files: None };
        self.inbox.send(Event::Source(update)).await.is_ok()
    }

    /// The kind has been read as a whole.
    async fn read(&mut self, state: SourceState) {
        if self.failed > 0 {
            tracing::info!(kind = self.reading.name(), "the API server answers again");
        }
        self.failed = 0;
        self.states.set(self.reading.name(), state, self.index.len());
        if let Some(unsynced) = self.unsynced.take() {
            unsynced.one_less().await;
        }
    }

    /// No failure for a while: the watch goes on where it was.
    fn settled(&mut self) {
        tracing::info!(kind = self.reading.name(), "the API server answers again");
        self.failed = 0;
        let state =
            if self.unsynced.is_some() { SourceState::Reading } else { SourceState::Watching };
        self.states.set(self.reading.name(), state, self.index.len());
    }

    /// An attempt failed: say so, and pause before the next.
    async fn wait(&mut self, error: &str) {
        let kind = self.reading.name();
        if self.failed == 0 {
            tracing::warn!(
                kind,
                "the API server does not answer ({error}); what was read stays in force"
            );
        } else {
            tracing::debug!(kind, failed = self.failed, "still no answer: {error}");
        }
        self.states.fail(kind, error, self.index.len());
        let (first, longest) = PAUSE;
        let pause = first.saturating_mul(1 << self.failed.min(6)).min(longest);
        self.failed = self.failed.saturating_add(1);
        // Replicas that lost the same server must not come back in step.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// The code that the API server answered with.
fn code(error: &watcher::Error) -> Option<u16> {
    use kube::Error::Api;
    match error {
        watcher::Error::InitialListFailed(Api(status))
        | watcher::Error::WatchStartFailed(Api(status))
        | watcher::Error::WatchFailed(Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Whether this may be an API server that cannot send a list as a stream: an old one (422), or one
/// on an old etcd (500, within the stream). To ask for the list as a whole is never wrong.
fn cannot_stream(error: &watcher::Error) -> bool {
    matches!(code(error), Some(400 | 422 | 500))
}

/// An error with what caused it.
fn describe(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
