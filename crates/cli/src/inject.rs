//! `heddle inject`: what pods become when they are created in the mesh, without a cluster.
//!
//! In: files of objects. Out: the same objects on standard output, pods and templates of pods with
//! their sidecar; documents in which nothing changes as they are written.
//!
//! **Invariant:** the change is the webhook's; a file with one pod that is refused gives nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use config::yaml;
use injector::{ProxyConfig, Settings, inject_object};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use crate::admin::wait_for;
use crate::{files, output, report};

/// ConfigMap of the control plane, and the keys of its settings.
const CONFIG_MAP: &str = "heddle";
const INJECTOR: &str = "injector";
const MESH: &str = "mesh";

/// Arguments of `inject`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  heddle inject -f deployment.yaml | kubectl apply -f -
  helm template charts/shop | heddle inject -f - --kubernetes | kubectl apply -f -
  kubectl -n heddle-system get configmap heddle -o jsonpath='{.data.injector}' > settings.yaml
  heddle inject -f shop --settings settings.yaml

Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods and lists of them get a
sidecar unless they say no; everything else passes through. What has no effect, and which pods are
passed over, stands on standard error.
Exit code: 0 when every pod is injected or passed over; 1 when one is refused; 2 for wrong arguments.")]
pub(crate) struct Args {
    /// File or folder of YAML, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "PATH")]
    filenames: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// File of settings: the key `injector` of ConfigMap heddle, or the whole ConfigMap
    #[arg(long, value_name = "FILE", conflicts_with = "kubernetes")]
    settings: Option<PathBuf>,
    /// File of mesh settings (MeshConfig), for its defaultConfig
    #[arg(long, value_name = "FILE", conflicts_with = "kubernetes")]
    mesh_config: Option<PathBuf>,
    /// Take the settings of the cluster of the kubeconfig
    #[arg(short, long)]
    kubernetes: bool,
    /// With --kubernetes: where Heddle is installed
    #[arg(long, default_value = "heddle-system", value_name = "NAMESPACE")]
    system_namespace: String,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (settings, proxy) = match args.kubernetes {
        true => wait_for(of_cluster(&args.system_namespace))?,
        false => of_files(args)?,
    };
    let files = files::contents(&args.filenames)?;
    let (mut out, mut refused) = (String::new(), false);
    for (path, bytes) in &files {
        let text = std::str::from_utf8(bytes);
        let text = text.with_context(|| format!("{} is not UTF-8", path.display()))?;
        for (line, document) in config::documents(text) {
            let at = |more: u32| format!("{}:{}", path.display(), line + more);
            let node = yaml::parse(document)
                .map_err(|error| anyhow::anyhow!("{}: {}", at(error.at.line), error.message))?;
            if node.is_null() {
                continue;
            }
            let mut object = node.to_json();
            let injected = inject_object(&mut object, &args.namespace, &settings, &proxy);
            let (changed, notes) = match injected {
                Ok(injected) => (injected.changed, injected.notes),
                Err(refusal) => {
                    refused = true;
                    let faults = refusal.0.iter().map(|fault| format!("error: {fault}"));
                    (false, faults.collect())
                }
            };
            for note in notes {
                report::note(&format!("{}: {note}", at(1)));
            }
            let document = document.strip_prefix("---").unwrap_or(document);
            let text = match changed {
                true => serde_yaml::to_string(&object).context("writing YAML")?,
                false => document.trim_start_matches(['\r', '\n']).to_owned(),
            };
            out.push_str("---\n");
            out.push_str(text.trim_end());
            out.push('\n');
        }
    }
    if refused {
        return Ok(ExitCode::FAILURE);
    }
    if files.is_empty() {
        bail!("no file named .yaml, .yml or .json is there; name the files that are meant");
    }
    output::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// Settings of files, or the defaults.
fn of_files(args: &Args) -> Result<(Settings, ProxyConfig)> {
    let text = |path: &Option<PathBuf>| match path {
        None => Ok(String::new()),
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        }
    };
    let (mut settings, mut mesh) = (text(&args.settings)?, text(&args.mesh_config)?);
    // A whole ConfigMap holds both.
    if let Ok(map) = yaml::parse(&settings)
        && map.get("kind").and_then(yaml::Node::as_str) == Some("ConfigMap")
    {
        let key = |key: &str| map.get("data").and_then(|d| d.get(key)).and_then(yaml::Node::as_str);
        if mesh.is_empty() {
            mesh = key(MESH).unwrap_or_default().to_owned();
        }
        settings = key(INJECTOR).unwrap_or_default().to_owned();
    }
    both(&settings, &mesh, None)
}

/// Settings of a cluster.
async fn of_cluster(namespace: &str) -> Result<(Settings, ProxyConfig)> {
    let client = Client::try_default().await.context("finding the cluster")?;
    let version = client.apiserver_version().await.context("asking the cluster's version")?;
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let map = api.get(CONFIG_MAP).await;
    let map = map.with_context(|| format!("reading ConfigMap {namespace}/{CONFIG_MAP}"))?;
    let data = map.data.unwrap_or_default();
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    let number = |text: &str| text.trim_end_matches('+').parse().ok();
    let version = number(&version.major).zip(number(&version.minor));
    both(text(INJECTOR), text(MESH), version)
}

fn both(
    settings: &str,
    mesh: &str,
    version: Option<(u32, u32)>,
) -> Result<(Settings, ProxyConfig)> {
    let settings = Settings::read(settings)?.for_cluster(version);
    let mesh = config::read_default_proxy_config(mesh).map_err(|error| {
        anyhow::anyhow!("mesh settings, line {}: {}", error.at.line, error.message)
    })?;
    match mesh.errors.first() {
        Some(error) => bail!("mesh settings: defaultConfig: {error}"),
        None => Ok((settings, mesh.config)),
    }
}
