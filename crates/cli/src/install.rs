//! `heddle install`: the manifests of the chart, for who has no helm.
//!
//! **Invariant:** prints what `helm template` prints of the chart with its own values; the CRDs are
//! made of the schemas that this program checks objects against.

use std::process::ExitCode;

use anyhow::{Context, Result};
use config::{KINDS, crd};

use crate::output;

/// The chart, as `tests/cluster/render` prints it.
const CHART: &str = include_str!("install.yaml");
const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: heddle-system\n";

/// Arguments of `install`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the CRDs out, where Istio's are installed already
    #[arg(long)]
    no_crds: bool,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut out = NAMESPACE.to_owned();
    for known in KINDS.iter().filter(|_| !args.no_crds) {
        if let Some(definition) = crd::definition(known) {
            out.push_str("---\n");
            out.push_str(&serde_yaml::to_string(&definition).context("writing YAML")?);
        }
    }
    out.push_str(CHART);
    output::print(&out)?;
    Ok(ExitCode::SUCCESS)
}
