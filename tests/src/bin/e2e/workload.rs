//! The pod of `manifests/samples/identity`, which does what an agent will do, and others that are
//! not as honest.
//!
//! **Invariant:** each differs from the sample in what it is tried for, and in nothing else.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

const SAMPLE: &str = "manifests/samples/identity/pod.yaml";

/// A pod that runs as ServiceAccount `web`.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) namespace: &'static str,
    /// Whom its token is for; none = the certificate authority.
    pub(crate) audience: Option<&'static str>,
    /// The namespace that its Envoy claims.
    pub(crate) claims: &'static str,
}

// === impl Workload ===

impl Workload {
    /// One that does everything right.
    pub(crate) fn honest(name: &'static str, namespace: &'static str) -> Self {
        Self { name, namespace, audience: None, claims: namespace }
    }

    /// The id of its Envoy after the address, which is not known here.
    pub(crate) fn node(&self) -> String {
        format!("~{}.{}~{}.svc.cluster.local", self.name, self.claims, self.claims)
    }

    /// Start it.
    pub(crate) fn start(&self, cluster: &Cluster) -> Result<()> {
        let mut text = std::fs::read_to_string(cluster.path(SAMPLE))?;
        let mut edit = |from: &str, to: &str| {
            ensure!(text.contains(from), "{SAMPLE} holds no {from:?}");
            text = text.replace(from, to);
            Ok(())
        };
        edit("heddle/proxy:0.1.0", "heddle/proxy:test")?;
        edit("metadata: {name: web, labels", &format!("metadata: {{name: {}, labels", self.name))?;
        if let Some(audience) = self.audience {
            edit("audience: istio-ca", &format!("audience: {audience:?}"))?;
        }
        if self.claims != self.namespace {
            edit("$(POD_NAMESPACE)", self.claims)?;
        }
        cluster.run("kubectl", &["apply", "-n", self.namespace, "-f", "-"], &text).map(drop)
    }
}
