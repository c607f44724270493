//! ProxyConfig: settings of the proxy beside a workload.
//!
//! In: `defaultConfig` of the mesh settings, or the annotation `proxy.istio.io/config` of a pod.
//! Out: the settings that are there, for whoever starts proxies.
//!
//! **Invariant:** a setting that cannot be read is an error that names it; the rest is in force.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use model::{ObjectRef, Problem, Severity};
use serde::Deserialize;

use crate::schema::{Field, Type, check, field, not_yet, parse_time};
use crate::text;
use crate::yaml::{self, Node, SyntaxError};

/// Settings of a proxy. Shape: none = not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Worker threads; 0 = one per core.
    pub concurrency: Option<u32>,
    /// Whether the application starts only when the proxy is ready.
    pub hold_application_until_proxy_starts: Option<bool>,
    /// Time between SIGTERM and the end of the proxy, as it was written.
    pub termination_drain_duration: Option<String>,
    /// `REDIRECT` or `NONE`.
    pub interception_mode: Option<String>,
    /// Where the controller is, HOST:PORT.
    pub discovery_address: Option<String>,
    /// Environment of the proxy.
    pub proxy_metadata: BTreeMap<String, String>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadProxyConfig {
    /// The settings that can be used.
    pub config: ProxyConfig,
    /// What cannot: field and why.
    pub errors: Vec<String>,
    /// What has no effect: field and why.
    pub warnings: Vec<String>,
}

/// Fields of ProxyConfig.
pub(crate) const FIELDS: &[Field] = &[
    field("concurrency", Type::Integer(0, 1024)),
    field("holdApplicationUntilProxyStarts", Type::Bool),
    field("terminationDrainDuration", Type::Time(0)),
    field("interceptionMode", Type::Enum(&["REDIRECT", "NONE"])),
    field("discoveryAddress", Type::Checked(address)),
    field("proxyMetadata", Type::Map(variable, &Type::Text)),
    not_yet("drainDuration"),
    not_yet("statusPort"),
    not_yet("proxyAdminPort"),
    not_yet("tracing"),
    not_yet("runtimeValues"),
    not_yet("extraStatTags"),
    not_yet("gatewayTopology"),
    not_yet("meshId"),
    not_yet("readinessProbe"),
    not_yet("proxyStatsMatcher"),
    not_yet("caCertificatesPem"),
    not_yet("image"),
    not_yet("privateKeyProvider"),
    not_yet("proxyHeaders"),
    not_yet("fileFlushInterval"),
    not_yet("fileFlushMinSizeKb"),
    not_yet("statsCompression"),
    not_yet("statsEvictionInterval"),
    not_yet("connectionSettings"),
];

/// HOST:PORT.
fn address(text: &str) -> Result<(), String> {
    let parts = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok_and(|p| p > 0));
    let Some((host, _)) = parts else { return Err(format!("must be HOST:PORT, but is {text:?}")) };
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_ok() => Ok(()),
        _ => text::dns_name(host),
    }
}

/// The name of an environment variable.
fn variable(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = text.chars().all(allowed) && !text.starts_with(|c: char| c.is_ascii_digit());
    if good && !text.is_empty() {
        return Ok(());
    }
    Err(format!("{text:?} is no name of an environment variable"))
}

/// Read the settings of a pod's annotation: YAML or JSON.
pub fn read_proxy_config(text: &str) -> Result<ReadProxyConfig, SyntaxError> {
    Ok(read(yaml::parse(text)?))
}

/// Read `defaultConfig` of mesh settings.
pub fn read_default_proxy_config(text: &str) -> Result<ReadProxyConfig, SyntaxError> {
    let mesh = yaml::parse(text)?;
    let mesh = mesh.get("spec").unwrap_or(&mesh);
    Ok(mesh.get("defaultConfig").cloned().map(read).unwrap_or_default())
}

fn read(mut node: Node) -> ReadProxyConfig {
    if node.is_null() {
        return ReadProxyConfig::default();
    }
    // What is checked here is no object of its own: who asks says where it stands.
    let owner = Arc::new(ObjectRef {
        source: Arc::from(""),
        kind: model::Kind { name: Cow::Borrowed("ProxyConfig"), group: Cow::Borrowed("") },
        namespace: Arc::from(""),
        name: Arc::from(""),
    });
    let mut problems = Vec::new();
    let mut out = ReadProxyConfig::default();
    if check(&owner, "", &mut node, &Type::Object(FIELDS), &mut problems) {
        match serde_json::from_value(node.to_json()) {
            Ok(config) => out.config = config,
            Err(error) => out.errors.push(error.to_string()),
        }
    }
    for problem in problems {
        let Problem { field, severity, message, .. } = problem;
        let text =
            if field.is_empty() { message.to_string() } else { format!("{field} {message}") };
        match severity {
            Severity::Error => out.errors.push(text),
            Severity::Warning => out.warnings.push(text),
        }
    }
    out
}

// === impl ProxyConfig ===

impl ProxyConfig {
    /// These settings, and where they say nothing those of the mesh.
    pub fn over(self, mesh: &Self) -> Self {
        let mut proxy_metadata = mesh.proxy_metadata.clone();
        proxy_metadata.extend(self.proxy_metadata);
        Self {
            concurrency: self.concurrency.or(mesh.concurrency),
            hold_application_until_proxy_starts: self
                .hold_application_until_proxy_starts
                .or(mesh.hold_application_until_proxy_starts),
            termination_drain_duration: self
                .termination_drain_duration
                .or_else(|| mesh.termination_drain_duration.clone()),
            interception_mode: self.interception_mode.or_else(|| mesh.interception_mode.clone()),
            discovery_address: self.discovery_address.or_else(|| mesh.discovery_address.clone()),
            proxy_metadata,
        }
    }

    /// Time between SIGTERM and the end of the proxy. Unit: whole seconds, rounded up.
    pub fn drain_seconds(&self) -> Option<u64> {
        let time = parse_time(self.termination_drain_duration.as_deref()?)?;
        Some(time.as_secs() + u64::from(time.subsec_nanos() > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_settings_with_mistakes_then_each_is_named_and_the_rest_is_in_force() {
        let text = "{concurrency: many, terminationDrainDuration: 7s, interceptionMode: TPROXY, \
                    concurency: 2, tracing: {}, discoveryAddress: 'a b:1', proxyMetadata: {A: x}}";
        let read = read_proxy_config(text).unwrap();
        assert_eq!(read.config.drain_seconds(), Some(7));
        assert_eq!(read.config.proxy_metadata["A"], "x");
        assert_eq!(read.config.concurrency, None);
        for (error, says) in read.errors.iter().zip([
            "concurrency must be a whole number",
            "interceptionMode must be one of REDIRECT, NONE",
            "concurency there is no such field; did you mean `concurrency`?",
            "discoveryAddress \"a b\" is not a DNS name",
        ]) {
            assert!(error.starts_with(says), "{error}");
        }
        assert_eq!(read.errors.len(), 4);
        assert!(read.warnings[0].starts_with("tracing is not supported"), "{:?}", read.warnings);
        assert!(read_proxy_config("a: [").is_err());
        assert!(!read_proxy_config("text").unwrap().errors.is_empty());
    }

    #[test]
    fn given_settings_of_pod_and_mesh_then_those_of_the_pod_come_first() {
        let mesh = "defaultConfig: {concurrency: 3, proxyMetadata: {A: mesh, B: mesh}}";
        let mesh = read_default_proxy_config(mesh).unwrap().config;
        let pod = read_proxy_config("{concurrency: 1, proxyMetadata: {A: pod}}").unwrap().config;
        let both = pod.over(&mesh);
        assert_eq!(both.concurrency, Some(1));
        assert_eq!((&*both.proxy_metadata["A"], &*both.proxy_metadata["B"]), ("pod", "mesh"));
        assert_eq!(ProxyConfig::default().over(&mesh), mesh);
        assert_eq!(read_default_proxy_config("").unwrap(), ReadProxyConfig::default());
    }
}
