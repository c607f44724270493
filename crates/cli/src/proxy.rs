//! The arguments by which a command is told of a proxy.
//!
//! In: the command line. Out: a `Proxy`, as a stream of it would make it.
//!
//! **Invariant:** every command that takes a proxy apart from a running one takes these.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use model::rows::Locality;
use model::{Capabilities, Proxy};

/// Which proxy.
#[derive(clap::Args)]
pub(crate) struct ProxyArgs {
    /// Node id of the proxy: router~IP~pod.namespace~namespace.svc.cluster.local
    #[arg(long, value_name = "ID")]
    pub(crate) node: String,
    /// Labels of the proxy, where no Pod that Heddle knows has its name
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE,…")]
    labels: Vec<String>,
    /// Whether connections of the workload are captured (REDIRECT), or its sidecar opens the ports
    /// of services on loopback (NONE)
    #[arg(long, value_enum, default_value_t = Interception::Redirect, value_name = "MODE")]
    interception_mode: Interception,
    /// Where the proxy runs, where no Node or WorkloadEntry that Heddle knows says it
    #[arg(long, value_name = "REGION/ZONE/SUBZONE")]
    locality: Option<String>,
}

/// How connections of a workload come to its sidecar, in the words of node metadata.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Interception {
    Redirect,
    None,
}

// === impl ProxyArgs ===

impl ProxyArgs {
    /// The proxy that they mean, with all that the newest Envoy can do, and without a certificate.
    pub(crate) fn proxy(&self) -> Result<Proxy> {
        let capabilities = Capabilities { vhds: true, mutual_tls: false };
        let mut proxy = Proxy::parse(&self.node, None, capabilities).context("--node")?;
        for label in &self.labels {
            match label.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    proxy.labels.insert(key.into(), value.into());
                }
                _ => bail!("--labels takes KEY=VALUE pairs, not {label:?}"),
            }
        }
        proxy.locality = Locality::parse(self.locality.as_deref().unwrap_or_default());
        proxy.captures = self.interception_mode == Interception::Redirect;
        Ok(proxy)
    }
}
