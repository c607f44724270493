//! Files and folders of YAML, as `-f` names them.
//!
//! In: paths. Out: objects, each with the file it stands in, and problems.
//!
//! **Invariant:** the order is that of sorted paths, so that the same files give the same output.

use std::collections::BTreeMap;
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
    pub(crate) texts: Vec<(PathBuf, String)>,
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
        let mut all = Vec::new();
        for path in paths {
            collect(path, true, &mut all)?;
        }
        all.sort();
        all.dedup();
        let mut files = Self::default();
        for path in all {
            let bytes =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            files.add(path, bytes);
        }
        Ok(files)
    }

    /// Read one more file as mesh settings.
    pub(crate) fn read_mesh_config(&mut self, path: &Path) -> Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let file = self.texts.len();
        match config::read_mesh_config(&source(), &text) {
            Ok(object) => {
                self.objects.insert(Arc::clone(&object.owner), (file, object));
            }
            Err(error) => {
                self.unreadable.push(Unreadable { file, at: error.at, message: error.message });
            }
        }
        self.texts.push((path.to_owned(), text));
        Ok(())
    }

    fn add(&mut self, path: PathBuf, bytes: Vec<u8>) {
        let file = self.texts.len();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count() + 1;
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                let message = "the file is not UTF-8 from here on".to_owned();
                self.unreadable.push(Unreadable { file, at: Mark { line, column: 1 }, message });
                self.texts.push((path, String::new()));
                return;
            }
        };
        let read = config::read(&source(), &text);
        for error in read.syntax {
            self.unreadable.push(Unreadable { file, at: error.at, message: error.message });
        }
        for located in read.problems {
            let place = Some((file, located.at));
            self.findings.push(Finding { problem: located.problem, place });
        }
        for object in read.objects {
            match self.objects.get(&object.owner) {
                None => {
                    self.objects.insert(Arc::clone(&object.owner), (file, object));
                }
                Some((first, _)) => {
                    let first = self.texts.get(*first).map(|(p, _)| p.display().to_string());
                    let message = format!(
                        "stands in {} already; that one is in force, remove one of the two",
                        first.unwrap_or_default()
                    );
                    let problem =
                        Problem::error(&object.owner, "", Reason::DuplicateObject, message);
                    let place = Some((file, object.locate("")));
                    self.findings.push(Finding { problem, place });
                }
            }
        }
        self.texts.push((path, text));
    }

    /// Where the field of an object stands.
    pub(crate) fn place(&self, object: &ObjectRef, field: &str) -> Option<(usize, Mark)> {
        self.objects.get(object).map(|(file, raw)| (*file, raw.locate(field)))
    }
}

/// Add a file, or every YAML and JSON file below a folder. Hidden names are passed over.
fn collect(path: &Path, named: bool, out: &mut Vec<PathBuf>) -> Result<()> {
    let kind = std::fs::metadata(path).with_context(|| format!("opening {}", path.display()))?;
    if kind.is_dir() {
        let entries =
            std::fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", path.display()))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                collect(&entry.path(), false, out)?;
            }
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if named || matches!(extension, "yaml" | "yml" | "json") {
        if !kind.is_file() {
            bail!("{} is neither a file nor a folder", path.display());
        }
        out.push(path.to_owned());
    }
    Ok(())
}
