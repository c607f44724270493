//! Files and folders of YAML, as `-f` names them.
//!
//! In: paths. Out: objects, each with the file it stands in, and problems.
//!
//! **Invariant:** the order is that of sorted paths, so that the same files give the same output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use config::RawObject;
use config::yaml::Mark;
use model::{ObjectRef, Problem, Reason};

/// A problem, and where it stands if that is known.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) problem: Problem,
    /// Index into `Files::texts`, and the place there.
    pub(crate) place: Option<(usize, Mark)>,
}

/// A document that could not be read at all.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) file: usize,
    pub(crate) at: Mark,
    pub(crate) message: String,
}

/// Everything that was read.
#[derive(Default)]
pub(crate) struct Files {
    /// Paths and texts.
    pub(crate) texts: Vec<(PathBuf, Arc<str>)>,
    /// Objects, each with the index of its file.
    pub(crate) objects: BTreeMap<Arc<ObjectRef>, (usize, RawObject)>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) unreadable: Vec<Unreadable>,
}

/// The source that files are of, in every `ObjectRef`.
pub(crate) fn source() -> Arc<str> {
    Arc::from("files")
}

// === impl Files ===

impl Files {
    /// Read every file that the paths name; folders are walked.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Self::default();
        for (path, bytes) in contents(paths)? {
            files.add_bytes(path, &bytes);
        }
        Ok(files)
    }

    /// Read one more file as mesh settings.
    pub(crate) fn read_mesh_config(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let Some((file, text)) = self.text_of(path.to_owned(), &bytes) else { return Ok(()) };
        match config::read_mesh_config(&source(), &text) {
            Ok(object) => self.take(file, object),
            Err(error) => {
                self.unreadable.push(Unreadable { file, at: error.at, message: error.message });
            }
        }
        Ok(())
    }

    fn add_bytes(&mut self, path: PathBuf, bytes: &[u8]) {
        let Some((file, text)) = self.text_of(path, bytes) else { return };
        let read = config::read(&source(), &text);
        for error in read.syntax {
            self.unreadable.push(Unreadable { file, at: error.at, message: error.message });
        }
        for located in read.problems {
            let place = Some((file, located.at));
            self.findings.push(Finding { problem: located.problem, place });
        }
        for object in read.objects {
            self.take(file, object);
        }
    }

    /// The text of a file, kept for messages. None where it is no text, which is noted.
    fn text_of(&mut self, path: PathBuf, bytes: &[u8]) -> Option<(usize, Arc<str>)> {
        let file = self.texts.len();
        let text: Arc<str> = String::from_utf8_lossy(bytes).into();
        self.texts.push((path, Arc::clone(&text)));
        let Err(error) = std::str::from_utf8(bytes) else { return Some((file, text)) };
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
        let number = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
        let line = number(before.matches('\n').count());
        let column = number(before.rsplit('\n').next().unwrap_or_default().chars().count());
        let message = "the file is not UTF-8 from here on; save it as UTF-8".to_owned();
        self.unreadable.push(Unreadable { file, at: Mark { line, column }, message });
        None
    }

    /// Take an object over. Of two files with one object, the first by path is in force.
    fn take(&mut self, file: usize, object: RawObject) {
        let owner = Arc::clone(&object.owner);
        let path = |file: usize| self.texts.get(file).map(|(path, _)| path.clone());
        let (file, object, first) = match self.objects.remove(&owner) {
            None => {
                self.objects.insert(owner, (file, object));
                return;
            }
            Some((other, earlier)) if path(other) <= path(file) => {
                self.objects.insert(Arc::clone(&owner), (other, earlier));
                (file, object, other)
            }
            Some((other, earlier)) => {
                self.objects.insert(Arc::clone(&owner), (file, object));
                (other, earlier, file)
            }
        };
        let message = format!(
            "stands in {} already; that one is in force, remove one of the two",
            path(first).unwrap_or_default().display()
        );
        let problem = Problem::error(&owner, "", Reason::DuplicateObject, message);
        let place = Some((file, object.locate("")));
        self.findings.push(Finding { problem, place });
    }

    /// File of the Pod of this name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Path> {
        let is =
            |o: &ObjectRef| o.kind.name == "Pod" && *o.namespace == *namespace && *o.name == *name;
        let (_, (file, _)) = self.objects.iter().find(|(owner, _)| is(owner))?;
        self.texts.get(*file).map(|(path, _)| path.as_path())
    }

    /// Where the field of an object stands.
    pub(crate) fn place(&self, object: &ObjectRef, field: &str) -> Option<(usize, Mark)> {
        self.objects.get(object).map(|(file, raw)| (*file, raw.locate(field)))
    }
}

/// What is in every file that the paths name, standard input first; folders are walked.
pub(crate) fn contents(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for path in paths {
        match path.to_str() {
            Some("-") if out.is_empty() => {
                let mut bytes = Vec::new();
                let mut stdin = std::io::stdin().lock();
                stdin.read_to_end(&mut bytes).context("reading standard input")?;
                out.push((PathBuf::from("<stdin>"), bytes));
            }
            // There is no more to read the second time.
            Some("-") => {}
            _ => collect(path, 0, &mut all)?,
        }
    }
    all.sort();
    // One file may be named in two ways.
    let mut seen = BTreeSet::new();
    for path in all {
        if seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
            let bytes = std::fs::read(&path);
            let bytes = bytes.with_context(|| format!("reading {}", path.display()))?;
            out.push((path, bytes));
        }
    }
    Ok(out)
}

/// Add a file, or every YAML and JSON file below a folder. Hidden names are passed over.
///
/// Links are followed, to a depth that no honest tree has.
fn collect(path: &Path, depth: usize, out: &mut Vec<PathBuf>) -> Result<()> {
    const DEEPEST: usize = 32;
    if depth > DEEPEST {
        bail!(
            "{} is nested deeper than {DEEPEST} folders; is it a circle of links?",
            path.display()
        );
    }
    let kind = std::fs::metadata(path).with_context(|| format!("opening {}", path.display()))?;
    if kind.is_dir() {
        let entries =
            std::fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", path.display()))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                collect(&entry.path(), depth + 1, out)?;
            }
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if depth == 0 || matches!(extension, "yaml" | "yml" | "json") {
        if !kind.is_file() {
            bail!("{} is neither a file nor a folder", path.display());
        }
        out.push(path.to_owned());
    }
    Ok(())
}
