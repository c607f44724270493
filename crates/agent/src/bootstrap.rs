//! The file that Envoy is started with.
//!
//! In: settings. Out: a file in the folder, in protobuf: Envoy reads it as it is, and the agent
//! needs no descriptors of it in memory. `/config_dump` of Envoy's admin pages shows it.
//!
//! **Invariant:** what stands in it is built in `envoy_api::bootstrap`; it holds no secret, only
//! where secrets come from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use envoy_api::bootstrap::Bootstrap;
use envoy_api::envoy::config::core::v3::Locality;
use envoy_api::mutual_tls;
use envoy_api::secrets::Secrets;
use identity::folder::replace;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::settings::values::Role;
use crate::settings::{NodeSettings, Settings};

/// Name of the socket that secrets are served on, in the folder.
pub(crate) const SOCKET: &str = "sds.sock";
/// Name of the file; its end tells Envoy that it is protobuf.
const FILE: &str = "envoy.pb";

/// Write the file. Out: where it is.
pub(crate) fn write(settings: &Settings) -> Result<PathBuf> {
    let file = settings.folder.join(FILE);
    let message = bootstrap(settings).to_message();
    replace(&file, &message.encode_to_vec(), 0o600).context("--folder")?;
    Ok(file)
}

fn bootstrap(settings: &Settings) -> Bootstrap {
    let Settings { node, xds: (host, port), envoy, folder, .. } = settings;
    let admin = envoy.admin;
    Bootstrap {
        node_id: node.id(),
        cluster: format!("{}.{}", node.pod, node.namespace),
        metadata: metadata(node),
        locality: node.locality.as_deref().map(locality),
        xds_host: host.clone(),
        xds_port: *port,
        xds_transport_socket: Some(mutual_tls::transport_socket(&Secrets::Agent, host)),
        admin_address: Some((admin.ip().to_string(), admin.port())),
        sds_socket: Some(socket(folder)),
        ..Bootstrap::default()
    }
}

/// Where the socket is.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// What the controller may read about the proxy.
fn metadata(node: &NodeSettings) -> Map<String, Value> {
    let mut metadata = Map::new();
    let mut say = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
    say("NAMESPACE", json!(node.namespace));
    say("SERVICE_ACCOUNT", json!(node.service_account));
    say("LABELS", json!(node.labels.0));
    // It holds a certificate, and takes it by the names that everybody uses.
    say("SDS", json!(true));
    if let Some(cluster) = &node.cluster_id {
        say("CLUSTER_ID", json!(cluster));
    }
    if node.role == Role::Sidecar {
        say("INTERCEPTION_MODE", json!(node.interception.as_str()));
    }
    metadata
}

fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}
