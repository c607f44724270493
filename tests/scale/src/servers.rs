//! The servers that are measured: Heddle, and others with the same resources.
//!
//! In: a world, or what a proxy of Heddle was sent. Out: a process with an address, which takes
//! changes.
//!
//! Heddle is fed by files, as a user without a cluster feeds it. The floor and go-control-plane know
//! no objects: they get Heddle's own resources, so that the same bytes go over the wire.
//!
//! **Invariant:** each server is a process of its own, whose time and memory are its own.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use house::mesh::{Controller, free_address};
use house::process::{Leashed, Processor, sibling};
use prost::Message as _;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use crate::fleet::Fleet;
use crate::known::{TYPES, with_change};
use crate::world::{Change, Subject, World};

const GO_CONTROL_PLANE: &str = "go-control-plane";
const PATIENCE: Duration = Duration::from_secs(120);

/// What one proxy holds of Heddle: what other servers serve to all.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    resources: Vec<Resource>,
    /// Places of those that show a subject.
    subjects: HashMap<Subject, Vec<usize>>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// How long it took from its start until it was ready.
    pub(crate) ready: Duration,
    kind: Kind,
    work: TempDir,
    world: World,
}

enum Kind {
    Heddle { controller: Controller, secure: bool },
    Peer { process: Leashed, control: TcpStream, recording: Recording },
}

// === impl Recording ===

impl Recording {
    /// What the first proxy of a fleet holds.
    pub(crate) fn of(fleet: &Fleet) -> Result<Self> {
        fleet.look(|proxies, known| {
            let mut recording = Self { resources: Vec::new(), subjects: HashMap::new() };
            for id in TYPES.iter().flat_map(|kind| proxies[0].holds(*kind)) {
                let content = known.content(id);
                for change in &content.changes {
                    let places = recording.subjects.entry(change.subject).or_default();
                    places.push(recording.resources.len());
                }
                recording.resources.push(Resource {
                    name: known.name(content.kind, content.name).to_owned(),
                    version: content.version.clone(),
                    resource: Some(content.body.clone()),
                    ..Default::default()
                });
            }
            recording
        })
    }

    /// The resources that a change is seen in, with it.
    fn with(&self, change: Change) -> Result<Vec<Resource>> {
        let places = self.subjects.get(&change.subject);
        let places = places.with_context(|| format!("nothing shows {:?}", change.subject))?;
        let changed = places.iter().map(|place| {
            let mut resource = self.resources[*place].clone();
            let body = with_change(&resource.resource.unwrap_or_default(), change)?;
            resource.version = format!("{:016x}", xxh3_64(&body.value));
            resource.resource = Some(body);
            Ok(resource)
        });
        changed.collect()
    }
}

// === impl Server ===

impl Server {
    /// A controller on a folder with this world.
    pub(crate) fn heddle(world: World, secure: bool) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let mesh = work.path().join("mesh");
        std::fs::create_dir(&mesh)?;
        for (name, text) in world.files() {
            std::fs::write(mesh.join(name), text)?;
        }
        let began = Instant::now();
        let (controller, address) = heddle(work.path(), free_address()?, free_address()?, secure)?;
        let kind = Kind::Heddle { controller, secure };
        Ok(Self { name: "Heddle", address, ready: began.elapsed(), kind, work, world })
    }

    /// The least that any server does: fixed bytes over raw HTTP/2.
    pub(crate) fn floor(world: World, recording: &Recording) -> Result<Self> {
        Self::peer("floor", &std::env::current_exe()?, &["floor"], world, recording)
    }

    /// A server of Go that is built on this library, as many are; none without Go.
    pub(crate) fn go_control_plane(world: World, recording: &Recording) -> Result<Option<Self>> {
        let binary = match built_go()? {
            Some(binary) => binary,
            None => return Ok(None),
        };
        Self::peer(GO_CONTROL_PLANE, &binary, &[], world, recording).map(Some)
    }

    fn peer(
        name: &'static str,
        binary: &Path,
        first: &[&str],
        world: World,
        recording: &Recording,
    ) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let [address, control] = [free_address()?, free_address()?];
        let args: Vec<String> = first
            .iter()
            .map(|a| (*a).to_owned())
            .chain([address, control].map(|a| a.to_string()))
            .collect();
        let began = Instant::now();
        let mut process = Leashed::start(name, binary, &args, &work.path().join("log"))?;
        let mut control = loop {
            if let Ok(stream) = TcpStream::connect(control) {
                break stream;
            }
            process.check()?;
            ensure!(began.elapsed() < PATIENCE, "{name} does not listen at {control}");
            std::thread::sleep(Duration::from_millis(5));
        };
        control.set_nodelay(true)?;
        tell(&mut control, recording.resources.clone())?;
        control.set_read_timeout(Some(PATIENCE))?;
        control.read_exact(&mut [0]).with_context(|| format!("{name}: {}", process.log_end()))?;
        let kind = Kind::Peer { process, control, recording: recording.clone() };
        Ok(Self { name, address, ready: began.elapsed(), kind, work, world })
    }

    /// The folder of the authority.
    pub(crate) fn identity(&self) -> PathBuf {
        self.work.path().join("identity")
    }

    /// Whether what it serves in the end is for us to answer for.
    pub(crate) fn is_ours(&self) -> bool {
        self.name != GO_CONTROL_PLANE
    }

    /// Make these changes. Out: when the first was begun.
    pub(crate) fn change(&mut self, changes: &[Change]) -> Result<Instant> {
        match &mut self.kind {
            Kind::Heddle { .. } => {
                let mesh = self.work.path().join("mesh");
                let files: Vec<_> = changes.iter().map(|change| change.file(&self.world)).collect();
                let began = Instant::now();
                for (name, text) in files {
                    // In place: a file that is moved in makes the source look at the whole folder.
                    std::fs::write(mesh.join(name), text)?;
                }
                Ok(began)
            }
            Kind::Peer { control, recording, .. } => {
                let mut resources = Vec::new();
                for change in changes {
                    resources.extend(recording.with(*change)?);
                }
                let began = Instant::now();
                tell(control, resources)?;
                Ok(began)
            }
        }
    }

    /// Kill it without a warning, and start it again at the same address.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        let Kind::Heddle { controller, secure } = &mut self.kind else {
            anyhow::bail!("only Heddle is killed");
        };
        let child = i32::try_from(controller.process().child()?)?;
        let child = rustix::process::Pid::from_raw(child).context("a process has an id")?;
        rustix::process::kill_process(child, rustix::process::Signal::KILL)?;
        while controller.process().child().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (plain, secure) = (controller.xds, *secure);
        let other = if secure { self.address } else { free_address()? };
        let (started, _) = heddle(self.work.path(), plain, other, secure)?;
        *controller = started;
        Ok(())
    }

    pub(crate) fn processor(&self) -> Result<Processor> {
        Ok(Processor::of(self.process().child()?))
    }

    /// Unit: bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.process().resident()
    }

    /// The most that it was since it started. Unit: bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.process().peak()
    }

    fn process(&self) -> &Leashed {
        match &self.kind {
            Kind::Heddle { controller, .. } => controller.process(),
            Kind::Peer { process, .. } => process,
        }
    }
}

/// Start a controller in a working folder, and wait until it is ready. Out: also where proxies
/// connect.
fn heddle(
    work: &Path,
    xds: SocketAddr,
    other: SocketAddr,
    secure: bool,
) -> Result<(Controller, SocketAddr)> {
    let mut more = vec!["--log-level".to_owned(), "error".to_owned()];
    if secure {
        let identity = work.join("identity").display().to_string();
        more.extend(["--identity-directory".to_owned(), identity]);
        more.extend(["--secure-address".to_owned(), other.to_string()]);
    }
    let (mesh, log) = (work.join("mesh"), work.join("controller.log"));
    let binary = sibling("heddle-controller")?;
    let mut controller = Controller::launch_at(&binary, &mesh, &log, xds, &more)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(controller.ready())?;
    Ok((controller, if secure { other } else { xds }))
}

/// Send resources to a server that knows no objects: a length of four bytes and a message.
fn tell(control: &mut TcpStream, resources: Vec<Resource>) -> Result<()> {
    let message = DeltaDiscoveryResponse { resources, ..Default::default() }.encode_to_vec();
    let length = u32::try_from(message.len())?.to_be_bytes();
    control.write_all(&[&length[..], &message].concat()).context("telling a server of a change")
}

/// The Go server, built now unless it is up to date; none without Go.
fn built_go() -> Result<Option<PathBuf>> {
    static SKIPPED: Once = Once::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("go-control-plane");
    if !Command::new("go").arg("version").output().is_ok_and(|o| o.status.success()) {
        SKIPPED.call_once(|| {
            println!("SKIPPED: go-control-plane is not measured: there is no Go (`go version`)");
        });
        return Ok(None);
    }
    let binary = std::env::current_exe()?.with_file_name("scale-go-control-plane");
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-o"]).arg(&binary).arg(".").current_dir(&folder);
    let status = build.status().context("building the server of go-control-plane")?;
    ensure!(status.success(), "go build in {} failed: {status}", folder.display());
    Ok(Some(binary))
}
