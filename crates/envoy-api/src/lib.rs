//! Heddle: the Envoy v3 API, and everything that knows how it looks on the wire.
//!
//! In: mesh-free values. Out: Envoy messages, their bytes, their faults and their JSON.
//!
//! **Invariant:** does no I/O and names no mesh concept; the messages are generated at build time
//! from the protos of the pinned package `envoy-types`, none of whose text is copied here.
//!
//! ```
//! use envoy_api::envoy::config::cluster::v3::Cluster;
//!
//! let cluster = Cluster { name: "outbound".to_owned(), ..Default::default() };
//! assert_eq!(envoy_api::Any::pack(&cluster).unpack::<Cluster>(), Ok(cluster));
//! ```

pub mod any;
pub mod bootstrap;
pub mod check;
pub mod config_source;
pub mod dump;
pub mod json;
pub mod mutual_tls;
pub mod resource;
pub mod secrets;

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        rustdoc::all,
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used
    )]

    include!(concat!(env!("OUT_DIR"), "/envoy_api.rs"));
}

pub use any::Any;
pub use generated::{envoy, google, udpa, xds};
pub use resource::{ContentHash, EncodedResource, ResourceRef, ResourceType};
