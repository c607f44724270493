//! The part of Kubernetes that routing reads.
//!
//! **Invariant:** slim: only the fields that are used are decoded, and what an API server has
//! validated is not validated again. A field that cannot be read is a problem of its object.

pub(crate) mod endpoint_slice;
pub(crate) mod endpoints;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod service;

use model::{Problem, Reason};
use serde::de::DeserializeOwned;

use crate::object::RawObject;
use crate::yaml::Value;

/// Decode the whole object; on failure say what is wrong and where.
fn decode<T: DeserializeOwned>(raw: &RawObject, problems: &mut Vec<Problem>) -> Option<T> {
    let json = raw.body.to_json();
    match serde_path_to_error::deserialize(json) {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            // Serde speaks of Rust's types.
            let why = error.inner().to_string();
            let why = why.replace("expected u16", "expected a whole number between 0 and 65535");
            let message = format!("{why}; the object is not used");
            problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
            None
        }
    }
}

/// The value of an annotation, and its field.
fn annotation<'a>(raw: &'a RawObject, name: &str) -> Option<(String, &'a Value)> {
    let annotations = raw.body.get("metadata").and_then(|m| m.get("annotations"))?;
    Some((format!("metadata.annotations.{name}"), &annotations.get(name)?.value))
}
