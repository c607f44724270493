//! The mesh as Heddle understands it: typed rows in, what applies to whom out.
//!
//! ```text
//! Change ──► Snapshot ──► resolve (through a View) ──► ir rows, scopes ──► Update
//! ```
//! `config` lowers objects to [`rows`]; [`Engine`] keeps them and resolves them, per group of
//! proxies, to [`ir`]; `translate` spells each `ir` value in Envoy's words.
//!
//! **Invariant:** no CRD syntax, no Envoy syntax, no I/O, no clock, no environment, no async; the
//! output is a function of the set of objects and proxies, never of their history.

mod engine;
pub mod hosts;
pub mod ir;
pub mod names;
mod object;
mod problem;
mod proxy;
mod resolve;
pub mod rows;
mod snapshot;
mod track;

pub use engine::{
    About, AboutRole, Batch, Engine, LayerDiff, LayerId, ProxyKey, ResourceId, ScopeId, Update,
};
pub use object::{Kind, ObjectRef, Origin, Origins};
pub use problem::{Problem, Reason, Severity};
pub use proxy::{BadNodeId, Capabilities, EnvoyVersion, Proxy, Role};
pub use resolve::RowKey;
pub use snapshot::{Change, Row, RowId, Snapshot};
pub use track::Ran;
