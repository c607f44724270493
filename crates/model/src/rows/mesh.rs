//! Settings of the whole mesh.
//!
//! **Invariant:** one row; the defaults stand here and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use super::policy::LocalityBalance;
use super::routing::RetryPolicy;
use super::scope::OutboundPolicy;
use super::visibility::DefaultVisibility;

/// Settings of the whole mesh. Source: MeshConfig.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// Namespace whose rules apply to every namespace. Source: `rootNamespace`.
    pub root_namespace: Arc<str>,
    /// Domain of services, such as `cluster.local`. Source: Kubernetes, not MeshConfig.
    pub domain: Arc<str>,
    /// Domain of identities, as in `spiffe://cluster.local/…`. Source: `trustDomain`.
    pub trust_domain: Arc<str>,
    /// Whether clients use mutual TLS where the endpoint takes it, without being told. Source:
    /// `enableAutoMtls`.
    pub auto_mtls: bool,
    /// Time to open a connection where no policy says otherwise. Source: `connectTimeout`.
    pub connect_timeout: Duration,
    /// Retries where a rule has none of its own. Source: `defaultHttpRetryPolicy`.
    pub default_retry: RetryPolicy,
    /// File that proxies write access logs to. Shape: none = no access log. Source:
    /// `accessLogFile`.
    pub access_log_file: Option<Arc<str>>,
    /// How much places matter. Source: `localityLbSetting`.
    pub locality: Arc<LocalityBalance>,
    /// What becomes of requests to hosts that nothing declares. Source:
    /// `outboundTrafficPolicy.mode`.
    pub outbound: OutboundPolicy,
    /// Who sees rules that do not say. Source: `defaultVirtualServiceExportTo`.
    pub rules_export_to: DefaultVisibility,
    /// Who sees policies that do not say. Source: `defaultDestinationRuleExportTo`.
    pub policies_export_to: DefaultVisibility,
    /// Who sees services that do not say. Source: `defaultServiceExportTo`.
    pub services_export_to: DefaultVisibility,
}

// === impl Mesh ===

impl Default for Mesh {
    fn default() -> Self {
        Self {
            root_namespace: Arc::from("istio-system"),
            domain: Arc::from("cluster.local"),
            trust_domain: Arc::from("cluster.local"),
            auto_mtls: true,
            connect_timeout: Duration::from_secs(10),
            default_retry: RetryPolicy::default(),
            access_log_file: None,
            locality: Arc::default(),
            outbound: OutboundPolicy::default(),
            rules_export_to: DefaultVisibility::Everyone,
            policies_export_to: DefaultVisibility::Everyone,
            services_export_to: DefaultVisibility::Everyone,
        }
    }
}
