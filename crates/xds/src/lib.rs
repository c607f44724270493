//! The xDS server: offers each stream the resources of its scope, and remembers what it holds.
//!
//! In: `Publication`s of encoded resources, and a scope per stream. Out: ADS, delta and
//! state-of-the-world; rejections, notices and a status per stream.
//!
//! **Invariant:** knows names, references, versions, bytes and opaque scope ids; never a mesh.

mod chunks;
pub mod connect;
pub mod layer;
mod publication;
pub mod server;
pub mod session;
pub mod stats;
pub mod streams;
mod whole;

pub use connect::{ConnectRequest, Connection, Connector, Event, Refused, What};
pub use envoy_api::{ContentHash, EncodedResource, ResourceRef, ResourceType};
pub use layer::{Layer, LayerEdit};
pub use publication::{Publication, Publisher, ScopeId, ScopeView};
pub use server::{Options, XdsServer};
pub use session::{
    DeltaRequest, Notice, Rejection, Resources, Response, Session, Settings, SotwRequest,
    SotwSession, TypeStatus,
};
pub use stats::{Counter, Stats};
pub use streams::{Protocol, StreamId, StreamStatus, Streams};
pub use whole::Part;
