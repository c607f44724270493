//! A folder of YAML, watched.
//!
//! In: files. Out: `Source` events, and `Synced` once the first look is done.
//!
//! A file is read when its writer closes it or when it is moved into place, so a file that is
//! being written is never seen half; a writer that does not close is read once it has paused. The
//! folder as a whole is looked at again whenever anything but the content of files changes; when it
//! is replaced as a whole, the new one is watched.
//!
//! **Invariant:** keeps what it had when it cannot read: only a file that is known to be gone
//! takes its objects along.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;

use super::files::{Files, LARGEST_FILE};
use crate::event::{Event, SourceUpdate};

/// Pause after which a file that was written to but not closed is read.
const WRITER_PAUSE: Duration = Duration::from_millis(100);
/// Pause after which it is looked again whether a folder that vanished is back.
const LOST_PAUSE: Duration = Duration::from_millis(500);
/// File events that may wait. When full, the folder is looked at as a whole instead.
const WAITING: usize = 1024;

/// The source.
pub(crate) struct Directory {
    root: PathBuf,
    mesh_config: Option<PathBuf>,
    files: Files,
    events: mpsc::Receiver<Noticed>,
    overflow: watch::Receiver<u64>,
    watcher: RecommendedWatcher,
    /// Device and number of the folder that is watched: under its name there may be another one.
    watched: Option<(u64, u64)>,
}

/// What the file system said.
#[derive(Debug)]
enum Noticed {
    /// These files may have new content that is complete.
    Written(Vec<PathBuf>),
    /// These are being written.
    Writing(Vec<PathBuf>),
    /// These names went or came by a move. Editors write a new file and move it into the place of
    /// the old one.
    Moved(Vec<PathBuf>),
    /// Look at everything.
    Anything,
    /// Look at everything, and again: what came into a new folder before it was watched was missed.
    Folder,
}

/// Names that the next look must read.
#[derive(Debug, Default)]
struct Pending {
    all: bool,
    again: bool,
    written: BTreeSet<PathBuf>,
    writing: BTreeSet<PathBuf>,
    moved: BTreeSet<PathBuf>,
}

// === impl Directory ===

impl Directory {
    /// Watch a folder, and a file of mesh settings beside it.
    pub(crate) fn open(root: PathBuf, mesh_config: Option<PathBuf>) -> Result<Self> {
        let shown = root.display().to_string();
        match std::fs::metadata(&root) {
            Ok(found) if !found.is_dir() => {
                bail!("--source directory={shown} is a file; name the folder that it is in")
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!(
                    "--source directory={shown} does not exist; create the folder or correct the path"
                )
            }
            other => other.with_context(|| format!("--source directory={shown}"))?,
        };
        let root = std::fs::canonicalize(&root).with_context(|| format!("resolving {shown}"))?;
        let mesh_config = match mesh_config {
            None => None,
            Some(path) => {
                let why = || format!("--mesh-config {}", path.display());
                let path = std::path::absolute(&path).with_context(why)?;
                // The folder by the name under which it is watched; the file may be a link.
                let folder = path.parent().map(std::fs::canonicalize).transpose();
                match (folder.with_context(why)?, path.file_name()) {
                    (Some(folder), Some(name)) => Some(folder.join(name)),
                    _ => Some(path),
                }
            }
        };
        if let Some(path) = &mesh_config
            && !path.is_file()
        {
            bail!("--mesh-config {} is not a file", path.display());
        }
        let (sender, events) = mpsc::channel(WAITING);
        let (overflowed, overflow) = watch::channel(0_u64);
        let mut watcher = notify::recommended_watcher(move |event| {
            let Some(noticed) = noticed(event) else { return };
            if sender.try_send(noticed).is_err() {
                overflowed.send_modify(|n| *n += 1);
            }
        })
        .context("watching files")?;
        // Watched before the first look: what changes in between is seen twice, not missed.
        watcher
            .watch(&root, RecursiveMode::Recursive)
            .with_context(|| format!("watching {shown}"))?;
        if let Some(folder) = mesh_config.as_deref().and_then(Path::parent)
            && !folder.starts_with(&root)
        {
            watcher
                .watch(folder, RecursiveMode::NonRecursive)
                .with_context(|| format!("watching {}", folder.display()))?;
        }
        let files = Files::new(Arc::from("directory"));
        let watched = identity(&root);
        Ok(Self { root, mesh_config, files, events, overflow, watcher, watched })
    }

    /// Run until told to stop.
    pub(crate) async fn run(
        mut self,
        inbox: mpsc::Sender<Event>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        // Reading and lowering may take long; other tasks of this thread move on meanwhile.
        let update = block_in_place(|| {
            self.look(&BTreeSet::new());
            self.files.take_update()
        });
        if !say(update, &inbox).await || inbox.send(Event::Synced).await.is_err() {
            return Ok(());
        }
        let mut pending = Pending::default();
        loop {
            let pause = !pending.writing.is_empty() || pending.again;
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
                changed = self.overflow.changed() => {
                    if changed.is_err() { bail!("the file watcher ended") }
                    pending.all = true;
                }
                noticed = self.events.recv() => match noticed {
                    Some(noticed) => pending.add(noticed),
                    None => bail!("the file watcher ended"),
                },
                () = tokio::time::sleep(WRITER_PAUSE), if pause => {
                    let paused = std::mem::take(&mut pending.writing);
                    pending.written.extend(paused.into_iter().filter(|p| has_content(p)));
                    pending.all |= std::mem::take(&mut pending.again);
                }
                () = tokio::time::sleep(LOST_PAUSE), if self.watched.is_none() => pending.all = true,
            }
            while let Ok(noticed) = self.events.try_recv() {
                pending.add(noticed);
            }
            pending.writing.retain(|path| self.is_ours(path));
            for path in std::mem::take(&mut pending.moved) {
                pending.add(self.after_move(path));
            }
            if !pending.all && pending.written.is_empty() {
                continue;
            }
            let update = block_in_place(|| self.work_off(&mut pending));
            if !say(update, &inbox).await {
                return Ok(());
            }
        }
    }

    /// What a name that went or came by a move asks for.
    fn after_move(&self, path: PathBuf) -> Noticed {
        if path.is_dir() {
            Noticed::Folder
        } else if self.root.starts_with(&path) || self.files.any_below(&path) {
            // A folder that is gone.
            Noticed::Anything
        } else {
            Noticed::Written(vec![path])
        }
    }

    /// Read what has to be read. Returns what differs.
    fn work_off(&mut self, pending: &mut Pending) -> Option<SourceUpdate> {
        if std::mem::take(&mut pending.all) {
            self.watch_again();
            // A file that is being written is left alone until its writer has closed it or paused.
            self.look(&pending.writing);
        }
        for path in std::mem::take(&mut pending.written) {
            self.read(&path);
        }
        self.files.take_update()
    }

    /// Watch the folder that has the name now, if it is another one than before.
    fn watch_again(&mut self) {
        let found = identity(&self.root);
        if found == self.watched {
            return;
        }
        // The old watch may be gone with its folder.
        let _ = self.watcher.unwatch(&self.root);
        self.watched = found.filter(|_| {
            let watching = self.watcher.watch(&self.root, RecursiveMode::Recursive);
            watching.is_ok_and(|()| identity(&self.root) == found)
        });
        if self.watched.is_some() {
            tracing::info!(folder = %self.root.display(), "the folder is another one now; watching it");
        }
    }

    fn is_ours(&self, path: &Path) -> bool {
        Some(path) == self.mesh_config.as_deref() || is_config(path, &self.root)
    }

    /// Look at the whole folder, but leave these files alone.
    fn look(&mut self, writing: &BTreeSet<PathBuf>) {
        let mut found = BTreeSet::new();
        if let Err(error) = walk(&self.root, &mut found, 0) {
            // Unknown is not empty: nothing is taken away.
            let why = format!(
                "the folder cannot be listed ({error:#}); what it gave before stays in force"
            );
            self.files.fail(&self.root.clone(), &why);
        } else {
            let root = &self.root;
            let gone: Vec<_> = self
                .files
                .paths()
                .filter(|p| !found.contains(*p) && Some(*p) != self.mesh_config.as_deref())
                .chain(std::iter::once(&**root))
                .map(Path::to_owned)
                .collect();
            for path in gone {
                self.files.remove(&path);
            }
        }
        found.extend(self.mesh_config.clone());
        for path in found.difference(writing) {
            self.read(path);
        }
    }

    /// Read one file, if it is one of ours.
    fn read(&mut self, path: &Path) {
        if !self.is_ours(path) {
            return;
        }
        let is_mesh_config = Some(path) == self.mesh_config.as_deref();
        match bytes(path) {
            Ok(bytes) => self.files.set(path, &bytes, is_mesh_config),
            // A folder that cannot be listed as a whole may have lost its mount: keep everything.
            Err(error) if error.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                self.files.remove(path);
            }
            Err(error) => {
                let why = format!("the file cannot be read ({error}); what it gave stays in force");
                self.files.fail(path, &why);
            }
        }
    }
}

// === impl Pending ===

impl Pending {
    fn add(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Anything => self.all = true,
            Noticed::Folder => (self.all, self.again) = (true, true),
            Noticed::Moved(paths) => self.moved.extend(paths),
            Noticed::Writing(paths) => {
                self.writing.extend(paths);
            }
            Noticed::Written(paths) => {
                for path in paths {
                    self.writing.remove(&path);
                    self.written.insert(path);
                }
            }
        }
    }
}

/// Say what differs. False when nobody listens any more.
async fn say(update: Option<SourceUpdate>, inbox: &mpsc::Sender<Event>) -> bool {
    match update {
        Some(update) => inbox.send(Event::Source(update)).await.is_ok(),
        None => true,
    }
}

/// What an event of the file system means.
fn noticed(event: notify::Result<notify::Event>) -> Option<Noticed> {
    let Ok(event) = event else { return Some(Noticed::Anything) };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
            Some(Noticed::Written(event.paths))
        }
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => {
            Some(Noticed::Writing(event.paths))
        }
        // Its writer has it open and will close it.
        EventKind::Create(CreateKind::File) => Some(Noticed::Writing(event.paths)),
        EventKind::Create(_) => Some(Noticed::Folder),
        EventKind::Modify(ModifyKind::Name(_)) => Some(Noticed::Moved(event.paths)),
        EventKind::Modify(ModifyKind::Metadata(_)) => None,
        _ => Some(Noticed::Anything),
    }
}

/// Device and number of a folder; none when it is not there.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(folder).ok().filter(std::fs::Metadata::is_dir)?;
    Some((found.dev(), found.ino()))
}

/// Whether a file that is still open has anything to read yet.
fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |found| found.len() > 0)
}

/// Whether a path is a file that we read: YAML or JSON, no part of its name hidden.
fn is_config(path: &Path, root: &Path) -> bool {
    let Ok(below) = path.strip_prefix(root) else { return false };
    let hidden = below.iter().any(|part| part.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json")
}

/// Collect the files of a folder. Links are followed, to a depth that no honest tree has.
fn walk(folder: &Path, out: &mut BTreeSet<PathBuf>, depth: usize) -> Result<()> {
    const DEEPEST: usize = 32;
    if depth > DEEPEST {
        bail!("{} is nested deeper than {DEEPEST} folders", folder.display());
    }
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // What vanishes while it is looked at is simply not there.
        let Ok(found) = std::fs::metadata(&path) else { continue };
        if found.is_dir() {
            walk(&path, out, depth + 1)?;
        } else if is_config(&path, folder) {
            out.insert(path);
        }
    }
    Ok(())
}

/// The bytes of a file.
fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let too_large = || {
        let limit = LARGEST_FILE >> 20;
        let message = format!("it is larger than {limit} MiB; split it into several files");
        std::io::Error::new(ErrorKind::FileTooLarge, message)
    };
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(too_large());
    }
    Ok(bytes)
}
