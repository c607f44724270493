//! What users write: Istio's routing API, the part of Kubernetes that routing reads, mesh settings.
//!
//! ```text
//! text ──read──► RawObject ──check against schema──► decode ──lower──► model::Change + Problems
//! ```
//! [`read`] splits a text into objects, [`lower`] turns one object into rows of the model; the
//! table [`KINDS`] says for each kind how.
//!
//! **Invariant:** no I/O, no clock, no environment, no async; no user mistake is an error path: it
//! is a `Problem` on the object, and the rest of the object stays in force.

pub mod crd;
mod export_to;
mod head;
mod istio;
mod json;
mod kind;
mod kubernetes;
mod object;
mod places;
mod regex;
pub mod schema;
mod text;
pub mod yaml;

pub use istio::mesh_config::read_mesh_config;
pub use istio::proxy_config::{
    ProxyConfig, ReadProxyConfig, read_default_proxy_config, read_proxy_config,
};
pub use kind::{KINDS, Kind, KindScope, Known, known_kind, lower};
pub use object::{Located, RawObject, Read, documents, read};
pub use places::Places;
