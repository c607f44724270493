//! What stands around the `spec` of an object: its name, its labels, its top-level fields.
//!
//! In: an object as it was read. Out: problems.
//!
//! **Invariant:** nothing is ignored in silence: a field that is written twice, a merge key, a
//! label that is no text, a top-level field that does not exist each give a problem.

use std::sync::Arc;

use model::{ObjectRef, Problem, Reason};

use crate::kind::Known;
use crate::object::RawObject;
use crate::schema::{describe, unknown};
use crate::text::dns_name;
use crate::yaml::{Node, Value};

/// Why an object cannot be named; none when it can.
pub(crate) fn misnamed(owner: &Arc<ObjectRef>, metadata: Option<&Node>) -> Option<Problem> {
    for (key, required) in [("name", true), ("namespace", false)] {
        let field = format!("metadata.{key}");
        let value = metadata.and_then(|m| m.get(key)).map(|n| &n.value);
        let (reason, message) = match value {
            None | Some(Value::Null) if required => {
                (Reason::Required, "is required and must be a text".to_owned())
            }
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => match dns_name(text) {
                Ok(()) => continue,
                Err(why) => (Reason::WrongType, why),
            },
            Some(other) => {
                let message = format!("must be a text, but is {}; quote it", describe(other));
                (Reason::WrongType, message)
            }
        };
        return Some(Problem::error(owner, field, reason, message));
    }
    None
}

/// What is wrong around the `spec`. The object stays in force.
pub(crate) fn check(raw: &RawObject, known: &Known) -> Vec<Problem> {
    let mut problems = Vec::new();
    let has_schema = known.kind.spec().is_some();
    duplicates(raw, "", &raw.body, has_schema, &mut problems);
    if has_schema {
        const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        let entries = raw.body.as_map().unwrap_or_default();
        for entry in entries.iter().filter(|e| !FIELDS.contains(&&*e.key)) {
            let message = unknown(&entry.key, FIELDS.into_iter());
            problems.push(Problem::error(&raw.owner, &*entry.key, Reason::UnknownField, message));
        }
    }
    let labels = raw.body.get("metadata").and_then(|m| m.get("labels"));
    let entries = labels.and_then(Node::as_map).unwrap_or_default();
    let mut wrong = |field: String, value: &Value, wanted: &str| {
        let message = format!("must be {wanted}, but is {}", describe(value));
        problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
    };
    if let Some(labels) = labels.filter(|l| l.as_map().is_none() && !l.is_null()) {
        wrong("metadata.labels".to_owned(), &labels.value, "an object");
    }
    for entry in entries.iter().filter(|e| e.value.as_str().is_none()) {
        let field = format!("metadata.labels.{}", entry.key);
        wrong(field, &entry.value.value, "a text in quotes");
    }
    problems
}

/// Fields that are written twice, and merge keys. The schema of a `spec` finds those below it itself.
fn duplicates(raw: &RawObject, path: &str, node: &Node, has_schema: bool, out: &mut Vec<Problem>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let dot = if path.is_empty() { "" } else { "." };
                let field = format!("{path}{dot}{}", entry.key);
                if entry.key == "<<" {
                    let message = "merge keys are not supported; write the fields out";
                    out.push(Problem::error(&raw.owner, field, Reason::NotSupported, message));
                } else if entry.duplicate {
                    let message = "stands here a second time; the first is in force, remove one";
                    out.push(Problem::error(&raw.owner, field, Reason::Duplicate, message));
                } else if !(has_schema && field == "spec") {
                    duplicates(raw, &field, &entry.value, has_schema, out);
                }
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                duplicates(raw, &format!("{path}[{index}]"), item, has_schema, out);
            }
        }
        _ => {}
    }
}
