//! The field rules of Envoy's messages, as data.
//!
//! In: the table that build.rs makes of the `validate.rules` options. Out: lookup by name.
//!
//! **Invariant:** holds no logic; sorted by message name.

/// Rules of one message, and which of its fields lead to others.
pub(super) struct Message {
    /// Full name, without domain.
    pub(super) name: &'static str,
    /// Fields that have rules or may hold something that has; ascending numbers.
    pub(super) fields: &'static [Field],
    /// Oneofs of which one member must be set: name, member numbers.
    pub(super) oneofs: &'static [(&'static str, &'static [u32])],
}

/// One field.
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// Rules of the field as a whole: presence, number of items.
    pub(super) own: &'static [Rule],
    /// Of a map: its keys.
    pub(super) key: Option<Element>,
    /// The value, each item, or each value of a map.
    pub(super) value: Element,
}

/// How often a field may occur.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Absent means the default value, which the rules judge too.
    Implicit,
    /// Absent means unset, and is judged only by `Rule::Required`.
    Explicit,
    /// A list.
    Repeated,
    /// A map.
    Map,
}

/// What one value is and must be.
pub(super) struct Element {
    pub(super) kind: Kind,
    pub(super) rules: &'static [Rule],
}

/// How a value is encoded.
// The generated table does not use every kind in every version of the API.
#[allow(dead_code)]
pub(super) enum Kind {
    Double,
    Float,
    Signed,
    Unsigned,
    ZigZag,
    Fixed32,
    Fixed64,
    SignedFixed32,
    SignedFixed64,
    String,
    Bytes,
    /// Judged as its nanoseconds.
    Duration,
    /// A message around one scalar.
    Wrapper(&'static Kind),
    /// Looked up by its type URL.
    Any,
    /// The message at this place in the table.
    Message(usize),
    /// A message without rules.
    Opaque,
}

/// One rule.
#[allow(dead_code)]
pub(super) enum Rule {
    /// Skip the others when the value is empty.
    IgnoreEmpty,
    Required,
    MinItems(usize),
    MaxItems(usize),
    Unique,
    Int(Bound, i128),
    IntIn(&'static [i128]),
    IntNotIn(&'static [i128]),
    Float(Bound, f64),
    FloatIn(&'static [f64]),
    FloatNotIn(&'static [f64]),
    DefinedOnly(&'static [i128]),
    /// In characters.
    MinLen(usize),
    /// In characters.
    MaxLen(usize),
    MinBytes(usize),
    MaxBytes(usize),
    Prefix(&'static str),
    Suffix(&'static str),
    Contains(&'static str),
    NotContains(&'static str),
    TextIn(&'static [&'static str]),
    TextNotIn(&'static [&'static str]),
    HeaderName {
        strict: bool,
    },
    HeaderValue {
        strict: bool,
    },
    /// A path without query and fragment that does not end in a slash.
    PathPrefix,
    /// An expression that RE2 compiles.
    Regex,
    /// At least one character, each a letter, a digit or one of these.
    Alphanumeric(&'static str),
}

/// Which side of the limit is allowed.
#[derive(Clone, Copy)]
#[allow(dead_code)]
pub(super) enum Bound {
    Above,
    AtLeast,
    Below,
    AtMost,
}

static MESSAGES: &[Message] = include!(concat!(env!("OUT_DIR"), "/rules.rs"));

/// The message with this full name, if it has rules.
pub(super) fn find(name: &str) -> Option<&'static Message> {
    let at = MESSAGES.binary_search_by(|message| message.name.cmp(name)).ok()?;
    MESSAGES.get(at)
}

/// The message at a place that `Kind::Message` names.
pub(super) fn at(index: usize) -> Option<&'static Message> {
    MESSAGES.get(index)
}
