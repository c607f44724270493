//! Turns the `validate.rules` options into the static tables that `check` walks.
//!
//! In: descriptors with custom options. Out: Rust source of one `&[Message]`, sorted by name.
//!
//! **Invariant:** a rule that the tables cannot express fails the build; none is skipped quietly.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage as _, Value,
};

type Failure = Box<dyn std::error::Error>;

/// Fields that Envoy compiles; no option says so.
const REGEXES: &[&str] =
    &["envoy.type.matcher.v3.RegexMatcher.regex", "xds.type.matcher.v3.RegexMatcher.regex"];

/// The extensions that carry the rules.
struct Options {
    field: ExtensionDescriptor,
    oneof: ExtensionDescriptor,
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
}

/// What is emitted for one message.
struct Table {
    fields: Vec<Field>,
    /// Required oneofs: name and numbers of the members.
    oneofs: Vec<(String, Vec<u32>)>,
}

struct Field {
    number: u32,
    name: String,
    shape: &'static str,
    own: Vec<String>,
    key: Option<Element>,
    value: Element,
}

struct Element {
    kind: ElementKind,
    rules: Vec<String>,
}

enum ElementKind {
    /// A variant of `Kind` as it is written.
    Plain(String),
    Message(String),
}

/// Source text of the tables.
pub(crate) fn tables(pool: &DescriptorPool) -> Result<String, Failure> {
    let options = Options::find(pool)?;
    let mut tables = BTreeMap::new();
    for message in pool.all_messages() {
        let package = message.package_name();
        if message.is_map_entry() || package == "google.protobuf" || package == "validate" {
            continue;
        }
        if options.is_exempt(&message) {
            continue;
        }
        let table = options.table(&message).map_err(|e| format!("{}: {e}", message.full_name()))?;
        tables.insert(message.full_name().to_owned(), table);
    }
    let useful = useful(&tables);
    let index: BTreeMap<&str, usize> =
        useful.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let mut out = String::from("&[\n");
    for name in &useful {
        let table = &tables[name];
        out += &format!("Message {{ name: {name:?}, fields: &[\n");
        for field in table.fields.iter().filter(|field| field.matters(&useful)) {
            out += &field.source(&index);
        }
        out += "], oneofs: &[";
        for (name, members) in &table.oneofs {
            out += &format!("({name:?}, &{members:?}),");
        }
        out += "] },\n";
    }
    out += "]";
    Ok(out)
}

/// Messages below which something can be at fault.
fn useful(tables: &BTreeMap<String, Table>) -> BTreeSet<String> {
    let mut useful = BTreeSet::new();
    loop {
        let before = useful.len();
        for (name, table) in tables {
            let matters = table.fields.iter().any(|field| field.matters(&useful));
            if matters || !table.oneofs.is_empty() {
                useful.insert(name.clone());
            }
        }
        if useful.len() == before {
            return useful;
        }
    }
}

// === impl Options ===

impl Options {
    fn find(pool: &DescriptorPool) -> Result<Self, Failure> {
        let find = |name: &str, on: &str| {
            pool.all_extensions()
                .find(|e| e.name() == name && e.containing_message().name() == on)
                .filter(|e| e.package_name() == "validate")
                .ok_or_else(|| format!("no extension validate.{name} of {on}"))
        };
        Ok(Self {
            field: find("rules", "FieldOptions")?,
            oneof: find("required", "OneofOptions")?,
            disabled: find("disabled", "MessageOptions")?,
            ignored: find("ignored", "MessageOptions")?,
        })
    }

    fn is_exempt(&self, message: &MessageDescriptor) -> bool {
        let options = message.options();
        [&self.disabled, &self.ignored]
            .iter()
            .any(|extension| options.get_extension(extension).as_bool() == Some(true))
    }

    fn table(&self, message: &MessageDescriptor) -> Result<Table, Failure> {
        let mut fields = Vec::new();
        for field in message.fields() {
            fields.push(self.field(&field).map_err(|e| format!("{}: {e}", field.name()))?);
        }
        let oneofs = message
            .oneofs()
            .filter(|oneof| oneof.options().get_extension(&self.oneof).as_bool() == Some(true))
            .map(|oneof| (oneof.name().to_owned(), oneof.fields().map(|f| f.number()).collect()))
            .collect();
        Ok(Table { fields, oneofs })
    }

    fn field(&self, field: &FieldDescriptor) -> Result<Field, Failure> {
        let options = field.options();
        let rules = options
            .has_extension(&self.field)
            .then(|| options.get_extension(&self.field).into_owned());
        let rules = rules.as_ref().and_then(Value::as_message);
        let mut own = Vec::new();
        let mut key = None;
        let (shape, value) = if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                return Err("map without entry".into());
            };
            let pairs = nested(rules, "map");
            own = list_rules(pairs.as_ref())?;
            let part = |name: &str, rules: &str| -> Result<Element, Failure> {
                let part = entry.get_field_by_name(name).ok_or("map entry without part")?;
                element(&part.kind(), nested(pairs.as_ref(), rules).as_ref())
            };
            key = Some(part("key", "keys")?);
            ("Map", part("value", "values")?)
        } else if field.is_list() {
            let list = nested(rules, "repeated");
            own = list_rules(list.as_ref())?;
            ("Repeated", element(&field.kind(), nested(list.as_ref(), "items").as_ref())?)
        } else {
            let shape = if field.supports_presence() { "Explicit" } else { "Implicit" };
            let is_member = field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic());
            let mut value = element(&field.kind(), rules)?;
            if REGEXES.contains(&field.full_name()) {
                value.rules.push("Rule::Regex".to_owned());
            }
            value.rules.retain(|rule| {
                let required = rule == "Rule::Required";
                // Of a member of a oneof it only says that the chosen member is a message.
                if required && !is_member {
                    own.push(rule.clone());
                }
                !required
            });
            (shape, value)
        };
        let name = field.name().to_owned();
        Ok(Field { number: field.number(), name, shape, own, key, value })
    }
}

// === impl Field ===

impl Field {
    fn matters(&self, useful: &BTreeSet<String>) -> bool {
        let key = self.key.as_ref().is_some_and(|key| !key.rules.is_empty());
        key || !self.own.is_empty() || self.value.matters(useful)
    }

    fn source(&self, index: &BTreeMap<&str, usize>) -> String {
        let key = match &self.key {
            Some(key) => format!("Some({})", key.source(index)),
            None => "None".to_owned(),
        };
        format!(
            "Field {{ number: {}, name: {:?}, shape: Shape::{}, own: &[{}], key: {key}, value: {} }},\n",
            self.number,
            self.name,
            self.shape,
            self.own.join(", "),
            self.value.source(index),
        )
    }
}

// === impl Element ===

impl Element {
    fn matters(&self, useful: &BTreeSet<String>) -> bool {
        let nested = match &self.kind {
            ElementKind::Plain(kind) => kind == "Any",
            ElementKind::Message(name) => useful.contains(name),
        };
        !self.rules.is_empty() || (nested && !self.is_skipped())
    }

    fn is_skipped(&self) -> bool {
        self.rules.iter().any(|rule| rule == "Rule::Skip")
    }

    fn source(&self, index: &BTreeMap<&str, usize>) -> String {
        let kind = match &self.kind {
            ElementKind::Plain(kind) => kind.clone(),
            ElementKind::Message(name) => match index.get(name.as_str()) {
                Some(at) if !self.is_skipped() => format!("Message({at})"),
                _ => "Opaque".to_owned(),
            },
        };
        let rules: Vec<_> = self.rules.iter().filter(|r| *r != "Rule::Skip").cloned().collect();
        format!("Element {{ kind: Kind::{kind}, rules: &[{}] }}", rules.join(", "))
    }
}

/// Name of the variant of `Kind`.
fn plain(kind: &Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Double => "Double",
        Kind::Float => "Float",
        Kind::Int32 | Kind::Int64 | Kind::Enum(_) => "Signed",
        Kind::Uint32 | Kind::Uint64 | Kind::Bool => "Unsigned",
        Kind::Sint32 | Kind::Sint64 => "ZigZag",
        Kind::Fixed32 => "Fixed32",
        Kind::Fixed64 => "Fixed64",
        Kind::Sfixed32 => "SignedFixed32",
        Kind::Sfixed64 => "SignedFixed64",
        Kind::String => "String",
        Kind::Bytes => "Bytes",
        Kind::Message(_) => return None,
    })
}

fn element(kind: &Kind, rules: Option<&DynamicMessage>) -> Result<Element, Failure> {
    let element_kind = match kind {
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Any" => ElementKind::Plain("Any".to_owned()),
            "google.protobuf.Duration" | "google.protobuf.Timestamp" => {
                ElementKind::Plain("Duration".to_owned())
            }
            name if name.starts_with("google.protobuf.") && name.ends_with("Value") => {
                let value = message.get_field_by_name("value");
                match value.and_then(|value| plain(&value.kind())) {
                    Some(inner) => ElementKind::Plain(format!("Wrapper(&Kind::{inner})")),
                    None => ElementKind::Plain("Opaque".to_owned()),
                }
            }
            name => ElementKind::Message(name.to_owned()),
        },
        scalar => ElementKind::Plain(plain(scalar).ok_or("no scalar")?.to_owned()),
    };
    let mut out = Vec::new();
    for (field, value) in rules.into_iter().flat_map(DynamicMessage::fields) {
        let Some(value) = value.as_message() else {
            return Err("rules are no message".into());
        };
        element_rules(field.name(), value, kind, &mut out)?;
    }
    // Emptiness is asked first, whatever the order in the option.
    out.sort_by_key(|rule| rule != "Rule::IgnoreEmpty");
    Ok(Element { kind: element_kind, rules: out })
}

fn element_rules(
    family: &str,
    rules: &DynamicMessage,
    kind: &Kind,
    out: &mut Vec<String>,
) -> Result<(), Failure> {
    let lax = nested_value(rules, "strict") == Some(Value::Bool(false));
    for (field, value) in rules.fields() {
        let name = field.name();
        let rule = match (family, name) {
            (_, "ignore_empty") => flag(value, "Rule::IgnoreEmpty"),
            ("message" | "any" | "duration" | "timestamp", "required") => {
                flag(value, "Rule::Required")
            }
            ("message", "skip") => flag(value, "Rule::Skip"),
            ("enum", "defined_only") => {
                let Kind::Enum(values) = kind else {
                    return Err("no enum".into());
                };
                let numbers: Vec<i32> = values.values().map(|v| v.number()).collect();
                flag(value, &format!("Rule::DefinedOnly(&{numbers:?})"))
            }
            ("string" | "any", "in") => Some(format!("Rule::TextIn(&{})", texts(value)?)),
            ("string" | "any", "not_in") => Some(format!("Rule::TextNotIn(&{})", texts(value)?)),
            ("string", "strict") => None,
            ("string", "well_known_regex") => match value.as_enum_number() {
                Some(1) => Some(format!("Rule::HeaderName {{ strict: {} }}", !lax)),
                Some(2) => Some(format!("Rule::HeaderValue {{ strict: {} }}", !lax)),
                _ => None,
            },
            ("string", _) => Some(text_rule(name, value)?),
            ("bytes", "min_len") => Some(format!("Rule::MinBytes({})", unsigned(value)?)),
            ("bytes", "max_len") => Some(format!("Rule::MaxBytes({})", unsigned(value)?)),
            ("float" | "double", _) => Some(number_rule("Float", name, value, &float)?),
            ("duration" | "timestamp", _) => Some(number_rule("Int", name, value, &nanos)?),
            ("bool" | "enum", _) => Some(number_rule("Int", name, value, &integer)?),
            (family, _) if family.contains("int") || family.contains("fixed") => {
                Some(number_rule("Int", name, value, &integer)?)
            }
            _ => return Err(format!("rule {family}.{name} is not known").into()),
        };
        out.extend(rule);
    }
    Ok(())
}

fn list_rules(rules: Option<&DynamicMessage>) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    for (field, value) in rules.into_iter().flat_map(DynamicMessage::fields) {
        let rule = match field.name() {
            "min_items" | "min_pairs" => Some(format!("Rule::MinItems({})", unsigned(value)?)),
            "max_items" | "max_pairs" => Some(format!("Rule::MaxItems({})", unsigned(value)?)),
            "unique" => flag(value, "Rule::Unique"),
            "ignore_empty" => flag(value, "Rule::IgnoreEmpty"),
            "items" | "keys" | "values" => None,
            name => return Err(format!("rule {name} of a list is not known").into()),
        };
        out.extend(rule);
    }
    out.sort_by_key(|rule| rule != "Rule::IgnoreEmpty");
    Ok(out)
}

fn text_rule(name: &str, value: &Value) -> Result<String, Failure> {
    let text = || value.as_str().ok_or("no text");
    Ok(match name {
        "const" => format!("Rule::TextIn(&[{:?}])", text()?),
        "min_len" => format!("Rule::MinLen({})", unsigned(value)?),
        "max_len" => format!("Rule::MaxLen({})", unsigned(value)?),
        "min_bytes" => format!("Rule::MinBytes({})", unsigned(value)?),
        "max_bytes" => format!("Rule::MaxBytes({})", unsigned(value)?),
        "prefix" => format!("Rule::Prefix({:?})", text()?),
        "suffix" => format!("Rule::Suffix({:?})", text()?),
        "contains" => format!("Rule::Contains({:?})", text()?),
        "not_contains" => format!("Rule::NotContains({:?})", text()?),
        // The few patterns that occur are matched by hand: no regular expressions at run time.
        "pattern" => match text()? {
            "^[^?#]+[^?#/]$" => "Rule::PathPrefix".to_owned(),
            "^[0-9a-zA-Z_\\-\\./~:]+$" => "Rule::Alphanumeric(\"_-./~:\")".to_owned(),
            "^[0-9a-zA-Z_\\-\\.~:]+$" => "Rule::Alphanumeric(\"_-.~:\")".to_owned(),
            other => return Err(format!("pattern {other} is not known").into()),
        },
        name => return Err(format!("rule string.{name} is not known").into()),
    })
}

fn number_rule(
    family: &str,
    name: &str,
    value: &Value,
    text: &dyn Fn(&Value) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let list = |value: &Value| -> Result<String, Failure> {
        let items = value.as_list().ok_or("no list")?;
        let items: Result<Vec<_>, _> = items.iter().map(text).collect();
        Ok(items?.join(", "))
    };
    Ok(match name {
        "const" => format!("Rule::{family}In(&[{}])", text(value)?),
        "in" => format!("Rule::{family}In(&[{}])", list(value)?),
        "not_in" => format!("Rule::{family}NotIn(&[{}])", list(value)?),
        "gt" => format!("Rule::{family}(Bound::Above, {})", text(value)?),
        "gte" => format!("Rule::{family}(Bound::AtLeast, {})", text(value)?),
        "lt" => format!("Rule::{family}(Bound::Below, {})", text(value)?),
        "lte" => format!("Rule::{family}(Bound::AtMost, {})", text(value)?),
        name => return Err(format!("rule {name} of a number is not known").into()),
    })
}

fn flag(value: &Value, rule: &str) -> Option<String> {
    (value.as_bool() == Some(true)).then(|| rule.to_owned())
}

fn unsigned(value: &Value) -> Result<u64, Failure> {
    Ok(value.as_u64().ok_or("no unsigned number")?)
}

fn texts(value: &Value) -> Result<String, Failure> {
    let items = value.as_list().ok_or("no list")?;
    Ok(format!("{:?}", items.iter().filter_map(Value::as_str).collect::<Vec<_>>()))
}

fn integer(value: &Value) -> Result<String, Failure> {
    Ok(match value {
        Value::Bool(v) => i32::from(*v).to_string(),
        Value::EnumNumber(v) | Value::I32(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        _ => return Err("no integer".into()),
    })
}

fn float(value: &Value) -> Result<String, Failure> {
    Ok(match value {
        Value::F32(v) => format!("{v:?}_f64"),
        Value::F64(v) => format!("{v:?}_f64"),
        _ => return Err("no float".into()),
    })
}

fn nanos(value: &Value) -> Result<String, Failure> {
    let message = value.as_message().ok_or("no duration")?;
    let part = |name: &str| match nested_value(message, name) {
        Some(Value::I64(v)) => i128::from(v),
        Some(Value::I32(v)) => i128::from(v),
        _ => 0,
    };
    Ok((part("seconds") * 1_000_000_000 + part("nanos")).to_string())
}

fn nested_value(message: &DynamicMessage, name: &str) -> Option<Value> {
    let field = message.descriptor().get_field_by_name(name)?;
    message.has_field(&field).then(|| message.get_field(&field).into_owned())
}

fn nested(message: Option<&DynamicMessage>, name: &str) -> Option<DynamicMessage> {
    match nested_value(message?, name)? {
        Value::Message(message) => Some(message),
        _ => None,
    }
}
