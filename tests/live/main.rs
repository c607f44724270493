//! Real Envoys under traffic, while the files of their mesh are edited at random: a fleet of
//! gateways, and a gateway with two sidecars in namespaces of their own (root). They are served by
//! delta with virtual hosts one by one, by delta with routes as a whole (an old Envoy), and by state
//! of the world. Once all is quiet; once connections are cut, and controllers killed and stopped.
//!
//! In: `ENVOY_BIN`, `ENVOY_OLD_BIN`; `HEDDLE_LIVE_SEED`, `HEDDLE_LIVE_EDITS` and
//! `HEDDLE_LIVE_ENVOYS` to choose a run. Out: every answer that no state of the mesh allows which was
//! valid while it was asked for; a rejection; what is warming, or not as it should be, at the end.
//!
//! **Invariant:** what is allowed is computed before the answers are seen.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

mod journal;
mod mesh;
mod place;
mod replicas;
mod restart;

use std::path::{Path, PathBuf};

use anyhow::Result;
use house::mesh::Envoy;
use house::namespace;
use house::process::built;
use house::world::Edit;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use self::mesh::Mesh;
use self::place::{Envoys, Place};

const LEAST_OF_EACH: usize = 10;
/// Where edits are disturbed, one of so many is, and about so many at least.
const DISTURBED: (usize, usize) = (20, 12);

#[test]
fn given_a_fleet_when_the_mesh_is_edited_at_random_then_every_answer_is_allowed() {
    if let Some((envoys, controller)) = binaries() {
        edits(&controller, 80, false, |_, rng| Place::of_a_fleet(&envoys, fleet(), rng));
    }
}

#[test]
fn given_a_fleet_when_connections_are_cut_and_controllers_killed_then_every_answer_is_allowed() {
    if let Some((envoys, controller)) = binaries() {
        edits(&controller, 60, true, |_, rng| Place::of_a_fleet(&envoys, fleet(), rng));
    }
}

#[test]
fn given_a_fleet_when_its_controllers_restart_then_nothing_is_sent_again_and_no_request_fails() {
    if let Some((envoys, controller)) = binaries() {
        let place = |_: &Path, rng: &mut StdRng| Place::of_a_fleet(&envoys, fleet(), rng);
        run(&controller, place, async |mesh, _| restart::all(mesh).await);
    }
}

#[test]
fn given_a_gateway_and_two_sidecars_when_the_mesh_is_edited_then_every_answer_is_allowed() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let controller =
        || Ok(built(env!("CARGO"), "heddle-controller")?.to_string_lossy().into_owned());
    if namespace::is_within(controller) {
        let controller = PathBuf::from(namespace::carried());
        edits(&controller, 35, false, |work, rng| Place::of_a_mesh(&envoy, work, rng));
    }
}

/// The Envoys of a fleet and a controller, unless there is none; says what is not tested then.
fn binaries() -> Option<(Envoys, PathBuf)> {
    let Some(new) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return None;
    };
    let old = Envoy::old_binary();
    if old.is_none() {
        eprintln!(
            "SKIPPED: ENVOY_OLD_BIN names no Envoy before 1.40: no routes as a whole by delta"
        );
    }
    let controller = built(env!("CARGO"), "heddle-controller").expect("a controller");
    Some((Envoys { new, old }, controller))
}

/// Edit a mesh, each kind of edit at least some times.
fn edits(
    controller: &Path,
    count: usize,
    disturbed: bool,
    place: impl Fn(&Path, &mut StdRng) -> Result<Place>,
) {
    let count = number("HEDDLE_LIVE_EDITS").unwrap_or(count);
    let disturbances = (count / DISTURBED.0).max(DISTURBED.1);
    run(controller, place, async |mesh, rng| {
        for (index, edit) in plan(count, rng).into_iter().enumerate() {
            let disturbed = disturbed && rng.random_range(0..count) < disturbances;
            mesh.edit(index, edit, disturbed, rng).await?;
            if index % 1000 == 999 {
                eprintln!("{} edits", index + 1);
            }
        }
        Ok(())
    });
}

/// Start a mesh and its traffic, let something happen to it, and look at what came of it.
fn run(
    controller: &Path,
    place: impl Fn(&Path, &mut StdRng) -> Result<Place>,
    happens: impl AsyncFn(&mut Mesh, &mut StdRng) -> Result<()>,
) {
    let seed = number("HEDDLE_LIVE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    eprintln!("seed {seed} (HEDDLE_LIVE_SEED repeats the edits)");
    let mut rng = StdRng::seed_from_u64(seed);
    let work = tempfile::tempdir().expect("a folder");
    let result = place(work.path(), &mut rng).and_then(|place| {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let mut mesh = Mesh::start(controller, place, work.path(), seed).await?;
            let happened = happens(&mut mesh, &mut rng).await;
            // What clients saw may say why.
            let seen = mesh.end().await;
            happened.and(seen)
        })
    });
    result.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
}

/// How many gateways a fleet has.
fn fleet() -> usize {
    number("HEDDLE_LIVE_ENVOYS").unwrap_or(4)
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Each kind at least ten times, the rest at random, in random order.
fn plan(edits: usize, rng: &mut StdRng) -> Vec<Edit> {
    let least = LEAST_OF_EACH * Edit::ALL.len();
    let mut plan: Vec<Edit> = Edit::ALL.into_iter().cycle().take(least).collect();
    while plan.len() < edits {
        plan.extend(Edit::ALL.choose(rng));
    }
    plan.shuffle(rng);
    plan.truncate(edits);
    plan
}
