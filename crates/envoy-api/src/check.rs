//! Finds what Envoy would refuse in a message before it is sent.
//!
//! In: a message, decoded or encoded. Out: every broken field rule with the path of the field.
//! The rules are those that Envoy's API declares on its fields and that Envoy enforces when it
//! reads a resource; messages packed in an `Any` are followed when their type is known. Regular
//! expressions that RE2 would not compile count too.
//!
//! Why: one broken rule in one resource makes Envoy refuse a whole response, and with it every
//! later change of that type.
//!
//! **Invariant:** judges the encoded bytes with static tables, so it sees what Envoy sees; never
//! panics and never stops at the first fault.
//!
//! ```
//! use envoy_api::{check, envoy::config::cluster::v3::Cluster};
//!
//! let faults = check::violations(&Cluster::default());
//! assert_eq!(faults[0].to_string(), "name: must have at least 1 character, has 0");
//! ```

mod regex;
mod rule;
mod table;
mod wire;

use std::borrow::Cow;
use std::fmt;

use prost::{Message, Name};

use crate::any::type_name;
use crate::resource::ResourceType;
use rule::Scalar;
use table::{Element, Field, Kind, Rule, Shape};
use wire::Raw;

/// Envoy's own decoder gives up at this depth as well.
const MAX_DEPTH: usize = 100;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path from the message, such as `filter_chains[0].filters[1].name`; empty for the message.
    pub field: String,
    /// What the rule asks, and what stands there.
    pub message: String,
}

/// Every broken rule in a message.
pub fn violations<M: Message + Name>(message: &M) -> Vec<Violation> {
    violations_in(&M::full_name(), &message.encode_to_vec())
}

/// Every broken rule in the encoded body of a resource.
pub fn violations_of(resource_type: ResourceType, body: &[u8]) -> Vec<Violation> {
    violations_in(resource_type.type_url(), body)
}

/// Every broken rule in an encoded message of this type (a type URL or a full name); none when
/// the type is not one of ours.
pub fn violations_in(type_url: &str, body: &[u8]) -> Vec<Violation> {
    let mut walk = Walk { out: Vec::new() };
    if let Some(table) = table::find(type_name(type_url)) {
        walk.message(table, body, &Path::ROOT);
    }
    walk.out
}

/// Where the walk is; rendered only when something is wrong.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
    depth: usize,
}

enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(Cow<'a, str>),
}

struct Walk {
    out: Vec<Violation>,
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.field, self.message)
    }
}

// === impl Path ===

impl Path<'_> {
    const ROOT: Path<'static> = Path { parent: None, segment: Segment::Root, depth: 0 };

    fn then<'a>(&'a self, segment: Segment<'a>) -> Path<'a> {
        Path { parent: Some(self), segment, depth: self.depth + 1 }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            fmt::Display::fmt(parent, f)?;
        }
        match &self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) => {
                let is_first = self.parent.is_none_or(|p| matches!(p.segment, Segment::Root));
                write!(f, "{}{name}", if is_first { "" } else { "." })
            }
            Segment::Index(at) => write!(f, "[{at}]"),
            Segment::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}

// === impl Walk ===

impl Walk {
    fn report(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.out.push(Violation { field: path.to_string(), message: message.into() });
    }

    fn message(&mut self, table: &table::Message, bytes: &[u8], path: &Path<'_>) {
        if path.depth > MAX_DEPTH {
            return self.report(path, "is nested too deeply");
        }
        let Ok(present) = wire::fields(bytes) else {
            return self.report(path, "is not a well-formed message");
        };
        for field in table.fields {
            let raws: Vec<_> =
                present.iter().filter(|(n, _)| *n == field.number).map(|(_, raw)| *raw).collect();
            self.field(field, &raws, &path.then(Segment::Field(field.name)));
        }
        for (name, members) in table.oneofs {
            if !present.iter().any(|(number, _)| members.contains(number)) {
                self.report(&path.then(Segment::Field(name)), "must have one of its members set");
            }
        }
    }

    fn field(&mut self, field: &Field, raws: &[Raw<'_>], path: &Path<'_>) {
        match (field.shape, raws) {
            (Shape::Repeated, _) => self.list(field, raws, path),
            (Shape::Map, _) => self.map(field, raws, path),
            (_, [raw]) => self.value(&field.value, Some(*raw), path),
            (Shape::Implicit, []) => self.value(&field.value, None, path),
            (_, []) => {
                if field.own.iter().any(|rule| matches!(rule, Rule::Required)) {
                    self.report(path, "must be set");
                }
            }
            // The parts of a message that was sent in pieces add up; of a scalar the last counts.
            (_, [.., last]) => {
                let mut whole = Vec::new();
                for raw in raws {
                    if let Raw::Bytes(part) = raw {
                        whole.extend_from_slice(part);
                    }
                }
                let is_message = !matches!(field.value.kind, Kind::String | Kind::Bytes);
                match last {
                    Raw::Bytes(_) if is_message => {
                        self.value(&field.value, Some(Raw::Bytes(&whole)), path);
                    }
                    last => self.value(&field.value, Some(*last), path),
                }
            }
        }
    }

    fn list(&mut self, field: &Field, raws: &[Raw<'_>], path: &Path<'_>) {
        let mut items = Vec::with_capacity(raws.len());
        for raw in raws {
            match (raw, field.value.kind.packed_as()) {
                (Raw::Bytes(bytes), Some(sample)) => match wire::packed(bytes, sample) {
                    Ok(scalars) => items.extend(scalars),
                    Err(_) => return self.report(path, "is not a well-formed list"),
                },
                _ => items.push(*raw),
            }
        }
        if !self.own(field.own, items.len(), path) {
            return;
        }
        if field.own.iter().any(|rule| matches!(rule, Rule::Unique)) {
            let mut sorted = items.clone();
            sorted.sort_unstable();
            if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                self.report(path, "must not hold an item twice");
            }
        }
        for (at, item) in items.into_iter().enumerate() {
            self.value(&field.value, Some(item), &path.then(Segment::Index(at)));
        }
    }

    fn map(&mut self, field: &Field, raws: &[Raw<'_>], path: &Path<'_>) {
        if !self.own(field.own, raws.len(), path) {
            return;
        }
        for raw in raws {
            let Raw::Bytes(entry) = raw else { continue };
            let Ok(parts) = wire::fields(entry) else {
                self.report(path, "is not a well-formed map");
                continue;
            };
            let part = |n: u32| parts.iter().rev().find(|(at, _)| *at == n).map(|(_, raw)| *raw);
            let key = match part(1) {
                Some(Raw::Bytes(text)) => String::from_utf8_lossy(text),
                Some(Raw::Varint(number)) => Cow::Owned(number.to_string()),
                _ => Cow::Borrowed(""),
            };
            let path = path.then(Segment::Key(key));
            if let Some(element) = &field.key {
                self.value(element, part(1), &path);
            }
            self.value(&field.value, part(2), &path);
        }
    }

    /// Rules on the number of items. False: an allowed emptiness, look no further.
    fn own(&mut self, rules: &[Rule], len: usize, path: &Path<'_>) -> bool {
        for rule in rules {
            match rule {
                Rule::IgnoreEmpty if len == 0 => return false,
                Rule::MinItems(min) if len < *min => {
                    self.report(path, format!("must have at least {min} items, has {len}"));
                }
                Rule::MaxItems(max) if len > *max => {
                    self.report(path, format!("must have at most {max} items, has {len}"));
                }
                _ => {}
            }
        }
        true
    }

    /// Judge one value; `None` stands for the default of its type.
    fn value(&mut self, element: &Element, raw: Option<Raw<'_>>, path: &Path<'_>) {
        match (&element.kind, raw) {
            (Kind::Opaque, _) => {}
            (Kind::Message(index), raw) => {
                if let Some(table) = table::at(*index) {
                    self.message(table, bytes_of(raw), path);
                }
            }
            (Kind::Any, raw) => self.any(element.rules, bytes_of(raw), path),
            (Kind::Duration, raw) => match nanoseconds(bytes_of(raw)) {
                Some(nanos) => self.scalar(element.rules, &Scalar::Duration(nanos), path),
                None => self.report(path, "is not a well-formed duration"),
            },
            (Kind::Wrapper(inner), raw) => {
                let Ok(parts) = wire::fields(bytes_of(raw)) else {
                    return self.report(path, "is not a well-formed message");
                };
                let value = parts.iter().rev().find(|(n, _)| *n == 1).map(|(_, raw)| *raw);
                self.plain(inner, element.rules, value, path);
            }
            (kind, raw) => self.plain(kind, element.rules, raw, path),
        }
    }

    fn plain(&mut self, kind: &Kind, rules: &[Rule], raw: Option<Raw<'_>>, path: &Path<'_>) {
        match kind.scalar(raw) {
            Some(scalar) => self.scalar(rules, &scalar, path),
            None => self.report(path, "has the encoding of another type"),
        }
    }

    fn scalar(&mut self, rules: &[Rule], scalar: &Scalar<'_>, path: &Path<'_>) {
        for rule in rules {
            if matches!(rule, Rule::IgnoreEmpty) {
                if scalar.is_empty() {
                    return;
                }
            } else if let Some(message) = rule.broken_by(scalar) {
                self.report(path, message);
            }
        }
    }

    fn any(&mut self, rules: &[Rule], bytes: &[u8], path: &Path<'_>) {
        let Ok(parts) = wire::fields(bytes) else {
            return self.report(path, "is not a well-formed message");
        };
        let part = |n: u32| bytes_of(parts.iter().rev().find(|(at, _)| *at == n).map(|p| p.1));
        let type_url = String::from_utf8_lossy(part(1));
        self.scalar(rules, &Scalar::Text(type_url.as_bytes()), path);
        if let Some(table) = table::find(type_name(&type_url)) {
            self.message(table, part(2), path);
        }
    }
}

/// The bytes of a length-delimited value; of anything else none.
fn bytes_of(raw: Option<Raw<'_>>) -> &[u8] {
    match raw {
        Some(Raw::Bytes(bytes)) => bytes,
        _ => &[],
    }
}

fn nanoseconds(bytes: &[u8]) -> Option<i128> {
    let mut out = 0;
    for (number, raw) in wire::fields(bytes).ok()? {
        match (number, raw) {
            (1, Raw::Varint(seconds)) => out += i128::from(seconds.cast_signed()) * 1_000_000_000,
            (2, Raw::Varint(nanos)) => out += i128::from(nanos.cast_signed()),
            _ => {}
        }
    }
    Some(out)
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
