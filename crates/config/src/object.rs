//! From a text to objects: documents, lists, and the head that every object has.
//!
//! In: the text of a file. Out: raw objects whose kind we read, and problems for the rest.
//!
//! **Invariant:** pure: walking directories and opening files is somebody else's work; one bad
//! document harms no other, but is reported as such, so that a caller may keep what it had.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Kind as KindName, ObjectRef, Problem, Reason};

use crate::head;
use crate::kind::{KindScope, Known, known_kind, other_kind};
use crate::places::Places;
use crate::yaml::{self, Mark, Node, Value};

/// An object as it was read, before its kind has looked at it.
#[derive(Clone, Debug)]
pub struct RawObject {
    /// What it is called.
    pub owner: Arc<ObjectRef>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Generation, where the API server counts it.
    pub generation: Option<i64>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// The whole object, `metadata` included.
    pub body: Node,
    /// Line of the file before which the document begins; 0 for the first.
    pub line_offset: u32,
}

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// Objects of the kinds we read, in written order.
    pub objects: Vec<RawObject>,
    /// Problems with whole documents: of other kinds, without a name, twice the same.
    pub problems: Vec<Located>,
    /// Documents that are no YAML; what they held is unknown.
    pub syntax: Vec<yaml::SyntaxError>,
}

/// A problem and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The problem.
    pub problem: Problem,
    /// Its place.
    pub at: Mark,
}

/// Read every document of a text. `source` names where it comes from, in every `ObjectRef`.
pub fn read(source: &Arc<str>, text: &str) -> Read {
    let mut reader = Reader { source, offset: 0, seen: BTreeSet::new(), out: Read::default() };
    for (offset, document) in documents(text) {
        reader.offset = offset;
        match yaml::parse(document) {
            Ok(node) => reader.object(node),
            Err(mut error) => {
                error.at = error.at.after(offset);
                reader.out.syntax.push(error);
            }
        }
    }
    reader.out
}

/// Split a text at `---` lines: each document with the number of lines before it.
pub fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut out = Vec::new();
    let (mut start, mut start_line, mut position) = (0, 0, 0);
    for (line, content) in (0_u32..).zip(text.split_inclusive('\n')) {
        let is_separator = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // Directives (`%YAML 1.2`) belong to the document that follows.
        if is_separator && !are_directives(&text[start..position]) {
            if position > start {
                out.push((start_line, &text[start..position]));
            }
            // The separator itself stays with its document: it may carry the first value.
            (start, start_line) = (position, line);
        }
        position += content.len();
    }
    if position > start {
        out.push((start_line, &text[start..position]));
    }
    out
}

fn are_directives(text: &str) -> bool {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')).peekable();
    lines.peek().is_some() && lines.all(|l| l.starts_with('%'))
}

struct Reader<'a> {
    source: &'a Arc<str>,
    offset: u32,
    seen: BTreeSet<Arc<ObjectRef>>,
    out: Read,
}

// === impl Reader ===

impl Reader<'_> {
    fn object(&mut self, body: Node) {
        if body.is_null() {
            return;
        }
        let api_version = body.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
        let kind = body.get("kind").and_then(Node::as_str).unwrap_or_default();
        if kind == "List" || (kind.ends_with("List") && body.get("items").is_some()) {
            return self.list(body);
        }
        let metadata = body.get("metadata");
        let text = |key: &str| metadata.and_then(|m| m.get(key)).and_then(Node::as_str);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let known = known_kind(group, kind);
        let namespaced = known.is_none_or(|k| k.scope == KindScope::Namespaced);
        let owner = Arc::new(ObjectRef {
            source: Arc::clone(self.source),
            kind: match known {
                Some(known) => known.kind_name(),
                None => KindName {
                    name: Cow::Owned(kind.to_owned()),
                    group: Cow::Owned(group.to_owned()),
                },
            },
            namespace: match (namespaced, text("namespace")) {
                (false, _) => Arc::from(""),
                (true, namespace) => Arc::from(namespace.unwrap_or("default")),
            },
            name: Arc::from(text("name").unwrap_or_default()),
        });
        if body.as_map().is_none() {
            let message = "the document is no object: it must begin with apiVersion, kind and \
                           metadata.name";
            return self.problem(&body, Problem::error(&owner, "", Reason::Syntax, message));
        }
        if kind.is_empty() || api_version.is_empty() {
            let field = if kind.is_empty() { "kind" } else { "apiVersion" };
            let message = "is required: an object begins with apiVersion, kind and metadata.name";
            return self.problem(&body, Problem::error(&owner, field, Reason::Required, message));
        }
        let Some(known) = known else {
            if let Some(problem) = other_kind(&owner, group, kind) {
                self.problem(&body, problem);
            }
            return;
        };
        if !known.versions.contains(&version) {
            let message =
                format!("{kind} has no version {version}; use {}", known.versions.join(", "));
            let problem = Problem::error(&owner, "apiVersion", Reason::UnknownKind, message);
            return self.problem(&body, problem);
        }
        if let Some(problem) = head::misnamed(&owner, metadata) {
            return self.problem(&body, problem);
        }
        if !self.seen.insert(Arc::clone(&owner)) {
            let message = "stands in this file twice; the first is in force, remove one";
            let problem = Problem::error(&owner, "", Reason::DuplicateObject, message);
            return self.problem(&body, problem);
        }
        self.out.objects.push(RawObject::new(owner, body, self.offset));
    }

    /// The items of a list, each an object of its own.
    fn list(&mut self, body: Node) {
        let items = body.get("items").map(|items| &items.value);
        if let None | Some(Value::Null | Value::List(_)) = items {
            return body.into_items("items").into_iter().for_each(|item| self.object(item));
        }
        let owner = Arc::new(ObjectRef {
            source: Arc::clone(self.source),
            kind: KindName { name: Cow::Borrowed("List"), group: Cow::Borrowed("") },
            namespace: Arc::from(""),
            name: Arc::from(""),
        });
        let message = "must be a list of objects";
        self.problem(&body, Problem::error(&owner, "items", Reason::WrongType, message));
    }

    fn problem(&mut self, body: &Node, problem: Problem) {
        let at = body.locate(&problem.field).after(self.offset);
        self.out.problems.push(Located { problem, at });
    }
}

// === impl RawObject ===

impl RawObject {
    /// An object of a known kind.
    pub fn new(owner: Arc<ObjectRef>, body: Node, line_offset: u32) -> Self {
        let metadata = body.get("metadata");
        let labels = metadata.and_then(|m| m.get("labels")).and_then(Node::as_map);
        let labels = labels
            .unwrap_or_default()
            .iter()
            .filter_map(|e| Some((Arc::from(&*e.key), Arc::from(e.value.as_str()?))))
            .collect();
        let number = |key: &str| match metadata?.get(key)?.value {
            yaml::Value::Integer(n) => Some(n),
            _ => None,
        };
        let generation = number("generation");
        let created = metadata
            .and_then(|m| m.get("creationTimestamp"))
            .and_then(Node::as_str)
            .and_then(parse_timestamp);
        Self { owner, created, generation, labels, body, line_offset }
    }

    /// An object as an API server holds it. None when it has no name.
    pub fn from_api(source: &Arc<str>, known: &Known, body: Node) -> Option<Self> {
        let metadata = body.get("metadata");
        let text = |key: &str| metadata.and_then(|m| m.get(key)).and_then(Node::as_str);
        let namespace = match known.scope {
            KindScope::Namespaced => text("namespace")?,
            KindScope::Cluster => "",
        };
        let owner = Arc::new(ObjectRef {
            source: Arc::clone(source),
            kind: known.kind_name(),
            namespace: Arc::from(namespace),
            name: Arc::from(text("name")?),
        });
        Some(Self::new(owner, body, 0))
    }

    /// What kind it is.
    pub fn known(&self) -> Option<&'static Known> {
        known_kind(&self.owner.kind.group, &self.owner.kind.name)
    }

    /// Where a field stands in the file.
    pub fn locate(&self, field: &str) -> Mark {
        self.body.locate(field).after(self.line_offset)
    }

    /// Where every field stands in the file.
    pub fn places(&self) -> Places {
        Places::of(&self.body, self.line_offset)
    }
}

/// Seconds since the epoch of a time such as `2026-01-31T12:00:00Z`, the form Kubernetes writes.
fn parse_timestamp(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':').map(|p| p.split('.').next()?.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    // Days since the epoch in the proleptic Gregorian calendar, years beginning in March.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\n";

    fn of(text: &str) -> Read {
        read(&Arc::from("test"), text)
    }

    #[test]
    fn documents_and_lists_are_read_in_order_with_their_lines() {
        let item = "  - {apiVersion: v1, kind: Service, metadata: {name: c}}\n";
        let text = format!(
            "# first\n---\n{}---\n{}---\napiVersion: v1\nkind: List\nitems:\n{item}",
            SERVICE.replace("NAME", "a"),
            SERVICE.replace("NAME", "b"),
        );
        let read = of(&text);
        let names: Vec<_> = read.objects.iter().map(|o| o.owner.to_string()).collect();
        assert_eq!(names, ["Service default/a", "Service default/b", "Service default/c"]);
        assert_eq!(read.objects[1].locate("metadata.name").line, 9);
    }

    #[test]
    fn a_broken_document_is_reported_and_the_others_are_read() {
        let text = format!("a: [\n---\n{}", SERVICE.replace("NAME", "b"));
        let read = of(&text);
        assert_eq!((read.syntax.len(), read.objects.len()), (1, 1));
    }

    #[test]
    fn a_seed_timestamp_is_seconds_since_the_epoch() {
        assert_eq!(parse_timestamp("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_timestamp("2024-02-29T12:34:56Z"), Some(1_709_210_096));
        assert_eq!(parse_timestamp("yesterday"), None);
        assert_eq!(parse_timestamp("2024-13-01T00:00:00Z"), None);
    }

    #[test]
    fn two_documents_of_one_object_are_a_problem_of_the_second() {
        let one = SERVICE.replace("NAME", "a");
        let read = of(&format!("{one}---\n{one}"));
        assert_eq!(read.objects.len(), 1);
        assert_eq!(read.problems[0].problem.reason, Reason::DuplicateObject);
    }

    #[test]
    fn a_mistyped_kind_gets_advice_and_a_foreign_one_is_left_alone() {
        let read = of(
            "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
        );
        assert_eq!(read.problems.len(), 1);
        assert!(read.problems[0].problem.message.contains("VirtualService"));
    }
}
