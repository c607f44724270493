//! `heddle validate`: whether files are good, before they are applied.
//!
//! In: files. Out: problems as a compiler prints them, on standard error, or as a document on
//! standard output; 1 when one of them is an error.
//!
//! **Invariant:** what it lets pass, a controller accepts: it is checked for a gateway proxy of
//! every Gateway and for a sidecar of every namespace.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use config::yaml::Node;
use model::{Capabilities, Proxy};
use serde_json::json;

use crate::files::Files;
use crate::report::Message;
use crate::{check, output, report};

/// Arguments of `validate`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  heddle validate -f mesh                      every YAML file below a folder
  helm template charts/shop | heddle validate -f -
  heddle validate -f mesh -o json | jq '.problems[].message'

References between objects are looked up among the files alone: give all that belong together.
Objects of kinds that Heddle does not read are passed over.
Exit code: 0 when there is no error, warnings or not; 1 when there is one; 2 for wrong arguments.")]
pub(crate) struct Args {
    /// File or folder of YAML, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "PATH")]
    filenames: Vec<PathBuf>,
    /// File of mesh settings (MeshConfig)
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Yaml,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut files = Files::read(&args.filenames)?;
    if let Some(path) = &args.mesh_config {
        files.read_mesh_config(path)?;
    }
    if files.texts.is_empty() {
        bail!("no file named .yaml, .yml or .json is there; name the files that are meant");
    }
    let proxies = proxies(&files).context("a proxy to validate for")?;
    for (_, resource) in check::resolve(&mut files, proxies).resources() {
        check::encode(&mut files, &resource);
    }
    let messages = report::messages(&files);
    let errors = messages.iter().filter(|m| m.is_error()).count();
    let counts = json!({
        "files": files.texts.len(),
        "objects": files.objects.len(),
        "errors": errors,
        "warnings": messages.len() - errors,
        "problems": messages.iter().map(|m| m.to_json(&files)).collect::<Vec<_>>(),
    });
    match args.output {
        Format::Json => output::json(&counts)?,
        Format::Yaml => output::yaml(&counts)?,
        Format::Text => {
            report::print(&files, &messages);
            output::print(&summary(&files, &messages, errors))?;
        }
    }
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One line that tells what was looked at and what came of it.
fn summary(files: &Files, messages: &[Message], errors: usize) -> String {
    let count = |n: usize, one: &str, many: &str| match n {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    };
    format!(
        "{} in {}: {}, {}",
        count(files.objects.len(), "object", "objects"),
        count(files.texts.len(), "file", "files"),
        count(errors, "error", "errors"),
        count(messages.len() - errors, "warning", "warnings")
    )
}

/// A sidecar of every namespace and a gateway proxy of every Gateway.
fn proxies(files: &Files) -> Result<Vec<Proxy>> {
    const NAME: &str = "heddle-validate";
    let capabilities = Capabilities { vhds: true, mutual_tls: false };
    let proxy = |role: &str, namespace: &str| {
        let id = format!("{role}~127.0.0.1~{NAME}.{namespace}~{namespace}.svc.cluster.local");
        Proxy::parse(&id, None, capabilities)
    };
    let mut out = Vec::new();
    let namespaces: BTreeSet<&str> =
        files.objects.keys().map(|o| &*o.namespace).filter(|n| !n.is_empty()).collect();
    for namespace in namespaces {
        out.push(proxy("sidecar", namespace)?);
    }
    for (owner, (_, raw)) in &files.objects {
        if owner.kind.name != "Gateway" {
            continue;
        }
        let selector = raw.body.get("spec").and_then(|spec| spec.get("selector"));
        let mut router = proxy("router", &owner.namespace)?;
        for label in selector.and_then(Node::as_map).unwrap_or_default() {
            let value = label.value.as_str().unwrap_or_default();
            router.labels.insert(Arc::from(&*label.key), Arc::from(value));
        }
        out.push(router);
    }
    Ok(out)
}
