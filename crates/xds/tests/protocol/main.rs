//! Scripts of the protocol: what a proxy says, and what it gets. Names start with the number of
//! the requirement they show.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the whole crate is a test, its helpers too"
)]

mod delta;
mod dsl;
mod model;
mod order;
mod reject;
mod routes;
mod server;
mod sotw;
