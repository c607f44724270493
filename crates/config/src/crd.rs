//! CustomResourceDefinitions, made of the schemas that objects are checked against.
//!
//! In: a kind of the table. Out: the document that an API server takes.
//!
//! The API server refuses what has the wrong type, is outside its bounds or is not among the words;
//! what is refused there never gets here. What it lets through and we cannot use is a `Problem`.
//!
//! **Invariant:** every field of the API is in the document, else the API server would drop it in
//! silence; a field that we do not read yet is checked too.

use serde_json::{Map, Value, json};

use crate::kind::{KindScope, Known};
use crate::schema::{Field, Support, Type};

/// A time, in the units that Go's durations and protobuf's JSON have.
const TIME: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*$";

/// The definition of a kind; none where an API server has it anyway, or holds no such objects.
pub fn definition(known: &Known) -> Option<Value> {
    let spec = known.kind.spec().filter(|_| known.in_api)?;
    let singular = known.name.to_lowercase();
    let mut names = json!({
        "kind": known.name,
        "listKind": format!("{}List", known.name),
        "plural": known.plural,
        "singular": singular,
        // As Istio's own: `kubectl get istio-io`.
        "categories": ["istio-io", known.group.replace('.', "-")],
    });
    if !known.short_name.is_empty() {
        names["shortNames"] = json!([known.short_name]);
    }
    let own = known.columns.iter().map(|(name, path)| column(name, "string", path));
    let accepted = ".status.conditions[?(@.type==\"Accepted\")].status";
    let columns: Vec<Value> = own
        .chain([
            column("Accepted", "string", accepted),
            column("Age", "date", ".metadata.creationTimestamp"),
        ])
        .collect();
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": schema(spec, Within::Nothing), "status": status()},
    });
    let versions: Vec<Value> = (0..)
        .zip(known.versions)
        .map(|(index, version): (usize, _)| {
            json!({
                "name": version,
                "served": true,
                "storage": index == 0,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            })
        })
        .collect();
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", known.plural, known.group),
            "labels": {"app.kubernetes.io/part-of": "heddle"},
            // Deleting a definition deletes every object of it.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": known.group,
            "names": names,
            "scope": match known.scope {
                KindScope::Namespaced => "Namespaced",
                KindScope::Cluster => "Cluster",
            },
            "versions": versions,
        },
    }))
}

fn column(name: &str, ty: &str, path: &str) -> Value {
    json!({"name": name, "type": ty, "jsonPath": path})
}

/// The status that we write, and what other implementations of the API write beside it.
fn status() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "properties": {
                        "type": text(),
                        "status": text(),
                        "reason": text(),
                        "message": text(),
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "lastProbeTime": {"type": "string", "format": "date-time"},
                        "observedGeneration": {"type": "integer", "format": "int64"},
                    },
                },
            },
        },
    })
}

/// Lists that a value stands in. An API server takes a rule only if it can tell that it will never
/// cost much: by how long the lists are at most, and how many of them are in each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Within {
    Nothing,
    List,
    Lists,
}

/// A type as a structural schema.
fn schema(ty: &Type, within: Within) -> Value {
    match ty {
        Type::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Text | Type::Checked(_) => json!({"type": "string"}),
        Type::Integer(least, most) => {
            json!({"type": "integer", "format": "int64", "minimum": least, "maximum": most})
        }
        Type::Number(least, most) => {
            let mut schema = json!({"type": "number"});
            for (key, bound) in [("minimum", least), ("maximum", most)] {
                if bound.is_finite() {
                    schema[key] = json!(bound);
                }
            }
            schema
        }
        Type::IntegerOrText => json!({"x-kubernetes-int-or-string": true}),
        Type::Time(least) => time(*least, within),
        Type::Enum(words) => json!({"type": "string", "enum": words}),
        Type::Object(fields) | Type::Strict(fields) => object(fields, within),
        Type::OneOf(fields, may_be_empty) => {
            let mut schema = object(fields, within);
            let names = fields.iter().map(|f| json!({"required": [f.name]}));
            let mut choices: Vec<Value> = names.collect();
            if *may_be_empty {
                choices.push(json!({"not": {"anyOf": choices.clone()}}));
            }
            schema["oneOf"] = Value::Array(choices);
            schema
        }
        Type::List(item, _) => list(item, within),
        Type::Map(_, value) => {
            let value = schema(value, Within::Lists);
            json!({"type": "object", "additionalProperties": value})
        }
        Type::Ruled(ty, rules) => {
            let rules = rules.iter().map(|rule| (rule.holds, rule.else_says));
            ruled(schema(ty, within), within, rules)
        }
    }
}

fn list(item: &Type, within: Within) -> Value {
    // More than an object can hold whose items mean something.
    const MOST: usize = 16_384;
    match within {
        Within::Nothing => {
            let items = schema(item, Within::List);
            json!({"type": "array", "maxItems": MOST, "items": items})
        }
        Within::List | Within::Lists => {
            json!({"type": "array", "items": schema(item, Within::Lists)})
        }
    }
}

/// A time of at least this many milliseconds, or none at all where that is allowed.
fn time(least: u64, within: Within) -> Value {
    // More than any time that makes sense has digits.
    const LONGEST: usize = 64;
    let (rule, message) = match least {
        0 => (
            "duration(self) == duration('0s') || duration(self) >= duration('1ms')".to_owned(),
            "must be 0s or at least 1ms".to_owned(),
        ),
        n => (format!("duration(self) >= duration('{n}ms')"), format!("must be at least {n}ms")),
    };
    let schema = json!({"type": "string", "maxLength": LONGEST, "pattern": TIME});
    ruled(schema, within, [(&*rule, &*message)])
}

/// Add rules, where an API server takes them; elsewhere only our own check says what is wrong.
fn ruled<'a>(
    mut schema: Value,
    within: Within,
    rules: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Value {
    if within < Within::Lists {
        let rules = rules.into_iter().map(|(rule, says)| json!({"rule": rule, "message": says}));
        schema["x-kubernetes-validations"] = rules.collect();
    }
    schema
}

fn object(fields: &[Field], within: Within) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|field| {
            let mut schema = schema(&field.ty, within);
            if field.support == Support::NotYet {
                schema["description"] = json!("Not supported by this version of Heddle.");
            }
            (field.name.to_owned(), schema)
        })
        .collect();
    let mut schema = json!({"type": "object", "properties": properties});
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}
