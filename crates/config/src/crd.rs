//! CustomResourceDefinitions, made of the schemas that objects are checked against.
//!
//! In: a kind of the table. Out: the document that an API server takes.
//!
//! The API server refuses what has the wrong type, is outside its bounds or is not among the words;
//! what is refused there never gets here. What it lets through and we cannot use is a `Problem`.
//!
//! **Invariant:** every field of the API is in the document, else the API server would drop it in
//! silence: a field that we do not read yet takes any value.

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
        "properties": {"spec": schema(spec), "status": status()},
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

/// A type as a structural schema.
fn schema(ty: &Type) -> Value {
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
        Type::Time(_) => json!({"type": "string", "pattern": TIME}),
        Type::Enum(words) => json!({"type": "string", "enum": words}),
        Type::Object(fields) | Type::Strict(fields) => object(fields),
        Type::OneOf(fields, may_be_empty) => {
            let mut schema = object(fields);
            let names = fields.iter().map(|f| json!({"required": [f.name]}));
            let mut choices: Vec<Value> = names.collect();
            if *may_be_empty {
                choices.push(json!({"not": {"anyOf": choices.clone()}}));
            }
            schema["oneOf"] = Value::Array(choices);
            schema
        }
        Type::List(item, _) => json!({"type": "array", "items": schema(item)}),
        Type::Map(_, value) => json!({"type": "object", "additionalProperties": schema(value)}),
    }
}

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|field| {
            let mut schema = schema(&field.ty);
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
