//! Sources: where objects come from.
//!
//! **Invariant:** a source keeps what it read before when it cannot read on: a failed list is
//! never an empty list. Names neither translation nor delivery.

pub(crate) mod directory;
mod files;
pub(crate) mod kubernetes;
mod states;

pub(crate) use states::{SourceState, SourceStates, Watched};
