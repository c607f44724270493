//! Conditions: what the author of an object is told in its status.
//!
//! In: the problems of an object. Out: whether it is accepted and whether what it names is there.
//!
//! **Invariant:** a function of the problems and the generation, so that every replica would write
//! the same.

use config::yaml::Node;
use model::{Problem, Reason, Severity};
use serde_json::{Value, json};

/// Conditions that we write.
const TYPES: [&str; 2] = ["Accepted", "ResolvedRefs"];
/// Longest message. Unit: characters.
const LONGEST: usize = 2000;

/// One condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Condition {
    /// Type, such as `Accepted`.
    pub(crate) name: String,
    /// `True` or `False`.
    pub(crate) status: String,
    /// Why, in CamelCase.
    pub(crate) reason: String,
    /// Every problem, for people.
    pub(crate) message: String,
    /// Generation of the object that this is said of.
    pub(crate) generation: Option<i64>,
    /// Since when it has this status.
    pub(crate) since: String,
}

/// The conditions that an object should have. `since` is left open.
pub(crate) fn of(problems: &[&Problem], generation: Option<i64>) -> Vec<Condition> {
    let error = problems.iter().find(|p| p.severity == Severity::Error);
    let unresolved = problems.iter().find(|p| is_reference(p.reason));
    let references = problems.iter().filter(|p| is_reference(p.reason)).copied();
    let condition = |name: &str, bad: Option<&&Problem>, good: &str, message: String| Condition {
        name: name.to_owned(),
        status: if bad.is_some() { "False" } else { "True" }.to_owned(),
        reason: bad.map_or_else(|| good.to_owned(), |p| format!("{:?}", p.reason)),
        message,
        generation,
        since: String::new(),
    };
    let [accepted, resolved] = TYPES;
    vec![
        condition(accepted, error, "Accepted", text(problems.iter().copied())),
        condition(resolved, unresolved, "ResolvedRefs", text(references)),
    ]
}

/// Whether a problem is that something the object names is not there.
fn is_reference(reason: Reason) -> bool {
    use Reason::{GatewayNotFound, HostNotFound, PortNotFound, SubsetNotFound};
    matches!(reason, HostNotFound | SubsetNotFound | PortNotFound | GatewayNotFound)
}

fn text<'a>(problems: impl Iterator<Item = &'a Problem>) -> String {
    let mut out = String::new();
    let mut more = 0;
    for problem in problems {
        let Problem { field, severity, message, .. } = problem;
        let colon = if field.is_empty() { "" } else { ": " };
        let line = format!("{severity}: {field}{colon}{message}");
        if out.chars().count() + line.chars().count() > LONGEST {
            more += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str("; ");
        }
        out.push_str(&line);
    }
    if more > 0 {
        out.push_str(&format!("; and {more} more"));
    }
    out
}

/// Our conditions among those that an object has.
pub(crate) fn read(body: &Node) -> Vec<Condition> {
    let all = body.get("status").and_then(|s| s.get("conditions")).and_then(Node::as_list);
    let one = |condition: &Node| {
        let text =
            |key: &str| condition.get(key).and_then(Node::as_str).unwrap_or_default().to_owned();
        let generation = match condition.get("observedGeneration").map(|n| &n.value) {
            Some(config::yaml::Value::Integer(n)) => Some(*n),
            _ => None,
        };
        Condition {
            name: text("type"),
            status: text("status"),
            reason: text("reason"),
            message: text("message"),
            generation,
            since: text("lastTransitionTime"),
        }
    };
    let ours = |condition: &Condition| TYPES.contains(&condition.name.as_str());
    let mut found: Vec<_> = all.unwrap_or_default().iter().map(one).filter(ours).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

// === impl Condition ===

impl Condition {
    /// Whether both say the same, since whenever.
    pub(crate) fn says(&self, other: &Self) -> bool {
        let silent = |c: &Self| Self { since: String::new(), ..c.clone() };
        silent(self) == silent(other)
    }

    /// As the API has it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "type": self.name,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.generation,
            "lastTransitionTime": self.since,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;

    use model::{Kind, ObjectRef};

    use super::*;

    fn owner() -> Arc<ObjectRef> {
        let kind = Kind { name: Cow::Borrowed("VirtualService"), group: Cow::Borrowed("x") };
        let (namespace, name) = (Arc::from("default"), Arc::from("a"));
        Arc::new(ObjectRef { source: Arc::from("kubernetes"), kind, namespace, name })
    }

    #[test]
    fn given_no_problem_then_both_are_true() {
        let found = of(&[], Some(3));
        assert!(found.iter().all(|c| c.status == "True" && c.message.is_empty()));
        assert!(found.iter().all(|c| c.generation == Some(3) && c.reason == c.name));
    }

    #[test]
    fn given_a_warning_of_a_missing_subset_then_it_is_accepted_and_not_resolved() {
        let problem =
            Problem::warning(&owner(), "spec.x", Reason::SubsetNotFound, "no such subset");
        let found = of(&[&problem], None);
        assert_eq!((&*found[0].status, &*found[1].status), ("True", "False"));
        assert_eq!(found[1].reason, "SubsetNotFound");
        assert_eq!(found[1].message, "warning: spec.x: no such subset");
    }

    #[test]
    fn given_very_many_problems_then_the_message_stays_short_and_says_how_many() {
        let one = Problem::error(&owner(), "spec", Reason::WrongType, "é".repeat(300));
        let found = of(&[&one; 50], None);
        assert_eq!(found[0].reason, "WrongType");
        assert!(found[0].message.chars().count() < LONGEST + 100);
        assert!(found[0].message.ends_with("and 44 more"), "{}", found[0].message);
    }

    #[test]
    fn given_what_was_written_when_it_is_read_then_it_says_the_same() {
        let written = of(&[], Some(7));
        let conditions: Vec<Value> = written.iter().map(Condition::to_json).collect();
        let body = json!({"status": {"conditions": conditions}}).to_string();
        let read = read(&serde_json::from_str(&body).expect("a tree"));
        assert!(read.len() == 2 && read.iter().zip(&written).all(|(a, b)| a.says(b)));
    }
}
