//! Injection: what a pod gets so that it is part of the mesh.
//!
//! In: a pod as the API server has it, its namespace, the settings of the mesh. Out: a JSON patch,
//! or why there is none.
//!
//! ```text
//! pod ──decide──► Inject ──Wishes (annotations)──► containers, volumes, probes ──► JSON patch
//!                 Skip(why)      │
//!                                └──► Refusal: every annotation or field that cannot be used
//! ```
//!
//! **Invariant:** no I/O, no clock; the pod is JSON from start to end, so that a field which we do
//! not know is left as it is; what was injected is not injected again.

mod annotations;
mod containers;
mod custom;
mod decide;
mod inject;
mod object;
mod pod;
mod probes;
mod proxy_config;
mod refusal;
mod settings;
mod volumes;

pub use decide::{Namespace, Skip, Verdict, decide};
pub use inject::{Outcome, inject};
pub use object::{Injected, inject_object};
pub use proxy_config::ProxyConfig;
pub use refusal::{Fault, Refusal};
pub use settings::{NativeSidecars, Settings, SettingsError};

/// Names of what is injected, and of what marks an injected pod.
pub mod names {
    /// The container that captures traffic, and ends.
    pub const INIT: &str = "heddle-init";
    /// The container of the proxy.
    pub const PROXY: &str = "heddle-proxy";
    /// Annotation that says what was injected, as JSON.
    pub const STATUS: &str = "sidecar.istio.io/status";
    /// Label of pods that can be called by mutual TLS, and its value.
    pub const TLS_MODE: (&str, &str) = ("security.istio.io/tlsMode", "istio");
    /// Label and annotation by which a pod asks for a sidecar, or for none.
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// The same in the words of another mesh: an annotation of pods and namespaces.
    pub const LINKERD_INJECT: &str = "linkerd.io/inject";
    /// Label by which a namespace asks for sidecars, or for none.
    pub const NAMESPACE_INJECTION: &str = "istio-injection";
    /// Label that names the control plane that is meant.
    pub const REVISION: &str = "istio.io/rev";
}
