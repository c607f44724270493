//! `heddle bootstrap`: the file that a stock Envoy is started with.
//!
//! **Invariant:** what stands in it is built in `envoy_api::bootstrap`; here are only arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use envoy_api::bootstrap::{Bootstrap, Protocol};
use envoy_api::envoy::config::core::v3::Locality;
use envoy_api::mutual_tls;
use envoy_api::secrets::{self, Secrets};
use serde_json::{Map, Value, json};

use crate::output;
use crate::proxy::ProxyArgs;

/// Arguments of `bootstrap`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Where Heddle serves xDS [default: 127.0.0.1:15010, with --certificates 127.0.0.1:15012]
    #[arg(long, value_name = "HOST:PORT")]
    xds_address: Option<String>,
    /// Folder of `heddle ca request`: connect by mutual TLS with the certificate in it
    #[arg(long, value_name = "DIR")]
    certificates: Option<PathBuf>,
    /// Port of Envoy's admin endpoint, on loopback; 0 picks one
    #[arg(long, default_value_t = 15000, value_name = "PORT")]
    admin_port: u16,
    /// State of the world instead of delta xDS
    #[arg(long)]
    sotw: bool,
    /// Write to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let proxy = args.proxy.proxy()?;
    let address = args.xds_address.as_deref().unwrap_or(match args.certificates {
        Some(_) => "127.0.0.1:15012",
        None => "127.0.0.1:15010",
    });
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (host, port.parse::<u16>().ok()),
        _ => ("", None),
    };
    let Some(port) = port.filter(|port| *port > 0) else {
        bail!("--xds-address takes HOST:PORT, not {address:?}");
    };
    // An IPv6 address stands in brackets before a port, and without them elsewhere.
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let labels: Map<String, Value> =
        proxy.labels.iter().map(|(key, value)| (key.to_string(), json!(&**value))).collect();
    let mut metadata = Map::new();
    metadata.insert("NAMESPACE".to_owned(), json!(&*proxy.namespace));
    metadata.insert("LABELS".to_owned(), Value::Object(labels));
    if !proxy.captures {
        metadata.insert("INTERCEPTION_MODE".to_owned(), json!("NONE"));
    }
    let secrets = args.certificates.as_deref().map(certificates).transpose()?;
    let (place, nowhere) = (&proxy.locality, model::rows::Locality::default());
    let locality = (*place != nowhere).then(|| Locality {
        region: place.region.to_string(),
        zone: place.zone.to_string(),
        sub_zone: place.subzone.to_string(),
    });
    let bootstrap = Bootstrap {
        locality,
        xds_transport_socket: secrets.map(|s| mutual_tls::transport_socket(&s, host)),
        cluster: format!("{}.{}", proxy.name, proxy.namespace),
        metadata,
        protocol: if args.sotw { Protocol::Sotw } else { Protocol::Delta },
        admin_address: Some(("127.0.0.1".to_owned(), args.admin_port)),
        node_id: args.proxy.node.clone(),
        xds_host: host.to_owned(),
        xds_port: port,
        ..Bootstrap::default()
    };
    match &args.output {
        None => output::json(&bootstrap.to_json())?,
        Some(file) => {
            let text = format!("{:#}\n", bootstrap.to_json());
            std::fs::write(file, text).with_context(|| format!("--output {}", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The files of a folder with what Envoy needs for TLS.
fn certificates(folder: &Path) -> Result<Secrets> {
    for file in [secrets::CERTIFICATE_FILE, secrets::ROOTS_FILE] {
        if !folder.join(file).is_file() {
            bail!(
                "--certificates {} holds no {file}; `heddle ca request` writes it",
                folder.display()
            );
        }
    }
    let folder =
        folder.canonicalize().with_context(|| format!("--certificates {}", folder.display()));
    Ok(Secrets::Files(folder?))
}
