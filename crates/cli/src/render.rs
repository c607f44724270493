//! `heddle render`: what a proxy would be sent, from files alone.
//!
//! In: files and a node id. Out: the dump on standard output, problems on standard error; 1 when
//! one of them is an error.
//!
//! **Invariant:** the same code as the controller's, from reading to encoding; only delivery is
//! left out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use envoy_api::{EncodedResource, dump};
use model::{Origin, Proxy, ProxyKey};
use serde_json::Value;

use crate::files::Files;
use crate::proxy::ProxyArgs;
use crate::report::Message;
use crate::{check, output, report};

/// Arguments of `render`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// File or folder of YAML, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "PATH")]
    filenames: Vec<PathBuf>,
    /// File of mesh settings (MeshConfig)
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
    /// An agent gives the proxy the certificate of its workload: it speaks mutual TLS
    #[arg(long)]
    agent: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Yaml,
    Table,
}

type Rendered = Vec<(EncodedResource, Arc<model::ir::Resource>)>;

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut proxy = args.proxy.proxy()?;
    proxy.capabilities.mutual_tls = args.agent;
    let mut files = Files::read(&args.filenames)?;
    if let Some(path) = &args.mesh_config {
        files.read_mesh_config(path)?;
    }
    let pod = files.pod(&proxy.namespace, &proxy.name);
    let ignored = pod.filter(|_| !proxy.labels.is_empty()).map(|path| path.display().to_string());
    let rendered = render(&mut files, proxy);
    let messages = report::messages(&files);
    report::print(&files, &messages);
    if let Some(path) = ignored {
        report::note(&format!(
            "the Pod of this proxy is in {path}; its labels count, not --labels"
        ));
    }
    match args.output {
        Format::Json => output::json(&dump_of(&files, &rendered))?,
        Format::Yaml => output::yaml(&dump_of(&files, &rendered))?,
        Format::Table => output::print(&table(&files, &rendered).to_string())?,
    }
    let failed = messages.iter().any(Message::is_error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Lower, resolve and encode; problems are added to the files' findings.
fn render(files: &mut Files, proxy: Proxy) -> Rendered {
    let resources = check::resolve(files, [proxy]).resources_of(ProxyKey(0));
    let encode = |resource| Some((check::encode(files, &resource)?, resource));
    resources.into_values().filter_map(encode).collect()
}

fn dump_of(files: &Files, rendered: &Rendered) -> Value {
    let made_of: BTreeMap<_, _> =
        rendered.iter().map(|(e, r)| ((e.resource_type(), Arc::clone(e.name())), r)).collect();
    dump::config_dump(rendered.iter().map(|(encoded, _)| encoded), |encoded| {
        let resource = made_of.get(&(encoded.resource_type(), Arc::clone(encoded.name())))?;
        Some(translate::provenance(resource, |origin| place(files, origin)))
    })
}

/// An origin in words, with file and line.
fn place(files: &Files, origin: &Origin) -> String {
    match files.place(&origin.object, &origin.field) {
        Some((file, at)) => {
            let path = files.texts.get(file).map(|(p, _)| p.display().to_string());
            format!("{origin} ({}:{})", path.unwrap_or_default(), at.line)
        }
        None => origin.to_string(),
    }
}

fn table(files: &Files, rendered: &Rendered) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["TYPE", "NAME", "VERSION", "FROM"]);
    let mut rows: Vec<_> = rendered.iter().collect();
    rows.sort_by(|(a, _), (b, _)| {
        (a.resource_type(), a.name()).cmp(&(b.resource_type(), b.name()))
    });
    for (encoded, resource) in rows {
        let origins = resource.origins().0.iter().map(|origin| place(files, origin));
        table.add_row([
            encoded.resource_type().to_string(),
            encoded.name().to_string(),
            encoded.version().to_string(),
            origins.collect::<Vec<_>>().join("\n"),
        ]);
    }
    table
}
