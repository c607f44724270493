//! What the tests, the demo and the benchmark share: processes that end with their owner, backends,
//! a controller and an Envoy on loopback, golden cases.
//!
//! In: binaries and YAML. Out: guards that stop what they started when dropped, and measurements.
//!
//! **Invariant:** every process and port belongs to a guard; nothing outlives the program, however
//! it ends.

pub mod agents;
pub mod backend;
pub mod client;
pub mod golden;
pub mod load;
pub mod mesh;
pub mod namespace;
pub mod process;
pub mod relay;
pub mod static_file;
pub mod statistics;
pub mod traffic;
pub mod world;
