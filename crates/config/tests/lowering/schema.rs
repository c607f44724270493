//! The schemas, walked: every field is either read by the decoder, or said to be without effect.
//!
//! **Invariant:** objects are made from the schemas themselves, so a new field is covered at once.

use config::schema::{Field, OnBad, Support, Type};
use config::yaml::{Entry, Mark, Node, Value};
use config::{KINDS, Known};
use model::{ObjectRef, Problem, Reason, Severity};
use std::sync::Arc;

/// One step from a value to a value in it.
#[derive(Clone, Copy)]
enum Step {
    Field(&'static Field),
    Item,
    Key(&'static str),
}

/// Texts of which every check accepts at least one.
const TEXTS: [&str; 8] = ["a", "a.com", "10.0.0.1", "5xx", "/a", "5s", "127.0.0.1:80", "HTTP"];

/// Fields that say nothing without another.
const COMPANIONS: [(&str, &str); 25] = [
    ("clientCertificate", "mode"),
    ("privateKey", "mode"),
    ("caCertificates", "mode"),
    ("subjectAltNames", "mode"),
    ("sni", "mode"),
    ("insecureSkipVerify", "mode"),
    ("serviceAccount", "address"),
    ("endpoints", "ports"),
    ("ports", "address"),
    ("labels", "address"),
    ("locality", "address"),
    ("endpoints", "resolution"),
    ("workloadSelector", "resolution"),
    ("maglev", "httpHeaderName"),
    ("ringHash", "httpHeaderName"),
    ("minimumRingSize", "httpHeaderName"),
    ("name", "route"),
    ("match", "route"),
    ("rewrite", "route"),
    ("timeout", "route"),
    ("retries", "route"),
    ("websocketUpgrade", "route"),
    ("timeout", "interval"),
    ("redirectCode", "uri"),
    ("servers", "selector"),
];

fn accepted(check: fn(&str) -> Result<(), String>) -> Value {
    let text = TEXTS.into_iter().find(|t| check(t).is_ok());
    Value::String(text.expect("a text that the check accepts").to_owned())
}

fn key_of(check: fn(&str) -> Result<(), String>) -> &'static str {
    ["a", "80"].into_iter().find(|key| check(key).is_ok()).expect("a key that the check accepts")
}

fn node(value: Value) -> Node {
    Node { value, at: Mark::default() }
}

fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let entry =
        |(key, value)| Entry { key, at: Mark::default(), duplicate: false, value: node(value) };
    Value::Map(entries.into_iter().map(entry).collect())
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A small value of a type that leads along the steps; at their end, `last`.
fn along(ty: &Type, steps: &[Step], last: &Value) -> Value {
    let Some((step, rest)) = steps.split_first() else { return smallest(ty) };
    match (ty, step) {
        (Type::Object(fields) | Type::Strict(fields), Step::Field(wanted)) => {
            let inner = |f: &Field| match (std::ptr::eq(f, *wanted), rest.is_empty()) {
                (true, true) => last.clone(),
                (true, false) => along(&f.ty, rest, last),
                (false, _) => of(f),
            };
            let there = |f: &&Field| {
                f.required
                    || std::ptr::eq(*f, *wanted)
                    || COMPANIONS.contains(&(wanted.name, f.name))
            };
            map(fields.iter().filter(there).map(|f| (f.name.to_owned(), inner(f))))
        }
        (Type::OneOf(..), Step::Field(f)) => {
            let inner = if rest.is_empty() { last.clone() } else { along(&f.ty, rest, last) };
            map([(f.name.to_owned(), inner)])
        }
        (Type::Ruled(inner, _), _) => along(inner, steps, last),
        (Type::List(item, _), Step::Item) => Value::List(vec![node(along(item, rest, last))]),
        (Type::Map(_, item), Step::Key(key)) => map([((*key).to_owned(), along(item, rest, last))]),
        _ => panic!("a step that the type has not"),
    }
}

fn of(field: &Field) -> Value {
    match field.name {
        "protocol" => text("HTTP"),
        // One that no other field has, whose default it may be.
        "number" => Value::Integer(80),
        _ => smallest(&field.ty),
    }
}

fn smallest(ty: &Type) -> Value {
    match ty {
        Type::Bool => Value::Bool(true),
        Type::Text | Type::Any => text("a"),
        Type::Checked(check) => accepted(*check),
        Type::Integer(low, high) => Value::Integer((*high).min(307).max(*low)),
        Type::Number(low, _) => Value::Number(*low),
        Type::IntegerOrText => Value::Integer(1),
        Type::Time(_) => text("5s"),
        Type::Enum(words) => text(words[words.len() - 1]),
        Type::Object(fields) | Type::Strict(fields) => {
            // What is required, and something in any case.
            let count = fields.iter().filter(|f| f.required).count().max(1);
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|f| !f.required);
            map(sorted.into_iter().take(count).map(|f| (f.name.to_owned(), of(f))))
        }
        Type::OneOf(fields, _) => {
            map(fields.iter().take(1).map(|f| (f.name.to_owned(), smallest(&f.ty))))
        }
        Type::List(item, _) => Value::List(vec![node(smallest(item))]),
        Type::Map(check, item) => map([(key_of(*check).to_owned(), smallest(item))]),
        Type::Ruled(inner, _) => smallest(inner),
    }
}

/// Every field below a type, with the steps to it.
fn walk(ty: &'static Type, steps: &mut Vec<Step>, visit: &mut dyn FnMut(&[Step], &'static Field)) {
    match ty {
        Type::Object(fields) | Type::Strict(fields) | Type::OneOf(fields, _) => {
            for field in *fields {
                steps.push(Step::Field(field));
                visit(steps, field);
                // What is not read is not looked at below either.
                if field.support != Support::NotYet {
                    walk(&field.ty, steps, visit);
                }
                steps.pop();
            }
        }
        Type::Ruled(inner, _) => walk(inner, steps, visit),
        Type::List(item, _) => {
            steps.push(Step::Item);
            walk(item, steps, visit);
            steps.pop();
        }
        Type::Map(check, item) => {
            steps.push(Step::Key(key_of(*check)));
            walk(item, steps, visit);
            steps.pop();
        }
        _ => {}
    }
}

fn path(steps: &[Step]) -> String {
    steps.iter().fold("spec".to_owned(), |path, step| match step {
        Step::Field(f) => format!("{path}.{}", f.name),
        Step::Item => format!("{path}[0]"),
        Step::Key(key) => format!("{path}.{key}"),
    })
}

fn owner(known: &Known) -> Arc<ObjectRef> {
    Arc::new(ObjectRef {
        source: "test".into(),
        kind: known.kind_name(),
        namespace: "default".into(),
        name: "mesh".into(),
    })
}

/// Problems of an object with this `spec`, beside those of values that only stand in for others.
fn problems(known: &Known, spec: Value) -> Vec<Problem> {
    let body = node(map([("spec".to_owned(), spec)]));
    config::lower(config::RawObject::new(owner(known), body, 0)).1
}

#[test]
fn given_each_field_that_is_not_supported_when_it_is_used_then_there_is_one_problem_that_names_it()
{
    let mut count = 0;
    for known in KINDS {
        let Some(spec) = known.kind.spec() else { continue };
        walk(spec, &mut Vec::new(), &mut |steps, field| {
            if field.support != Support::NotYet {
                return;
            }
            count += 1;
            for value in [text("x"), Value::Bool(true), map([]), Value::List(Vec::new())] {
                let found = problems(known, along(spec, steps, &value));
                let of: Vec<_> =
                    found.iter().filter(|p| p.reason == Reason::NotSupported).collect();
                let path = path(steps);
                assert_eq!(of.len(), 1, "{} {path}: {found:?}", known.name);
                assert_eq!(of[0].field, path);
                let expected = match field.on_bad {
                    OnBad::Field => Severity::Warning,
                    OnBad::Parent => Severity::Error,
                };
                assert_eq!(of[0].severity, expected, "{path}");
            }
        });
    }
    assert!(count > 60, "only {count} fields were found");
}

#[test]
fn given_each_field_that_is_read_when_its_value_is_wrong_then_the_problem_names_it() {
    for known in KINDS {
        let Some(spec) = known.kind.spec() else { continue };
        walk(spec, &mut Vec::new(), &mut |steps, field| {
            if field.support != Support::Read {
                return;
            }
            // No type takes both.
            let ty = if let Type::Ruled(inner, _) = &field.ty { inner } else { &field.ty };
            let wrong = match ty {
                Type::Object(_) | Type::Strict(_) | Type::OneOf(..) | Type::Map(..) => text("x"),
                _ => map([("no-such-field".to_owned(), Value::Integer(1))]),
            };
            let found = problems(known, along(spec, steps, &wrong));
            let path = path(steps);
            assert!(found.iter().any(|p| p.field == path), "{} {path}: {found:?}", known.name);
        });
    }
}

#[test]
fn given_each_field_that_is_read_when_its_value_is_good_then_the_decoder_takes_it() {
    for known in KINDS {
        let Some(spec) = known.kind.spec() else { continue };
        walk(spec, &mut Vec::new(), &mut |steps, field| {
            if field.support == Support::NotYet {
                return;
            }
            let found = problems(known, along(spec, steps, &of(field)));
            // A refused decode is a problem of the whole spec.
            let path = path(steps);
            let mut errors = found.iter().filter(|p| p.severity == Severity::Error);
            let refused = errors.find(|p| p.field == "spec" || p.field == path);
            assert_eq!(refused, None, "{} {path}", known.name);
        });
    }
}

/// Fields that the schema reads and the decoder does not know would be ignored in silence: giving
/// each a value must make a difference, or be one that says nothing by itself.
#[test]
fn given_each_field_that_is_read_when_it_is_used_then_it_makes_a_difference() {
    let mut without = Vec::new();
    for known in KINDS {
        let Some(spec) = known.kind.spec() else { continue };
        walk(spec, &mut Vec::new(), &mut |steps, field| {
            // A single destination gets everything, whatever its weight.
            if field.support != Support::Read || field.name == "weight" {
                return;
            }
            let outcome = |value: &Value| {
                let body = node(map([("spec".to_owned(), along(spec, steps, value))]));
                let raw = config::RawObject::new(owner(known), body, 0);
                let (change, problems) = config::lower(raw);
                (change.rows, problems)
            };
            let none = outcome(&Value::Null);
            let differs = |value: Value| outcome(&value) != none;
            let other = match field.ty {
                Type::Bool => Value::Bool(false),
                Type::Time(_) => text("7s"),
                _ => of(field),
            };
            if !differs(of(field)) && !differs(other) {
                without.push(format!("{} {}", known.name, path(steps)));
            }
        });
    }
    assert_eq!(without, [""; 0], "fields that are read and change nothing");
}
