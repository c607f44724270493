//! Settings of injection: what every sidecar of a mesh has in common.
//!
//! In: the key `injector` of the controller's ConfigMap, as YAML. Out: checked settings.
//!
//! **Invariant:** every field has a default, so that `heddle inject` works without a cluster; a
//! field that does not exist is an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Namespaces whose pods are none of a mesh.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// What every sidecar of a mesh has in common.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Image with the agent and Envoy.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; empty = as Kubernetes decides by the tag.
    pub image_pull_policy: String,
    /// Names of Secrets in the pod's namespace by which the image can be pulled.
    pub image_pull_secrets: Vec<String>,
    /// Where the controller is, HOST:PORT: xDS and certificates.
    pub xds_address: String,
    /// First part of every identity.
    pub trust_domain: String,
    /// Name of the cluster; empty = there is one.
    pub cluster_id: String,
    /// ConfigMap of each namespace with the roots of the mesh.
    pub root_config_map: String,
    /// Whether sidecars are containers that start before and end after all others.
    pub native_sidecars: NativeSidecars,
    /// What `istio.io/rev` must say for this control plane.
    pub revision: String,
    /// Namespace of the control plane; its pods get no sidecar.
    pub system_namespace: String,
    /// Other namespaces whose pods get none.
    pub excluded_namespaces: Vec<String>,
    /// Resources of the sidecar, unless annotations say otherwise.
    pub resources: Resources,
    /// Log level of the proxy.
    pub log_level: String,
}

/// Whether a cluster has native sidecars: init containers that stay. Kubernetes 1.29 and newer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NativeSidecars {
    /// By the version of the cluster; without a cluster, yes.
    #[default]
    Auto,
    /// Yes.
    Enabled,
    /// No.
    Disabled,
}

/// Resources of a container, by name (`cpu`, `memory`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// What the scheduler sets aside.
    pub requests: BTreeMap<String, Value>,
    /// What it may use at most.
    pub limits: BTreeMap<String, Value>,
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("settings of the injector: {0}")]
pub struct SettingsError(String);

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        let amounts = |all: &[(&str, &str)]| {
            all.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect()
        };
        Self {
            image: concat!("heddle/proxy:", env!("CARGO_PKG_VERSION")).to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            image_pull_secrets: Vec::new(),
            xds_address: "heddle.heddle-system.svc.cluster.local:15012".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_id: String::new(),
            root_config_map: "istio-ca-root-cert".to_owned(),
            native_sidecars: NativeSidecars::Auto,
            revision: "default".to_owned(),
            system_namespace: "heddle-system".to_owned(),
            excluded_namespaces: Vec::new(),
            resources: Resources {
                requests: amounts(&[("cpu", "100m"), ("memory", "64Mi")]),
                limits: amounts(&[("memory", "1Gi")]),
            },
            log_level: "warning".to_owned(),
        }
    }
}

impl Settings {
    /// Read settings; an empty text gives the defaults.
    pub fn read(text: &str) -> Result<Self, SettingsError> {
        let node = config::yaml::parse(text).map_err(|error| {
            let (line, column) = (error.at.line, error.at.column);
            SettingsError(format!("line {line}, column {column}: {}", error.message))
        })?;
        if node.is_null() {
            return Ok(Self::default());
        }
        let settings: Self = serde_json::from_value(node.to_json())
            .map_err(|error| SettingsError(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let Self { image, xds_address, trust_domain, root_config_map, revision, .. } = self;
        let needed = [
            ("image", image),
            ("xdsAddress", xds_address),
            ("trustDomain", trust_domain),
            ("rootConfigMap", root_config_map),
            ("revision", revision),
        ];
        match needed.into_iter().find(|(_, value)| value.is_empty()) {
            Some((name, _)) => Err(SettingsError(format!("{name} must not be empty"))),
            None => Ok(()),
        }
    }

    /// Whether pods of a namespace never get a sidecar.
    pub fn is_system(&self, namespace: &str) -> bool {
        SYSTEM.contains(&namespace)
            || namespace == self.system_namespace
            || self.excluded_namespaces.iter().any(|excluded| excluded == namespace)
    }

    /// Settle what depends on the cluster. `version`: its major and minor number, if known.
    #[must_use]
    pub fn for_cluster(mut self, version: Option<(u32, u32)>) -> Self {
        if self.native_sidecars == NativeSidecars::Auto {
            let native = version.is_none_or(|version| version >= (1, 29));
            self.native_sidecars =
                if native { NativeSidecars::Enabled } else { NativeSidecars::Disabled };
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_no_text_then_everything_has_a_default_and_a_wrong_field_is_named() {
        assert_eq!(Settings::read(""), Ok(Settings::default()));
        assert_eq!(Settings::read("image: other/proxy:1").unwrap().image, "other/proxy:1");
        for (text, says) in [
            ("imge: a", "unknown field `imge`"),
            ("image: ''", "image must not be empty"),
            ("image: [a]", "invalid type"),
            ("nativeSidecars: perhaps", "unknown variant `perhaps`"),
            ("a: [", "line 1"),
        ] {
            let error = Settings::read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn given_the_version_of_a_cluster_then_auto_is_settled_by_it() {
        let native = |version| Settings::default().for_cluster(version).native_sidecars;
        assert_eq!(native(None), NativeSidecars::Enabled);
        assert_eq!(native(Some((1, 29))), NativeSidecars::Enabled);
        assert_eq!(native(Some((1, 28))), NativeSidecars::Disabled);
        let off = Settings { native_sidecars: NativeSidecars::Disabled, ..Settings::default() };
        assert_eq!(off.for_cluster(Some((1, 34))).native_sidecars, NativeSidecars::Disabled);
    }
}
