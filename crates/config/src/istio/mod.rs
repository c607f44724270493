//! Istio's routing API.
//!
//! **Invariant:** each file is one kind: its schema with every field of the API, its decoded form,
//! its lowering.

mod client_tls;
mod connection_pool;
pub(crate) mod destination_rule;
pub(crate) mod gateway;
mod later;
mod locality;
pub(crate) mod mesh_config;
pub(crate) mod peer_authentication;
pub(crate) mod proxy_config;
mod retries;
pub(crate) mod service_entry;
pub(crate) mod sidecar;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;

use model::{Change, Problem, Reason};
use serde::de::DeserializeOwned;

use crate::object::RawObject;
use crate::schema::{Type, check, parse_time};

/// Check the `spec` of an object and decode what is left of it.
fn decode<T: DeserializeOwned>(
    raw: &mut RawObject,
    schema: &Type,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let Some(spec) = raw.body.get_mut("spec").filter(|s| !s.is_null()) else {
        problems.push(Problem::error(&raw.owner, "spec", Reason::Required, "is required"));
        return None;
    };
    if !check(&raw.owner, "spec", spec, schema, problems) {
        return None;
    }
    match serde_json::from_value(spec.to_json()) {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            let message = error.to_string();
            problems.push(Problem::error(&raw.owner, "spec", Reason::WrongType, message));
            None
        }
    }
}

/// An object that gives nothing.
fn nothing(raw: RawObject) -> Change {
    Change { owner: raw.owner, rows: Vec::new() }
}

/// A time that the schema has checked.
fn time(text: Option<String>) -> Option<std::time::Duration> {
    text.as_deref().and_then(parse_time)
}

/// Whether a field is this one, or lies below it.
fn lies(field: &str, path: &str) -> bool {
    field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
