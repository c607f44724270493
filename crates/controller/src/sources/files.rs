//! The objects of a set of files: which file gives which object, and what was wrong with each.
//!
//! In: the bytes of one file at a time, or that it is gone. Out: the objects that differ, lowered.
//!
//! **Invariant:** a file that cannot be read as a whole keeps the objects that it gave before; of
//! two files with one object, the first by path is in force, whatever came first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use config::yaml::Mark;
use config::{Places, RawObject};
use model::{Change, ObjectRef, Row, Severity};
use xxhash_rust::xxh3::xxh3_128;

use crate::event::{FileProblem, SourceObject, SourceUpdate, Written};

/// Files that are larger are refused: no rule needs as much, and a mistake may.
pub(super) const LARGEST_FILE: u64 = 16 << 20;

/// Files and what they gave.
#[derive(Default)]
pub(super) struct Files {
    source: Option<Arc<str>>,
    /// Objects of each file.
    files: BTreeMap<Arc<Path>, File>,
    /// Files of each object in order, the first in force.
    holders: BTreeMap<Arc<ObjectRef>, Vec<Arc<Path>>>,
    /// Objects that stand in several.
    twice: BTreeSet<Arc<ObjectRef>>,
    /// Objects that have to be said anew.
    dirty: BTreeSet<Arc<ObjectRef>>,
    /// Whether the problems of files have to be said anew.
    problems_dirty: bool,
}

#[derive(Default)]
struct File {
    objects: BTreeMap<Arc<ObjectRef>, Lowered>,
    problems: Vec<FileProblem>,
    /// Digest of what was read last; none when nothing could be.
    digest: Option<u128>,
    mesh_config: bool,
}

/// An object as a file gives it. What it was written as is not kept: that takes far more.
#[derive(Clone)]
struct Lowered {
    rows: Vec<Row>,
    object: Arc<SourceObject>,
    /// Digest of all that it means.
    digest: u128,
}

// === impl Files ===

impl Files {
    /// No files yet, of this source.
    pub(super) fn new(source: Arc<str>) -> Self {
        Self { source: Some(source), problems_dirty: true, ..Self::default() }
    }

    /// Paths that are known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(|path| &**path)
    }

    /// Whether any is in this folder.
    pub(super) fn any_below(&self, folder: &Path) -> bool {
        let after = (Bound::Excluded(folder), Bound::Unbounded);
        self.files.range::<Path, _>(after).next().is_some_and(|(path, _)| path.starts_with(folder))
    }

    /// A file has these bytes now.
    pub(super) fn set(&mut self, path: &Path, bytes: &[u8], mesh_config: bool) {
        let digest = Some(xxh3_128(bytes));
        let known = self.files.get_key_value(path);
        if known.is_some_and(|(_, f)| f.digest == digest && f.mesh_config == mesh_config) {
            return;
        }
        let path = known.map_or_else(|| Arc::from(path), |(path, _)| Arc::clone(path));
        let (objects, problems) = self.read(&path, bytes, mesh_config);
        let objects = match objects {
            Some(objects) => objects,
            // Unreadable: keep what was there.
            None => self.files.get(&path).map(|f| f.objects.clone()).unwrap_or_default(),
        };
        for problem in &problems {
            let FileProblem { file, at, severity, message, .. } = problem;
            let place = format!("{}:{}", file.display(), at.line);
            match severity {
                Severity::Error => tracing::error!(%place, "{message}"),
                Severity::Warning => tracing::warn!(%place, "{message}"),
            }
        }
        self.replace(&path, Some(File { objects, problems, digest, mesh_config }));
    }

    /// A file could not be read; it keeps what it gave.
    pub(super) fn fail(&mut self, path: &Path, why: &str) {
        let problems = vec![problem(path, Mark::default(), Severity::Error, why)];
        let file = self.files.entry(Arc::from(path)).or_default();
        // Whatever can be read next is news, even the same bytes.
        file.digest = None;
        if file.problems == problems {
            return;
        }
        tracing::error!(file = %path.display(), "{why}");
        file.problems = problems;
        self.problems_dirty = true;
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, path: &Path) {
        if let Some((path, _)) = self.files.get_key_value(path) {
            self.replace(&Arc::clone(path), None);
        }
    }

    /// What differs since this was last asked; none when nothing does.
    pub(super) fn take_update(&mut self) -> Option<SourceUpdate> {
        if self.dirty.is_empty() && !self.problems_dirty {
            return None;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let objects = dirty.into_iter().map(|owner| self.object(owner)).collect();
        let files = std::mem::take(&mut self.problems_dirty).then(|| self.problems());
        Some(SourceUpdate { objects, files })
    }

    fn object(&self, owner: Arc<ObjectRef>) -> (Change, Option<Arc<SourceObject>>) {
        let holder = self.holders.get(&owner).and_then(|holders| holders.first());
        let Some(lowered) = holder.and_then(|path| self.files.get(path)?.objects.get(&owner))
        else {
            return (Change { owner, rows: Vec::new() }, None);
        };
        let Lowered { rows, object, .. } = lowered.clone();
        for problem in &object.problems {
            let place = object.place(&problem.field).unwrap_or_default();
            match problem.severity {
                Severity::Error => tracing::error!(%place, "{problem}"),
                Severity::Warning => tracing::warn!(%place, "{problem}"),
            }
        }
        (Change { owner, rows }, Some(object))
    }

    /// Problems of files, and objects that stand in a file that is not the first.
    fn problems(&self) -> Vec<FileProblem> {
        let mut all: Vec<FileProblem> =
            self.files.values().flat_map(|f| f.problems.iter().cloned()).collect();
        for owner in &self.twice {
            let mut paths = self.holders.get(owner).into_iter().flatten();
            let Some(first) = paths.next() else { continue };
            for path in paths {
                let lowered = self.files.get(path).and_then(|f| f.objects.get(owner));
                let places = lowered.and_then(Lowered::places);
                let message = format!(
                    "{owner} stands in {} already; that one is in force, remove one of the two",
                    first.display()
                );
                all.push(FileProblem {
                    object: Some(Arc::clone(owner)),
                    ..problem(
                        path,
                        places.map(|places| places.locate("")).unwrap_or_default(),
                        Severity::Error,
                        &message,
                    )
                });
            }
        }
        all.sort();
        all
    }

    fn replace(&mut self, path: &Arc<Path>, new: Option<File>) {
        let old = self.files.remove(path).unwrap_or_default();
        let empty = BTreeMap::new();
        let objects = new.as_ref().map_or(&empty, |f| &f.objects);
        for (owner, lowered) in &old.objects {
            if objects.get(owner).is_some_and(|o| o.same(lowered)) {
                continue;
            }
            self.dirty.insert(Arc::clone(owner));
        }
        for owner in old.objects.keys().filter(|owner| !objects.contains_key(*owner)) {
            if let Some(holders) = self.holders.get_mut(owner) {
                holders.retain(|holder| holder != path);
                if holders.is_empty() {
                    self.holders.remove(owner);
                }
            }
        }
        for owner in objects.keys().filter(|owner| !old.objects.contains_key(*owner)) {
            self.dirty.insert(Arc::clone(owner));
            let holders = self.holders.entry(Arc::clone(owner)).or_default();
            if let Err(place) = holders.binary_search(path) {
                holders.reserve_exact(1);
                holders.insert(place, Arc::clone(path));
            }
        }
        let several = |owner: &Arc<ObjectRef>| self.holders.get(owner).is_some_and(|h| h.len() > 1);
        for owner in old.objects.keys().chain(objects.keys()) {
            // Even where it stays so, its place may be another.
            let before = match several(owner) {
                true => !self.twice.insert(Arc::clone(owner)),
                false => self.twice.remove(owner),
            };
            self.problems_dirty |= before || self.twice.contains(owner);
        }
        let problems = new.as_ref().map_or(&[][..], |file| &file.problems);
        self.problems_dirty |= old.problems != problems;
        if let Some(new) = new {
            self.files.insert(Arc::clone(path), new);
        }
    }

    /// Read bytes. No objects when it is unknown what the file holds.
    #[allow(clippy::type_complexity)]
    fn read(
        &self,
        path: &Arc<Path>,
        bytes: &[u8],
        mesh_config: bool,
    ) -> (Option<BTreeMap<Arc<ObjectRef>, Lowered>>, Vec<FileProblem>) {
        let kept = "; what the file gave before stays in force";
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let lines = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
                let at = Mark { line: u32::try_from(lines + 1).unwrap_or(u32::MAX), column: 1 };
                let message = format!("the file is not UTF-8 from here on{kept}");
                return (None, vec![problem(path, at, Severity::Error, &message)]);
            }
        };
        let source = self.source.clone().unwrap_or_else(|| Arc::from("directory"));
        if mesh_config {
            return match config::read_mesh_config(&source, text) {
                Ok(raw) => (Some(BTreeMap::from([lowered(path, raw)])), Vec::new()),
                Err(error) => {
                    let message = format!("not a YAML document: {}{kept}", error.message);
                    (None, vec![problem(path, error.at, Severity::Error, &message)])
                }
            };
        }
        let read = config::read(&source, text);
        let mut problems: Vec<FileProblem> = read
            .problems
            .into_iter()
            .map(|located| {
                let model::Problem { object, field, severity, message, .. } = located.problem;
                let space = if field.is_empty() { "" } else { " " };
                let message = format!("{object}{space}{field}: {message}");
                FileProblem {
                    object: Some(object),
                    ..problem(path, located.at, severity, &message)
                }
            })
            .collect();
        let unreadable = !read.syntax.is_empty();
        problems.extend(read.syntax.into_iter().map(|error| {
            let message = format!("not a YAML document: {}{kept}", error.message);
            problem(path, error.at, Severity::Error, &message)
        }));
        let objects = read.objects.into_iter().map(|raw| lowered(path, raw));
        ((!unreadable).then(|| objects.collect()), problems)
    }
}

// === impl Lowered ===

impl Lowered {
    /// Whether two readings are the same, place included: where it stands is shown.
    fn same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.places() == other.places()
    }

    fn places(&self) -> Option<&Places> {
        self.object.written.as_ref().map(|written| &written.places)
    }
}

fn lowered(path: &Arc<Path>, raw: RawObject) -> (Arc<ObjectRef>, Lowered) {
    let written = Some(Written { file: Arc::clone(path), places: raw.places() });
    let generation = raw.generation;
    let (Change { owner, rows }, problems) = config::lower(raw);
    let object = SourceObject { written, generation, conditions: Vec::new(), problems };
    let digest = object.digest(&rows);
    (owner, Lowered { rows, object: Arc::new(object), digest })
}

fn problem(file: &Path, at: Mark, severity: Severity, message: &str) -> FileProblem {
    FileProblem { file: file.to_owned(), at, object: None, severity, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: 80}]}\n";

    fn service(name: &str) -> Vec<u8> {
        SERVICE.replace("NAME", name).into_bytes()
    }

    fn files() -> Files {
        let mut files = Files::new(Arc::from("directory"));
        files.take_update();
        files
    }

    /// Names of objects that were said, with whether they are there.
    fn said(update: Option<SourceUpdate>) -> Vec<(String, bool)> {
        let objects = update.map(|u| u.objects).unwrap_or_default();
        objects.iter().map(|(c, o)| (c.owner.to_string(), o.is_some())).collect()
    }

    /// File of the first object that was said.
    fn file_of(update: &SourceUpdate) -> &Path {
        let object = update.objects[0].1.as_ref().expect("there");
        &object.written.as_ref().expect("of a file").file
    }

    #[test]
    fn a_file_that_breaks_keeps_its_objects_and_says_so() {
        let mut files = files();
        files.set(Path::new("a.yaml"), &service("a"), false);
        assert_eq!(said(files.take_update()), [("Service default/a".to_owned(), true)]);
        files.set(Path::new("a.yaml"), b"kind: [", false);
        let update = files.take_update().expect("problems");
        assert!(update.objects.is_empty());
        assert!(update.files.expect("files")[0].message.contains("stays in force"));
        files.set(Path::new("a.yaml"), &[0xff, 0xfe], false);
        assert!(files.take_update().expect("problems").objects.is_empty());
    }

    #[test]
    fn a_file_that_heals_says_only_what_differs() {
        let mut files = files();
        files.set(Path::new("a.yaml"), &service("a"), false);
        files.take_update();
        files.set(Path::new("a.yaml"), b"kind: [", false);
        files.take_update();
        files.set(Path::new("a.yaml"), &service("a"), false);
        let update = files.take_update().expect("problems are gone");
        assert!(update.objects.is_empty());
        assert_eq!(update.files.expect("files"), []);
    }

    #[test]
    fn of_two_files_with_one_object_the_first_by_path_is_in_force() {
        let mut files = files();
        files.set(Path::new("b.yaml"), &service("x"), false);
        files.take_update();
        files.set(Path::new("a.yaml"), &service("x"), false);
        let update = files.take_update().expect("changed");
        assert_eq!(file_of(&update), Path::new("a.yaml"));
        assert_eq!(update.files.expect("files")[0].file, Path::new("b.yaml"));
        files.remove(Path::new("a.yaml"));
        let update = files.take_update().expect("changed");
        assert_eq!(file_of(&update), Path::new("b.yaml"));
    }

    #[test]
    fn a_file_that_could_not_be_read_and_now_can_is_news_even_when_it_is_empty() {
        let mut files = files();
        files.set(Path::new("a.yaml"), &[], false);
        files.fail(Path::new("a.yaml"), "no permission");
        assert_eq!(files.take_update().and_then(|u| u.files).map(|f| f.len()), Some(1));
        files.fail(Path::new("a.yaml"), "no permission");
        assert!(files.take_update().is_none(), "said once");
        files.set(Path::new("a.yaml"), &[], false);
        assert_eq!(files.take_update().and_then(|u| u.files).map(|f| f.len()), Some(0));
    }

    #[test]
    fn a_file_that_goes_takes_its_objects_along() {
        let mut files = files();
        files.set(Path::new("a.yaml"), &service("a"), false);
        files.take_update();
        files.remove(Path::new("a.yaml"));
        assert_eq!(said(files.take_update()), [("Service default/a".to_owned(), false)]);
        assert!(files.take_update().is_none());
    }
}
