//! YAML (and with it JSON) as a tree that remembers where each value stands.
//!
//! In: the text of one document. Out: a `Node`, or the place where the text stops being YAML.
//!
//! **Invariant:** bounded in depth and in nodes, aliases counted as often as they are used, so
//! that a document of a few lines cannot fill the memory.

use std::collections::BTreeMap;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Nesting that a document may have.
const MAX_DEPTH: usize = 128;
/// Nodes that aliases may add.
const MAX_ALIASED: usize = 100_000;

/// A place in a text. Unit: lines and columns from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub at: Mark,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in written order.
    Map(Vec<Entry>),
}

/// A key, where it stands, and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub at: Mark,
    /// Whether the same key stands further up.
    pub duplicate: bool,
    /// The value.
    pub value: Node,
}

/// The text is no YAML, or more than we take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub at: Mark,
    /// Why; lower case, no full stop.
    pub message: String,
}

/// Parse the text of one document; `Null` for an empty one.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut reader =
        Reader { events: Parser::new_from_str(text), anchors: BTreeMap::new(), aliased: 0 };
    reader.document().map_err(|mut error| {
        // The parser puts the end of a text on a line of its own, which nobody can go to.
        let lines = u32::try_from(text.lines().count().max(1)).unwrap_or(u32::MAX);
        if error.at.line > lines {
            let last = text.lines().last().unwrap_or_default().chars().count();
            let column = u32::try_from(last + 1).unwrap_or(u32::MAX);
            error.at = Mark { line: lines, column };
        }
        error
    })
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, (Node, usize)>,
    aliased: usize,
}

/// One step of a field path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step<'a> {
    /// To the value of a key.
    Key(&'a str),
    /// To an item of a list.
    Item(usize),
}

/// The steps of a field path such as `spec.http[0].match`.
pub(crate) fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split(['.', '[']).filter(|step| !step.is_empty()).map(|step| {
        let index = step.strip_suffix(']').and_then(|index| index.parse().ok());
        index.map_or(Step::Key(step), Step::Item)
    })
}

// === impl Mark ===

impl Mark {
    /// The same place in a text before which so many lines stand.
    #[must_use]
    pub fn after(self, lines: u32) -> Self {
        Self { line: self.line.saturating_add(lines), ..self }
    }
}

impl From<Marker> for Mark {
    fn from(marker: Marker) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
    }
}

// === impl Node ===

impl Node {
    /// The value of a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|e| e.key == key && !e.duplicate).map(|e| &e.value)
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries, if it is a map.
    pub fn as_map(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a key, to be changed.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let Value::Map(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|e| e.key == key && !e.duplicate).map(|e| &mut e.value)
    }

    /// The items of the list under a key; none where there is no such list.
    pub(crate) fn into_items(self, key: &str) -> Vec<Node> {
        let Value::Map(entries) = self.value else { return Vec::new() };
        match entries.into_iter().find(|e| e.key == key && !e.duplicate).map(|e| e.value.value) {
            Some(Value::List(items)) => items,
            _ => Vec::new(),
        }
    }

    /// Whether there is nothing.
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// The same without places and without empty fields, as serde reads it.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Integer(n) => Json::from(*n),
            Value::Number(n) => Json::from(*n),
            Value::String(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .filter(|e| !e.duplicate && !e.value.is_null())
                    .map(|e| (e.key.clone(), e.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// The place of a field path such as `spec.http[0].match`; of the deepest part that exists.
    pub fn locate(&self, path: &str) -> Mark {
        let (mut node, mut at) = (self, self.at);
        for step in steps(path) {
            let next = match step {
                Step::Item(index) => {
                    node.as_list().and_then(|items| items.get(index)).map(|n| (n, n.at))
                }
                Step::Key(key) => {
                    let entries = node.as_map().unwrap_or_default();
                    entries.iter().find(|e| e.key == key).map(|e| (&e.value, e.at))
                }
            };
            let Some(next) = next else { break };
            (node, at) = next;
        }
        at
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.value.size()).sum(),
            _ => 0,
        }
    }
}

impl From<serde_json::Value> for Node {
    /// A value that was never text of ours: it has no places.
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(b),
            Json::Number(n) => match n.as_i64() {
                Some(whole) => Value::Integer(whole),
                None => Value::Number(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::String(text),
            Json::Array(items) => Value::List(items.into_iter().map(Node::from).collect()),
            Json::Object(fields) => Value::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        at: Mark::default(),
                        duplicate: false,
                        value: Node::from(value),
                    })
                    .collect(),
            ),
        };
        Self { value, at: Mark::default() }
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn document(&mut self) -> Result<Node, SyntaxError> {
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(Node { value: Value::Null, at }),
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::DocumentEnd => return Ok(Node { value: Value::Null, at }),
                event => {
                    let node = self.node(event, at, 0)?;
                    return self.expect_end(node);
                }
            }
        }
    }

    fn expect_end(&mut self, node: Node) -> Result<Node, SyntaxError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(node),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, at) => {
                    let message = "a second document begins here without `---`".to_owned();
                    return Err(SyntaxError { at, message });
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'static>, Mark), SyntaxError> {
        match self.events.next() {
            Some(Ok((event, span))) => Ok((owned(event), Mark::from(span.start))),
            Some(Err(error)) => {
                let message = error.info().to_lowercase();
                Err(SyntaxError { at: Mark::from(*error.marker()), message })
            }
            None => Ok((Event::StreamEnd, Mark::default())),
        }
    }

    fn node(&mut self, event: Event<'_>, at: Mark, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(SyntaxError { at, message });
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|t| t.is_yaml_core_schema() && t.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_text;
                (if plain { plain_scalar(&text) } else { Value::String(text.into_owned()) }, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => return self.alias(id, at),
            _ => {
                let message = "a value is missing here".to_owned();
                return Err(SyntaxError { at, message });
            }
        };
        let node = Node { value, at };
        if anchor > 0 {
            let size = node.size();
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, at, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(Value::Map(entries));
            }
            let key = match self.node(event, at, depth + 1)?.value {
                Value::String(text) => text,
                Value::Integer(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
                Value::Number(n) => n.to_string(),
                Value::Null | Value::List(_) | Value::Map(_) => {
                    let message = "a key must be a text".to_owned();
                    return Err(SyntaxError { at, message });
                }
            };
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            let duplicate = !seen.insert(key.clone());
            entries.push(Entry { key, at, duplicate, value });
        }
    }

    fn alias(&mut self, id: usize, at: Mark) -> Result<Node, SyntaxError> {
        let Some((node, size)) = self.anchors.get(&id) else {
            let message = "an alias inside the value that it names".to_owned();
            return Err(SyntaxError { at, message });
        };
        self.aliased = self.aliased.saturating_add(*size);
        if self.aliased > MAX_ALIASED {
            let message = format!("aliases repeat more than {MAX_ALIASED} values");
            return Err(SyntaxError { at, message });
        }
        Ok(node.clone())
    }
}

/// An event that does not borrow from the reader; texts are copied once here instead of in the
/// tree.
fn owned(event: Event<'_>) -> Event<'static> {
    use std::borrow::Cow;
    match event {
        Event::Scalar(text, style, anchor, tag) => Event::Scalar(
            Cow::Owned(text.into_owned()),
            style,
            anchor,
            tag.map(|t| Cow::Owned(t.into_owned())),
        ),
        Event::SequenceStart(anchor, tag) => {
            Event::SequenceStart(anchor, tag.map(|t| Cow::Owned(t.into_owned())))
        }
        Event::MappingStart(anchor, tag) => {
            Event::MappingStart(anchor, tag.map(|t| Cow::Owned(t.into_owned())))
        }
        Event::Alias(id) => Event::Alias(id),
        Event::DocumentStart(explicit) => Event::DocumentStart(explicit),
        Event::DocumentEnd => Event::DocumentEnd,
        Event::SequenceEnd => Event::SequenceEnd,
        Event::MappingEnd => Event::MappingEnd,
        Event::StreamStart => Event::StreamStart,
        Event::StreamEnd => Event::StreamEnd,
        Event::Nothing => Event::Nothing,
    }
}

/// A plain scalar by the core schema of YAML 1.2.
fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let starts_as_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if !starts_as_number {
        return Value::String(text.to_owned());
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Value::Integer(whole);
    }
    let hex = text.strip_prefix("0x").and_then(|t| i64::from_str_radix(t, 16).ok());
    let octal = text.strip_prefix("0o").and_then(|t| i64::from_str_radix(t, 8).ok());
    if let Some(whole) = hex.or(octal) {
        return Value::Integer(whole);
    }
    let numeric = text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    match text.parse::<f64>() {
        Ok(number) if numeric && number.is_finite() => Value::Number(number),
        _ => Value::String(text.to_owned()),
    }
}

// === impl SyntaxError ===

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.at.line, self.at.column, self.message)
    }
}

impl std::error::Error for SyntaxError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_path_leads_to_its_line_and_column() {
        let node = parse("a:\n  - b: 1\n    c: x\n").expect("valid");
        assert_eq!(node.locate("a[0].c"), Mark { line: 3, column: 5 });
        assert_eq!(node.locate("a[0].missing.deeper"), Mark { line: 2, column: 5 });
        assert_eq!(node.locate(""), Mark { line: 1, column: 1 });
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        for (text, value) in [
            ("~", Value::Null),
            ("true", Value::Bool(true)),
            ("yes", Value::String("yes".into())),
            ("12", Value::Integer(12)),
            ("0x1f", Value::Integer(31)),
            ("1.5", Value::Number(1.5)),
            ("1.2.3", Value::String("1.2.3".into())),
            ("\"12\"", Value::String("12".into())),
            ("!!str 12", Value::String("12".into())),
            ("nan", Value::String("nan".into())),
        ] {
            assert_eq!(parse(text).expect(text).value, value, "{text}");
        }
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let last = level - 1;
            let refs = vec![format!("*a{last}"); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        let error = parse(&text).expect_err("a bomb");
        assert!(error.message.contains("aliases repeat"), "{error}");
    }

    #[test]
    fn deep_nesting_is_refused_without_overflow() {
        let error = parse(&"[".repeat(100_000)).expect_err("too deep");
        assert!(error.message.contains("nested") || error.message.contains("recursion"), "{error}");
    }

    #[test]
    fn a_duplicate_key_is_kept_and_marked() {
        let node = parse("a: 1\na: 2\n").expect("read");
        assert_eq!(node.get("a").map(|n| n.value.clone()), Some(Value::Integer(1)));
        assert!(node.as_map().expect("map")[1].duplicate);
    }
}
