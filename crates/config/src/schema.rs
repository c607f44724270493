//! What the fields of a kind may be, and what happens to an object that breaks this.
//!
//! In: a `Node` and the `Type` it must have. Out: the node without the parts that cannot be used,
//! and a problem for each of them. What is dropped is the smallest unit whose loss cannot widen
//! matching or access: the schema says for each field whether it may go alone or takes its parent
//! with it.
//!
//! **Invariant:** what passes can be decoded; every field of the API is in the schema, either read
//! or marked as not supported yet: nothing is ignored in silence.

use std::sync::Arc;
use std::time::Duration;

use model::{ObjectRef, Problem, Reason};

use crate::yaml::{Entry, Node, Value};

/// What a value may be.
#[derive(Debug)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// Any text.
    Text,
    /// A text that this function accepts; else it says what is wrong.
    Checked(fn(&str) -> Result<(), String>),
    /// A whole number within bounds, both included.
    Integer(i64, i64),
    /// Any number within bounds, both included.
    Number(f64, f64),
    /// A number or a text that names something.
    IntegerOrText,
    /// A time such as `1.5s` or `1m`, at least this many milliseconds.
    Time(u64),
    /// One of these words.
    Enum(&'static [&'static str]),
    /// Fields.
    Object(&'static [Field]),
    /// Fields of a condition: one that does not exist makes the whole unreadable.
    Strict(&'static [Field]),
    /// Exactly one of these fields, or none at all where `bool` is set.
    OneOf(&'static [Field], bool),
    /// Items; when an item is bad it goes alone (`Field`) or the list goes (`Parent`).
    List(&'static Type, OnBad),
    /// Keys that this function accepts, and values.
    Map(fn(&str) -> Result<(), String>, &'static Type),
    /// A type with conditions between its fields. An API server checks them; what lowers the object
    /// says so again, of objects that never saw one.
    Ruled(&'static Type, &'static [Rule]),
    /// Not looked at.
    Any,
}

/// A condition that an API server checks, in CEL.
#[derive(Debug)]
pub struct Rule {
    /// The expression; `self` is the value.
    pub holds: &'static str,
    /// What is wrong where it does not hold.
    pub else_says: &'static str,
}

/// What goes when a value is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Only the value itself.
    Field,
    /// What holds it, because without the value it would mean more than was written.
    Parent,
}

/// Whether we read a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is in force.
    Read,
    /// It is of the API and has no meaning for a proxy's configuration.
    Inert,
    /// Not yet; the rest of the object is in force.
    NotYet,
}

/// One field.
#[derive(Debug)]
pub struct Field {
    /// Name in camelCase.
    pub name: &'static str,
    /// What it may be.
    pub ty: Type,
    /// Whether it must be there.
    pub required: bool,
    /// Whether we read it.
    pub support: Support,
    /// What goes when it is bad, or not supported.
    pub on_bad: OnBad,
}

/// Check a value and drop what cannot be used. Returns whether anything is left.
pub(crate) fn check(
    object: &Arc<ObjectRef>,
    path: &str,
    node: &mut Node,
    ty: &Type,
    out: &mut Vec<Problem>,
) -> bool {
    let mut checker = Checker { object, path: path.to_owned(), out };
    let good = checker.value(node, ty);
    if !good {
        node.value = Value::Null;
    }
    good
}

/// A field that is read, and goes alone when it is bad.
pub(crate) const fn field(name: &'static str, ty: Type) -> Field {
    Field { name, ty, required: false, support: Support::Read, on_bad: OnBad::Field }
}

/// A field that is not read yet; the rest is in force without it.
pub(crate) const fn not_yet(name: &'static str) -> Field {
    Field { support: Support::NotYet, ..field(name, Type::Any) }
}

impl Field {
    /// It must be there.
    pub(crate) const fn required(self) -> Self {
        Self { required: true, on_bad: OnBad::Parent, ..self }
    }

    /// When it is bad, or not supported, its parent goes too.
    pub(crate) const fn or_parent(self) -> Self {
        Self { on_bad: OnBad::Parent, ..self }
    }

    /// It is of this type, though we do not read it.
    pub(crate) const fn of(self, ty: Type) -> Self {
        Self { ty, ..self }
    }

    /// It has no meaning here.
    pub(crate) const fn inert(self) -> Self {
        Self { support: Support::Inert, ..self }
    }
}

struct Checker<'a> {
    object: &'a Arc<ObjectRef>,
    path: String,
    out: &'a mut Vec<Problem>,
}

// === impl Checker ===

impl Checker<'_> {
    fn error(&mut self, reason: Reason, message: impl Into<String>) {
        let problem = Problem::error(self.object, self.path.clone(), reason, message);
        self.out.push(problem);
    }

    /// Check below `step`, with the path extended by it.
    fn below<R>(&mut self, step: &str, inner: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = inner(self);
        self.path.truncate(length);
        result
    }

    fn wrong(&mut self, node: &Node, wanted: &str) -> bool {
        let found = describe(&node.value);
        self.error(Reason::WrongType, format!("must be {wanted}, but is {found}"));
        false
    }

    fn range(&mut self, message: String) -> bool {
        self.error(Reason::OutOfRange, message);
        false
    }

    fn value(&mut self, node: &mut Node, ty: &Type) -> bool {
        match ty {
            Type::Any => true,
            Type::Bool => matches!(node.value, Value::Bool(_)) || self.wrong(node, "true or false"),
            Type::Text => self.text(node, |_| Ok(())),
            Type::Checked(accepts) => self.text(node, accepts),
            Type::Integer(low, high) => match node.value {
                Value::Integer(n) if (*low..=*high).contains(&n) => true,
                Value::Integer(n) => {
                    self.range(format!("must be between {low} and {high}, but is {n}"))
                }
                _ => self.wrong(node, "a whole number"),
            },
            Type::Number(low, high) => {
                #[allow(clippy::cast_precision_loss)]
                let number = match node.value {
                    Value::Integer(n) => n as f64,
                    Value::Number(n) => n,
                    _ => return self.wrong(node, "a number"),
                };
                (*low..=*high).contains(&number)
                    || self.range(format!("must be between {low} and {high}, but is {number}"))
            }
            Type::IntegerOrText => {
                matches!(node.value, Value::Integer(_) | Value::String(_))
                    || self.wrong(node, "a number or a name")
            }
            Type::Time(least) => self.time(node, *least),
            Type::Enum(words) => self.text(node, |text| {
                if words.contains(&text) {
                    return Ok(());
                }
                Err(format!("must be one of {}, but is {text:?}", words.join(", ")))
            }),
            Type::Object(fields) => self.object(node, fields, false),
            Type::Strict(fields) => self.object(node, fields, true),
            Type::OneOf(fields, may_be_empty) => self.one_of(node, fields, *may_be_empty),
            Type::List(item, on_bad) => self.list(node, item, *on_bad),
            Type::Map(accepts, ty) => self.map(node, *accepts, ty),
            Type::Ruled(ty, _) => self.value(node, ty),
        }
    }

    fn text(&mut self, node: &Node, accepts: impl Fn(&str) -> Result<(), String>) -> bool {
        let Some(text) = node.as_str() else { return self.wrong(node, "a text") };
        match accepts(text) {
            Ok(()) => true,
            Err(message) => {
                self.error(Reason::WrongType, message);
                false
            }
        }
    }

    fn time(&mut self, node: &Node, least: u64) -> bool {
        let Some(text) = node.as_str() else {
            return self.wrong(node, "a time with its unit, such as 5s");
        };
        // Envoy counts in milliseconds: less than one would become none.
        let floor = |time: Duration| match time.is_zero() {
            true => Duration::from_millis(least),
            false => Duration::from_millis(least.max(1)),
        };
        match parse_time(text) {
            None => {
                let message = format!("must be a time with its unit, such as 5s, but is {text:?}");
                self.error(Reason::WrongType, message);
                false
            }
            Some(time) if time < floor(time) => {
                self.range(format!("must be at least {:?}, but is {text}", floor(time)))
            }
            Some(_) => true,
        }
    }

    /// Check fields. A field that does not exist takes a strict parent with it: in a condition, a
    /// mistyped field would else widen what matches.
    fn object(&mut self, node: &mut Node, fields: &[Field], strict: bool) -> bool {
        let Value::Map(entries) = &mut node.value else { return self.wrong(node, "an object") };
        let mut good = true;
        for field in fields.iter().filter(|f| f.required) {
            let there = |e: &Entry| e.key == field.name && !e.duplicate && !e.value.is_null();
            if !entries.iter().any(there) {
                self.below(field.name, |c| c.error(Reason::Required, "is required"));
                good = false;
            }
        }
        for entry in entries.iter_mut().filter(|e| !e.value.is_null()) {
            let known = fields.iter().find(|f| f.name == entry.key);
            let stays = self.below(&entry.key, |c| match known {
                Some(_) if entry.duplicate => {
                    c.error(Reason::Duplicate, "stands here a second time; remove one of the two");
                    !strict
                }
                Some(field) => c.field(field, &mut entry.value),
                None => {
                    let names = fields.iter().map(|f| f.name);
                    c.error(Reason::UnknownField, unknown(&entry.key, names));
                    !strict
                }
            });
            if known.is_none() {
                entry.value.value = Value::Null;
            }
            good &= stays;
        }
        good
    }

    /// Check one field. Returns whether its parent may stay.
    fn field(&mut self, field: &Field, value: &mut Node) -> bool {
        match field.support {
            Support::Inert => return true,
            Support::NotYet => {
                let stays = field.on_bad == OnBad::Field;
                let (path, object) = (self.path.clone(), self.object);
                let message = "is not supported by this version of Heddle";
                self.out.push(if stays {
                    let message = format!("{message} and has no effect");
                    Problem::warning(object, path, Reason::NotSupported, message)
                } else {
                    let message = format!("{message}, so what holds it is not in force");
                    Problem::error(object, path, Reason::NotSupported, message)
                });
                value.value = Value::Null;
                return stays;
            }
            Support::Read => {}
        }
        if self.value(value, &field.ty) {
            return true;
        }
        value.value = Value::Null;
        field.on_bad == OnBad::Field
    }

    fn one_of(&mut self, node: &mut Node, fields: &[Field], may_be_empty: bool) -> bool {
        if !self.object(node, fields, true) {
            return false;
        }
        let set = node.as_map().unwrap_or_default().iter().filter(|e| !e.value.is_null()).count();
        if set == 1 || (set == 0 && may_be_empty) {
            return true;
        }
        let names: Vec<_> = fields.iter().map(|f| f.name).collect();
        self.error(Reason::WrongType, format!("must hold exactly one of {}", names.join(", ")));
        false
    }

    fn list(&mut self, node: &mut Node, item: &Type, on_bad: OnBad) -> bool {
        let Value::List(items) = &mut node.value else { return self.wrong(node, "a list") };
        let mut good = true;
        for (index, value) in items.iter_mut().enumerate() {
            let fine = self.below(&format!("[{index}]"), |c| c.value(value, item));
            if !fine {
                // Kept as null, so that the paths of later items stay true.
                value.value = Value::Null;
                good &= on_bad == OnBad::Field;
            }
        }
        good
    }

    fn map(&mut self, node: &mut Node, accepts: fn(&str) -> Result<(), String>, ty: &Type) -> bool {
        let Value::Map(entries) = &mut node.value else { return self.wrong(node, "an object") };
        let mut good = true;
        for entry in entries {
            good &= self.below(&entry.key, |c| {
                if let Err(message) = accepts(&entry.key) {
                    c.error(Reason::WrongType, message);
                    return false;
                }
                if entry.duplicate {
                    c.error(Reason::Duplicate, "stands here a second time; remove one of the two");
                    return false;
                }
                c.value(&mut entry.value, ty)
            });
        }
        good
    }
}

/// A value in a few words.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Integer(n) => format!("the number {n}"),
        Value::Number(n) => format!("the number {n:?}"),
        Value::String(text) => {
            let short: String = text.chars().take(60).collect();
            format!("the text {short:?}")
        }
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "an object".to_owned(),
    }
}

/// What to say of a field that does not exist.
pub(crate) fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("there is no such field; did you mean `{near}`?"),
        None => "there is no such field; remove it or correct its name".to_owned(),
    }
}

/// The known word that a mistyped one is closest to, if any is close.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .map(|k| (distance(&lower, &k.to_lowercase()), k))
        .min()
        .filter(|(d, k)| *d <= 2 && *d < k.len())
        .map(|(_, k)| k)
}

/// Edit distance, swapped neighbours counted as two.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate().take(256) {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Read a time as protobuf's JSON and Go's durations write it: `5s`, `1.5s`, `100ms`, `1h30m`.
pub(crate) fn parse_time(text: &str) -> Option<Duration> {
    // What Envoy can count in nanoseconds: it rejects more.
    const LONGEST: f64 = 9_223_372_035.0;
    let mut rest = text;
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    // Rounded, or 0.1 s would become 99,999,999 ns.
    let nanos = (seconds * 1e9).round();
    if !(0.0..=LONGEST * 1e9).contains(&nanos) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(Duration::new((nanos / 1e9) as u64, (nanos % 1e9) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_istio_users_write_them() {
        for (text, millis) in
            [("5s", 5000), ("0.1s", 100), ("100ms", 100), ("1m", 60_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(parse_time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "5 s", "1d", "1e400s", "999999999999999s"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn a_mistyped_word_finds_its_neighbour() {
        let known = ["http", "hosts", "gateways"];
        assert_eq!(nearest("gatways", known.into_iter()), Some("gateways"));
        assert_eq!(nearest("elephants", known.into_iter()), None);
    }
}
