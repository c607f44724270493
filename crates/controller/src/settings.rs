//! Settings: what the arguments come to.
//!
//! **Invariant:** arguments and environment are read here, once; everything else gets values.

mod identity;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use self::identity::IdentityArgs;
pub(crate) use self::identity::{IdentitySettings, Kept};
use crate::injection::InjectionSettings;
use crate::logging::Format;

/// Watches routing rules and serves them to Envoy over xDS.
#[derive(Debug, Parser)]
#[command(name = "heddle-controller", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Where objects come from: directory=PATH, a folder of YAML that is watched; or kubernetes,
    /// the cluster of the kubeconfig or of the pod that this runs in
    #[arg(long, env = "HEDDLE_SOURCE", value_name = "SOURCE")]
    source: String,
    /// File of mesh settings (MeshConfig) beside a directory, watched too
    #[arg(long, env = "HEDDLE_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// In a cluster: the ConfigMap of the own namespace that holds the mesh settings under the key
    /// `mesh`
    #[arg(long, env = "HEDDLE_MESH_CONFIG_MAP", default_value = "heddle", value_name = "NAME")]
    mesh_config_map: String,
    /// Where proxies connect, in plain text; keep it on loopback
    #[arg(
        long,
        env = "HEDDLE_XDS_ADDRESS",
        default_value = "127.0.0.1:15010",
        value_name = "IP:PORT"
    )]
    xds_address: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(
        long,
        env = "HEDDLE_HTTP_ADDRESS",
        default_value = "127.0.0.1:15014",
        value_name = "IP:PORT"
    )]
    http_address: SocketAddr,
    /// Where /debug/ is served; loopback only
    #[arg(
        long,
        env = "HEDDLE_ADMIN_ADDRESS",
        default_value = "127.0.0.1:8080",
        value_name = "IP:PORT"
    )]
    admin_address: SocketAddr,
    /// After each batch, compute everything anew and log what differs: slow, to find faults
    #[arg(long, env = "HEDDLE_VERIFY_ENGINE")]
    verify_engine: bool,
    /// Age at which a connection for xDS and its stream end, within a tenth, so that proxies spread
    /// over replicas anew; 0s = never
    #[arg(
        long,
        env = "HEDDLE_MAX_CONNECTION_AGE",
        default_value = "30m",
        value_parser = duration,
        value_name = "TIME"
    )]
    max_connection_age: Duration,
    /// Time over which streams end once the controller is told to stop, so that proxies do not all
    /// come to another replica at once
    #[arg(
        long,
        env = "HEDDLE_DRAIN_DURATION",
        default_value = "0s",
        value_parser = duration,
        value_name = "TIME"
    )]
    drain_duration: Duration,
    /// Log level, or levels per module: info, debug, xds=debug,info; changeable while running
    #[arg(long, env = "HEDDLE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Log format
    #[arg(long, env = "HEDDLE_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
    #[command(flatten)]
    identity: IdentityArgs,
}

/// What the controller does.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) xds_address: SocketAddr,
    pub(crate) http_address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
    pub(crate) verify_engine: bool,
    /// None: connections do not age.
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) drain_duration: Duration,
    pub(crate) log_level: String,
    pub(crate) log_format: Format,
    /// None: no authority and no secure port.
    pub(crate) identity: Option<IdentitySettings>,
    /// None: the API server is not told how pods get a sidecar.
    pub(crate) injection: Option<InjectionSettings>,
}

/// Where objects come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A folder of YAML.
    Directory { root: PathBuf, mesh_config: Option<PathBuf> },
    /// A cluster.
    Kubernetes { mesh_config_map: String },
}

// === impl Settings ===

impl Settings {
    /// Check the arguments against each other.
    pub(crate) fn resolve(args: Args) -> Result<Self> {
        let Args {
            source,
            mesh_config,
            mesh_config_map,
            xds_address,
            http_address,
            admin_address,
            verify_engine,
            max_connection_age,
            drain_duration,
            log_level,
            log_format,
            identity,
        } = args;
        let source = match source.split_once('=') {
            Some(("directory", path)) if !path.is_empty() => {
                Source::Directory { root: PathBuf::from(path), mesh_config }
            }
            None if source == "kubernetes" && mesh_config.is_some() => bail!(
                "--mesh-config has no effect with --source kubernetes; put the settings into \
                 ConfigMap {mesh_config_map} of the namespace of the controller, under the key mesh"
            ),
            None if source == "kubernetes" => Source::Kubernetes { mesh_config_map },
            _ => bail!("--source {source:?} is not understood; use directory=PATH or kubernetes"),
        };
        if !admin_address.ip().is_loopback() {
            bail!(
                "--admin-address {admin_address} is not on loopback; the admin endpoint shows \
                 configuration to whoever asks, so it is served nowhere else"
            );
        }
        let identity = identity.resolve()?;
        let in_cluster = |i: &IdentitySettings| matches!(i.kept, Kept::Cluster { .. });
        if identity.as_ref().is_some_and(in_cluster) && !matches!(source, Source::Kubernetes { .. })
        {
            bail!("--identity-cluster needs --source kubernetes");
        }
        let injection = match (&source, &identity) {
            (Source::Kubernetes { mesh_config_map }, Some(identity)) => {
                identity.webhook.map(|_| InjectionSettings {
                    config_map: mesh_config_map.clone(),
                    configuration: identity.webhook_configuration.clone(),
                })
            }
            _ => None,
        };
        Ok(Self {
            source,
            xds_address,
            http_address,
            admin_address,
            verify_engine,
            max_connection_age: Some(max_connection_age).filter(|age| !age.is_zero()),
            drain_duration,
            log_level,
            log_format,
            identity,
            injection,
        })
    }
}

// === impl Source ===

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { root, .. } => write!(f, "{}", root.display()),
            Self::Kubernetes { .. } => f.write_str("kubernetes"),
        }
    }
}

/// A time such as 90s, 45m, 24h or 7d.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time; use a number and s, m, h or d, such as 24h");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(bad()),
    };
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    let time = number.ok_or_else(bad)?.checked_mul(seconds).map(Duration::from_secs);
    let longest = Duration::from_secs(10 * 365 * 24 * 3600);
    time.filter(|time| *time <= longest).ok_or_else(|| format!("{text:?} is over 10 years"))
}
