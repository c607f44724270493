//! The writer of status: conditions on the objects that users write, and events for rejections.
//!
//! In: the world that the loop publishes, and whether this replica leads. Out: server-side apply of
//! what differs from what the object has.
//!
//! **Invariant:** writes as the leader only, a bounded number a second; what it writes follows from
//! the world alone, so a write that fails is simply tried again.

pub(crate) mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use config::{Known, known_kind};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, ResourceExt};
use model::{ObjectRef, Problem};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::conditions::Condition;
use crate::admin::rfc3339;
use crate::event::SourceObject;
use crate::world::{Shared, World};

/// How we sign what we write.
const MANAGER: &str = "heddle";
/// Pause between looks at the world, and objects written at each at most.
const PACE: (Duration, usize) = (Duration::from_millis(250), 25);
/// Time that a write has to come back through the watch before it is done again.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest note of an event. Unit: bytes; the API takes 1,024.
const LONGEST_NOTE: usize = 1000;

/// The writer.
pub(crate) struct StatusWriter {
    client: Client,
    recorder: Recorder,
    shared: Arc<Shared>,
    /// What was written, and when.
    written: BTreeMap<Arc<ObjectRef>, (Vec<Condition>, Instant)>,
    /// The world that needs nothing more to be written.
    done: Option<Arc<World>>,
}

// === impl StatusWriter ===

impl StatusWriter {
    pub(crate) fn new(client: Client, replica: String, shared: Arc<Shared>) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(replica) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, shared, written: BTreeMap::new(), done: None }
    }

    /// Run until told to stop.
    pub(crate) async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Result<()> {
        let (pause, _) = PACE;
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if !*self.shared.leading.borrow() || !*self.shared.ready.borrow() {
                self.written.clear();
                self.done = None;
                continue;
            }
            let world = self.shared.world.load_full();
            if self.done.as_ref().is_some_and(|done| Arc::ptr_eq(done, &world)) {
                continue;
            }
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
                all = self.write(&world) => if all { self.done = Some(world) },
            }
        }
    }

    /// Write what differs. Returns whether nothing is left to be written.
    async fn write(&mut self, world: &World) -> bool {
        let (_, most) = PACE;
        let mut between: BTreeMap<&ObjectRef, Vec<&Problem>> = BTreeMap::new();
        for problem in world.problems.iter() {
            between.entry(&problem.object).or_default().push(problem);
        }
        self.written.retain(|owner, _| world.objects.contains_key(owner));
        let mut budget = most;
        let mut all = true;
        for (owner, object) in world.objects.iter() {
            let Some(known) = known_kind(&owner.kind.group, &owner.kind.name) else { continue };
            if !known.in_api || known.kind.spec().is_none() {
                continue;
            }
            let others = between.get(&**owner).into_iter().flatten().copied();
            let mut problems: Vec<&Problem> = object.problems.iter().chain(others).collect();
            problems.sort();
            problems.dedup();
            let wanted = conditions::of(&problems, object.generation);
            if same(&wanted, &object.conditions) {
                continue;
            }
            let recently = |(written, at): &(Vec<Condition>, Instant)| {
                same(&wanted, written) && at.elapsed() < AGAIN
            };
            all = false;
            if self.written.get(owner).is_some_and(recently) {
                continue;
            }
            if budget == 0 {
                return false;
            }
            budget -= 1;
            if let Err(error) = self.write_one(known, owner, object, &wanted).await {
                tracing::debug!("the status of {owner} cannot be written: {error}");
                return false;
            }
            self.written.insert(Arc::clone(owner), (wanted, Instant::now()));
        }
        all
    }

    async fn write_one(
        &self,
        known: &Known,
        owner: &ObjectRef,
        object: &SourceObject,
        wanted: &[Condition],
    ) -> kube::Result<()> {
        let now = rfc3339(SystemTime::now());
        let before = |name: &str| object.conditions.iter().find(|c| c.name == name);
        let conditions: Vec<Value> = wanted
            .iter()
            .map(|condition| {
                let kept = before(&condition.name).filter(|b| b.status == condition.status);
                let since = kept.map_or_else(|| now.clone(), |b| b.since.clone());
                Condition { since, ..condition.clone() }.to_json()
            })
            .collect();
        let mut last = Ok(());
        for version in known.versions {
            let resource = ApiResource {
                group: known.group.to_owned(),
                version: (*version).to_owned(),
                api_version: format!("{}/{version}", known.group),
                kind: known.name.to_owned(),
                plural: known.plural.to_owned(),
            };
            let api: Api<DynamicObject> = match &*owner.namespace {
                "" => Api::all_with(self.client.clone(), &resource),
                namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
            };
            let body = json!({
                "apiVersion": resource.api_version,
                "kind": known.name,
                "metadata": {"name": &*owner.name},
                "status": {"conditions": conditions},
            });
            let signed = PatchParams::apply(MANAGER).force();
            match api.patch_status(&owner.name, &signed, &Patch::Apply(&body)).await {
                Ok(patched) => {
                    let reference = ObjectReference {
                        api_version: Some(resource.api_version.clone()),
                        kind: Some(known.name.to_owned()),
                        namespace: Some(owner.namespace.to_string()).filter(|n| !n.is_empty()),
                        name: Some(owner.name.to_string()),
                        uid: patched.uid(),
                        ..ObjectReference::default()
                    };
                    return self.report(&reference, wanted, before("Accepted")).await;
                }
                // This version may not be served, or the object may be gone.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    last = Err(kube::Error::Api(status));
                }
                Err(error) => return Err(error),
            }
        }
        last
    }

    /// Say by an event that an object is not accepted, where that is news.
    async fn report(
        &self,
        reference: &ObjectReference,
        wanted: &[Condition],
        before: Option<&Condition>,
    ) -> kube::Result<()> {
        let Some(rejected) = wanted.iter().find(|c| c.name == "Accepted" && c.status == "False")
        else {
            return Ok(());
        };
        if before.is_some_and(|b| b.message == rejected.message) {
            return Ok(());
        }
        let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= LONGEST_NOTE;
        let note = rejected.message.char_indices().take_while(fits).map(|(_, c)| c).collect();
        let event = Event {
            type_: EventType::Warning,
            reason: rejected.reason.clone(),
            note: Some(note),
            action: "Validate".to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, reference).await
    }
}

/// Whether two sets of conditions say the same.
fn same(a: &[Condition], b: &[Condition]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.says(b))
}
