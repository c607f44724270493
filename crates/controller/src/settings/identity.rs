//! Settings of identity: the authority, who is believed, the secure port.
//!
//! **Invariant:** without a place for the authority there is none, and no secure port.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use identity::{SpiffeId, TrustDomain};

use super::duration;

/// Namespace and service account of the controller in its own certificate.
const OWN: (&str, &str) = ("heddle-system", "heddle");
/// File in which a pod reads its own namespace.
const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Arguments of identity.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Identity")]
pub(crate) struct IdentityArgs {
    /// Folder of the certificate authority; with it, xDS and certificates are served over mutual
    /// TLS. An empty one gets a new self-signed root
    #[arg(long, env = "HEDDLE_IDENTITY_DIRECTORY", value_name = "DIR")]
    identity_directory: Option<PathBuf>,
    /// Keep the certificate authority in Secrets of the own namespace (cacerts, a CA of yours, or
    /// heddle-ca-secret, a root that is made) and believe the service accounts of the cluster
    #[arg(long, env = "HEDDLE_IDENTITY_CLUSTER", conflicts_with = "identity_directory")]
    identity_cluster: bool,
    /// With --identity-cluster: the ConfigMap of each namespace by which workloads know the roots
    #[arg(
        long,
        env = "HEDDLE_ROOT_CONFIG_MAP",
        default_value = "istio-ca-root-cert",
        value_name = "NAME"
    )]
    root_config_map: String,
    /// Folder with a CA of yours: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem
    #[arg(long, env = "HEDDLE_CA_DIRECTORY", value_name = "DIR")]
    ca_directory: Option<PathBuf>,
    /// Trust domain: the first part of every identity
    #[arg(
        long,
        env = "HEDDLE_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    trust_domain: String,
    /// Where xDS and certificates are served over mutual TLS
    #[arg(
        long,
        env = "HEDDLE_SECURE_ADDRESS",
        default_value = "127.0.0.1:15012",
        value_name = "IP:PORT"
    )]
    secure_address: SocketAddr,
    /// More names and addresses that clients dial the secure port by; localhost, 127.0.0.1, ::1
    /// and the name of this host are known
    #[arg(long, env = "HEDDLE_SERVER_NAME", value_delimiter = ',', value_name = "NAME,…")]
    server_name: Vec<String>,
    /// Lifetime of certificates whose request names none: 45m, 24h, 7d
    #[arg(
        long,
        env = "HEDDLE_CERTIFICATE_LIFETIME",
        default_value = "24h",
        value_parser = lifetime,
        value_name = "TIME"
    )]
    certificate_lifetime: Duration,
    /// Longest lifetime; requests for more get this
    #[arg(
        long,
        env = "HEDDLE_LONGEST_CERTIFICATE_LIFETIME",
        default_value = "90d",
        value_parser = lifetime,
        value_name = "TIME"
    )]
    longest_certificate_lifetime: Duration,
    /// Issuer of JWTs that prove an identity; their audience must be istio-ca
    #[arg(long, env = "HEDDLE_JWT_ISSUER", requires = "jwt_keys", value_name = "ISSUER")]
    jwt_issuer: Option<String>,
    /// Public keys of that issuer: PEM, or a JWKS
    #[arg(long, env = "HEDDLE_JWT_KEYS", requires = "jwt_issuer", value_name = "FILE")]
    jwt_keys: Option<PathBuf>,
    /// Identities whose proxies may be gateways (router~… node ids) on the secure port
    #[arg(
        long,
        env = "HEDDLE_GATEWAY_IDENTITY",
        value_delimiter = ',',
        value_name = "NAMESPACE/SERVICE-ACCOUNT,…"
    )]
    gateway_identity: Vec<String>,
    /// With --identity-cluster: where /debug/ is served over TLS, to callers with a certificate or
    /// token whom the API server lets get the page (nonResourceURLs)
    #[arg(long, env = "HEDDLE_REMOTE_ADMIN_ADDRESS", value_name = "IP:PORT")]
    remote_admin_address: Option<SocketAddr>,
    /// With --identity-cluster: where the API server asks whether and how pods get a sidecar
    #[arg(long, env = "HEDDLE_WEBHOOK_ADDRESS", value_name = "IP:PORT")]
    webhook_address: Option<SocketAddr>,
    /// With --webhook-address: the MutatingWebhookConfiguration by which it does
    #[arg(
        long,
        env = "HEDDLE_WEBHOOK_CONFIGURATION",
        default_value = "heddle",
        value_name = "NAME"
    )]
    webhook_configuration: String,
    /// With --identity-cluster: identities of node agents, which get certificates for the pods of
    /// their node
    #[arg(
        long,
        env = "HEDDLE_NODE_AGENT",
        value_delimiter = ',',
        value_name = "NAMESPACE/SERVICE-ACCOUNT,…"
    )]
    node_agent: Vec<String>,
}

/// What identity is set to.
#[derive(Debug)]
pub(crate) struct IdentitySettings {
    /// Where the authority is.
    pub(crate) kept: Kept,
    /// The controller's own identity.
    pub(crate) own: SpiffeId,
    /// What clients dial.
    pub(crate) names: Vec<String>,
    /// The secure port.
    pub(crate) address: SocketAddr,
    /// Where admin pages are served to callers from elsewhere.
    pub(crate) remote_admin: Option<SocketAddr>,
    /// Where the API server asks about pods.
    pub(crate) webhook: Option<SocketAddr>,
    /// The MutatingWebhookConfiguration by which it does.
    pub(crate) webhook_configuration: String,
    /// Lifetime of certificates.
    pub(crate) lifetime: Duration,
    /// The longest.
    pub(crate) longest: Duration,
    /// Identities that may be gateways.
    pub(crate) gateways: BTreeSet<SpiffeId>,
}

/// Where the authority is, and who is believed beside its certificates.
#[derive(Debug)]
pub(crate) enum Kept {
    /// In a folder; machines, by join tokens and JWTs.
    Folder {
        folder: PathBuf,
        /// Files of an authority that is not made here.
        plug_in: Option<PathBuf>,
        /// Issuer of JWTs and the file of its keys.
        jwt: Option<(String, PathBuf)>,
    },
    /// In Secrets of the cluster; its service accounts, by tokens that the API server reviews.
    Cluster {
        /// The ConfigMap with the roots.
        root_config_map: String,
        /// Who may ask for the pods of its node.
        node_agents: BTreeSet<SpiffeId>,
    },
}

// === impl IdentityArgs ===

impl IdentityArgs {
    /// Check the arguments; none = no authority.
    pub(super) fn resolve(self) -> Result<Option<IdentitySettings>> {
        let Self {
            identity_directory,
            identity_cluster,
            root_config_map,
            ca_directory,
            trust_domain,
            secure_address,
            server_name,
            certificate_lifetime,
            longest_certificate_lifetime,
            jwt_issuer,
            jwt_keys,
            gateway_identity,
            remote_admin_address,
            webhook_address,
            webhook_configuration,
            node_agent,
        } = self;
        let trust_domain: TrustDomain = trust_domain.parse().context("--trust-domain")?;
        let identities = |flag: &str, texts: &[String]| -> Result<BTreeSet<SpiffeId>> {
            texts.iter().map(|text| identity(flag, text, &trust_domain)).collect()
        };
        let without = |needed: &str, given: &[(&str, bool)]| match given.iter().find(|(_, g)| *g) {
            Some((flag, _)) => bail!("{flag} has no effect without {needed}"),
            None => Ok(()),
        };
        let of_folders =
            [("--ca-directory", ca_directory.is_some()), ("--jwt-issuer", jwt_issuer.is_some())];
        let of_clusters = [
            ("--node-agent", !node_agent.is_empty()),
            ("--remote-admin-address", remote_admin_address.is_some()),
            ("--webhook-address", webhook_address.is_some()),
        ];
        let kept = match (identity_directory, identity_cluster) {
            (Some(folder), _) => {
                without("--identity-cluster", &of_clusters)?;
                let jwt = jwt_issuer.zip(jwt_keys);
                Kept::Folder { folder, plug_in: ca_directory, jwt }
            }
            (None, true) => {
                without("--identity-directory", &of_folders)?;
                let node_agents = identities("--node-agent", &node_agent)?;
                Kept::Cluster { root_config_map, node_agents }
            }
            (None, false) => {
                without("--identity-directory", &of_folders)?;
                without("--identity-cluster", &of_clusters)?;
                let of_both = [
                    ("--gateway-identity", !gateway_identity.is_empty()),
                    ("--server-name", !server_name.is_empty()),
                ];
                without("--identity-directory or --identity-cluster", &of_both)?;
                return Ok(None);
            }
        };
        if certificate_lifetime > longest_certificate_lifetime {
            bail!("--certificate-lifetime is longer than --longest-certificate-lifetime");
        }
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(host_name());
        names.extend(server_name);
        Ok(Some(IdentitySettings {
            own: SpiffeId::new(&trust_domain, &own_namespace(), OWN.1)?,
            kept,
            names,
            address: secure_address,
            remote_admin: remote_admin_address,
            webhook: webhook_address,
            webhook_configuration,
            lifetime: certificate_lifetime,
            longest: longest_certificate_lifetime,
            gateways: identities("--gateway-identity", &gateway_identity)?,
        }))
    }
}

/// An identity as people write it: NAMESPACE/SERVICE-ACCOUNT.
fn identity(flag: &str, text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId> {
    let parts = text.split_once('/').filter(|(_, account)| !account.contains('/'));
    let (namespace, account) =
        parts.with_context(|| format!("{flag} takes NAMESPACE/SERVICE-ACCOUNT, not {text:?}"))?;
    SpiffeId::new(trust_domain, namespace, account).with_context(|| flag.to_owned())
}

/// The namespace of this pod; outside of a cluster that of the chart.
fn own_namespace() -> String {
    let namespace = std::fs::read_to_string(NAMESPACE).unwrap_or_default();
    match namespace.trim() {
        "" => OWN.0.to_owned(),
        namespace => namespace.to_owned(),
    }
}

/// The name of this host, if it can stand in a certificate.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    (!name.is_empty() && name.bytes().all(allowed)).then_some(name)
}

/// As [`duration`], of a certificate.
fn lifetime(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let shortest = Duration::from_secs(60);
    let short = || format!("{text:?} is not between 60s and 10 years");
    Some(time).filter(|time| *time >= shortest).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, seconds) in [("60s", 60), ("45m", 2700), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in [
            "",
            "h",
            "24",
            "24x",
            "-1h",
            "1.5h",
            "59s",
            "0d",
            "4000d",
            "99999999999999999999d",
            "1ä",
        ] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }
}
