//! Listeners.
//!
//! **Invariant:** what changes often stays out of here: a changed listener cuts connections.

use std::net::IpAddr;
use std::sync::Arc;

use crate::object::Origins;

/// An HTTP port of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Name.
    pub name: Arc<str>,
    /// Address. Shape: none = every address.
    pub bind: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// The RouteConfiguration that decides.
    pub route_config: Arc<str>,
    /// File of the access log. Shape: none = no log.
    pub access_log_file: Option<Arc<str>>,
    /// Gateway servers that open it.
    pub origins: Origins,
}
