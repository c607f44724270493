//! Settings: what the arguments come to.
//!
//! **Invariant:** arguments and environment are read here, once; everything else gets values.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use crate::logging::Format;

/// Watches routing rules and serves them to Envoy over xDS.
#[derive(Debug, Parser)]
#[command(name = "heddle-controller", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Where objects come from: directory=PATH, a folder of YAML that is watched
    #[arg(long, env = "HEDDLE_SOURCE", value_name = "KIND=WHERE")]
    source: String,
    /// File of mesh settings (MeshConfig), watched too
    #[arg(long, env = "HEDDLE_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
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
    /// Log level, or levels per module: info, debug, xds=debug,info; changeable while running
    #[arg(long, env = "HEDDLE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Log format
    #[arg(long, env = "HEDDLE_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

/// What the controller does.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) source: PathBuf,
    pub(crate) mesh_config: Option<PathBuf>,
    pub(crate) xds_address: SocketAddr,
    pub(crate) http_address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
    pub(crate) verify_engine: bool,
    pub(crate) log_level: String,
    pub(crate) log_format: Format,
}

// === impl Settings ===

impl Settings {
    /// Check the arguments against each other.
    pub(crate) fn resolve(args: Args) -> Result<Self> {
        let Args {
            source,
            mesh_config,
            xds_address,
            http_address,
            admin_address,
            verify_engine,
            log_level,
            log_format,
        } = args;
        let Some(source) = source.strip_prefix("directory=").filter(|path| !path.is_empty()) else {
            bail!("--source {source:?} is not understood; use directory=PATH");
        };
        if !admin_address.ip().is_loopback() {
            bail!(
                "--admin-address {admin_address} is not on loopback; the admin endpoint shows \
                 configuration to whoever asks, so it is served nowhere else"
            );
        }
        Ok(Self {
            source: PathBuf::from(source),
            mesh_config,
            xds_address,
            http_address,
            admin_address,
            verify_engine,
            log_level,
            log_format,
        })
    }
}
