//! Settings of `heddle-agent run`: what flags, environment and file come to.
//!
//! In: arguments, the file of `--config`. Out: [`Settings`]. A flag goes before the environment,
//! that before the file.
//!
//! **Invariant:** arguments and environment are read here, once; everything else gets values.

pub(crate) mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use identity::SpiffeId;
use serde::Deserialize;

use self::values::{AppMetrics, Interception, Labels, LogLevel, Probes, Role, Time};

/// Domain of the cluster's names; it stands in node ids.
const DOMAIN: &str = "cluster.local";
/// Worker threads of an Envoy of which nothing else is said.
const CONCURRENCY: u32 = 2;

/// Arguments of `run`; the same names, in camelCase, stand in the file of `--config`.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Args {
    /// File of settings (YAML): names as here, in camelCase. What is given here, or in the
    /// environment, goes before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// What the proxy is: sidecar of a workload, or router (gateway) [default: sidecar]
    #[arg(long, env = "ROLE", value_enum)]
    role: Option<Role>,
    /// Name of the pod, or of the machine's workload
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Its namespace
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Its service account [default: default]
    #[arg(long, env = "SERVICE_ACCOUNT", value_name = "NAME")]
    service_account: Option<String>,
    /// Its IP address
    #[arg(long, env = "INSTANCE_IP", value_name = "IP")]
    address: Option<IpAddr>,
    /// File with its labels, as the downward API writes it [default: /etc/podinfo/labels]
    #[arg(long, value_name = "FILE")]
    labels_file: Option<PathBuf>,
    /// Its labels, in place of a file
    #[arg(long, value_name = "KEY=VALUE,…")]
    labels: Option<Labels>,
    /// Whether its connections are captured (REDIRECT), or the proxy opens the ports of services on
    /// loopback (NONE) [default: REDIRECT]
    #[arg(long, env = "INTERCEPTION_MODE", value_enum, value_name = "MODE")]
    interception_mode: Option<Interception>,
    /// Where it runs, where no Node of a cluster says it
    #[arg(long, value_name = "REGION/ZONE/SUBZONE")]
    locality: Option<String>,
    /// Secure port of the controller
    #[arg(long, env = "XDS_ADDRESS", value_name = "HOST:PORT")]
    xds_address: Option<String>,
    /// Where certificates come from [default: that of --xds-address]
    #[arg(long, env = "CA_ADDRESS", value_name = "HOST:PORT")]
    ca_address: Option<String>,
    /// First part of every identity [default: cluster.local]
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Name of the cluster, for the controller
    #[arg(long, env = "CLUSTER_ID", value_name = "NAME")]
    cluster_id: Option<String>,
    /// Token of the service account, which kubelet renews [default:
    /// /var/run/secrets/tokens/istio-token]
    #[arg(long, value_name = "FILE", conflicts_with = "join_token_file")]
    token_file: Option<PathBuf>,
    /// Token of `heddle token create`, good for the first certificate; later ones are got by the
    /// certificate before. For restarts that one is kept in the folder if this is in memory (tmpfs)
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Roots of the mesh, by which controller and peers are known; read again when they change
    /// [default: /var/run/secrets/heddle/root-cert.pem]
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The Envoy to run [default: envoy]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Folder for Envoy's file and the socket of its secrets; in memory, and of this user alone
    /// [default: /etc/heddle/proxy]
    #[arg(long, env = "ENVOY_FOLDER", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Worker threads of Envoy; 0: one for each processor [default: 2]
    #[arg(long, env = "CONCURRENCY", value_name = "COUNT")]
    concurrency: Option<u32>,
    /// What Envoy logs; debug and trace are for the agent too [default: warning]
    #[arg(long, value_enum, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// What parts of Envoy log
    #[arg(long, value_name = "COMPONENT:LEVEL,…")]
    component_log_level: Option<String>,
    /// How long Envoy serves on when it is to end, while others learn that it goes [default: 5s]
    #[arg(long, env = "TERMINATION_DRAIN_DURATION", value_name = "TIME")]
    drain_duration: Option<Time>,
    /// Then serve on until no connection is left
    #[arg(
        long,
        env = "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    exit_on_zero_active_connections: Option<bool>,
    /// Lifetime to ask for, such as 24h; the controller may shorten it
    #[arg(long, env = "CERTIFICATE_LIFETIME", value_name = "TIME")]
    certificate_lifetime: Option<Time>,
    /// Port of Envoy's admin pages, on loopback [default: 15000]
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
    /// Port of /healthz/ready [default: 15021]
    #[arg(long, value_name = "PORT")]
    status_port: Option<u16>,
    /// Port of /stats/prometheus, /app-health/ and /quitquitquit [default: 15020]
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
    /// Probes of the application: JSON, an object of /app-health/CONTAINER/livez (readyz, startupz)
    /// and the probe as Kubernetes has it
    #[arg(long, env = "APP_PROBES", value_name = "JSON")]
    app_probes: Option<Probes>,
    /// Where the application has metrics: JSON with port, path, scheme
    #[arg(long, env = "APP_METRICS", value_name = "JSON")]
    app_metrics: Option<AppMetrics>,
}

/// What the agent does.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What the proxy says of itself.
    pub(crate) node: NodeSettings,
    /// Host and port of the controller.
    pub(crate) xds: (String, u16),
    /// How certificates are got.
    pub(crate) certificates: CertificateSettings,
    /// The process.
    pub(crate) envoy: EnvoySettings,
    /// Folder for the bootstrap and the socket.
    pub(crate) folder: PathBuf,
    /// Where readiness is served.
    pub(crate) status: SocketAddr,
    /// Where metrics and probes are served.
    pub(crate) metrics: SocketAddr,
    /// The application beside.
    pub(crate) application: Application,
    /// Whether the agent is to be talkative.
    pub(crate) log_level: LogLevel,
}

/// Who the proxy is.
#[derive(Debug)]
pub(crate) struct NodeSettings {
    pub(crate) role: Role,
    pub(crate) pod: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) address: IpAddr,
    pub(crate) labels: Labels,
    pub(crate) interception: Interception,
    pub(crate) locality: Option<String>,
    pub(crate) cluster_id: Option<String>,
}

/// How certificates are got.
#[derive(Debug)]
pub(crate) struct CertificateSettings {
    /// HOST:PORT of the service.
    pub(crate) address: String,
    /// Who the workload is.
    pub(crate) id: SpiffeId,
    /// What proves it at first.
    pub(crate) token: TokenFile,
    /// File with the roots of the mesh.
    pub(crate) roots: PathBuf,
    /// Lifetime to ask for; none = as the service likes.
    pub(crate) lifetime: Option<Duration>,
}

/// A token that proves who asks.
#[derive(Debug)]
pub(crate) enum TokenFile {
    /// Good as long as it lasts, and replaced before its end.
    Lasting(PathBuf),
    /// Good for one certificate, whose key may be kept in this folder.
    Once { file: PathBuf, keep: PathBuf },
}

/// How Envoy runs.
#[derive(Clone, Debug)]
pub(crate) struct EnvoySettings {
    pub(crate) binary: PathBuf,
    /// None: one thread for each processor.
    pub(crate) concurrency: Option<u32>,
    pub(crate) log_level: LogLevel,
    pub(crate) component_log_level: Option<String>,
    pub(crate) admin: SocketAddr,
    /// How long it serves on before its end.
    pub(crate) drain: Duration,
    /// Whether it then serves on until no connection is left.
    pub(crate) until_idle: bool,
    /// Whether only what comes in is drained: the workload may still call others.
    pub(crate) inbound_only: bool,
}

/// The application beside the proxy.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) address: IpAddr,
    pub(crate) probes: Probes,
    pub(crate) metrics: Option<AppMetrics>,
}

/// Take each value from the first that has it.
macro_rules! first {
    ($flags:ident, $file:ident: $($field:ident),+ $(,)?) => {
        Args { config: $flags.config, $($field: $flags.$field.or($file.$field)),+ }
    };
}

// === impl Args ===

impl Args {
    /// With what the file of `--config` says beside.
    fn with_file(self) -> Result<Self> {
        let Some(file) = self.config.clone() else { return Ok(self) };
        let name = || format!("--config {}", file.display());
        let text = std::fs::read_to_string(&file).with_context(name)?;
        let yaml = serde_yaml::Deserializer::from_str(&text);
        let read = serde_path_to_error::deserialize(yaml).map_err(at_field).with_context(name);
        let (flags, file): (Self, Self) = (self, read?);
        Ok(first!(flags, file:
            role, pod_name, namespace, service_account, address, labels_file, labels,
            interception_mode, locality, xds_address, ca_address, trust_domain, cluster_id,
            token_file, join_token_file, roots, envoy, folder, concurrency, log_level,
            component_log_level, drain_duration, exit_on_zero_active_connections,
            certificate_lifetime, admin_port, status_port, metrics_port, app_probes, app_metrics,
        ))
    }
}

/// The error of a file, with the field that it is in.
fn at_field(error: serde_path_to_error::Error<serde_yaml::Error>) -> anyhow::Error {
    let path = error.path().to_string();
    let error = error.into_inner();
    match path.as_str() {
        "" | "." => anyhow::anyhow!("{error}"),
        path => anyhow::anyhow!("{path}: {error}"),
    }
}

// === impl Settings ===

impl Settings {
    /// Read the file, and check everything against everything else.
    pub(crate) fn resolve(args: Args) -> Result<Self> {
        let Args {
            config: _,
            role,
            pod_name,
            namespace,
            service_account,
            address,
            labels_file,
            labels,
            interception_mode,
            locality,
            xds_address,
            ca_address,
            trust_domain,
            cluster_id,
            token_file,
            join_token_file,
            roots,
            envoy,
            folder,
            concurrency,
            log_level,
            component_log_level,
            drain_duration,
            exit_on_zero_active_connections,
            certificate_lifetime,
            admin_port,
            status_port,
            metrics_port,
            app_probes,
            app_metrics,
        } = args.with_file()?;
        let role = role.unwrap_or(Role::Sidecar);
        let namespace = needed("--namespace", namespace)?;
        let service_account = given(service_account).unwrap_or_else(|| "default".to_owned());
        let address = address.context("--address is needed: the IP address of the workload")?;
        let labels = match labels {
            Some(labels) => labels,
            None => labels_of(labels_file.as_deref())?,
        };
        let xds = needed("--xds-address", xds_address)?;
        let ca = given(ca_address).unwrap_or_else(|| xds.clone());
        host_and_port("--ca-address", &ca)?;
        let trust_domain = given(trust_domain).unwrap_or_else(|| "cluster.local".to_owned());
        let trust_domain = trust_domain.parse().context("--trust-domain")?;
        let id = SpiffeId::new(&trust_domain, &namespace, &service_account);
        let id = id.context("--namespace and --service-account")?;
        let folder = folder.unwrap_or_else(|| PathBuf::from("/etc/heddle/proxy"));
        // Envoy may be started elsewhere than the agent.
        let folder = std::path::absolute(folder).context("--folder")?;
        let token = match (join_token_file, token_file) {
            (Some(_), Some(_)) => bail!("--token-file and --join-token-file exclude each other"),
            (Some(file), None) => TokenFile::Once { file, keep: folder.clone() },
            (None, file) => TokenFile::Lasting(
                file.unwrap_or_else(|| PathBuf::from("/var/run/secrets/tokens/istio-token")),
            ),
        };
        let log_level = log_level.unwrap_or_default();
        let (status, metrics, admin) = (
            status_port.unwrap_or(15021),
            metrics_port.unwrap_or(15020),
            admin_port.unwrap_or(15000),
        );
        let mut ports = [admin, metrics, status];
        ports.sort_unstable();
        if ports[0] == 0 || ports[0] == ports[1] || ports[1] == ports[2] {
            bail!("--admin-port, --metrics-port and --status-port must be three ports, not 0");
        }
        Ok(Self {
            xds: host_and_port("--xds-address", &xds)?,
            certificates: CertificateSettings {
                address: ca,
                id,
                token,
                roots: roots.unwrap_or_else(|| "/var/run/secrets/heddle/root-cert.pem".into()),
                lifetime: certificate_lifetime.map(|Time(time)| time),
            },
            envoy: EnvoySettings {
                binary: envoy.unwrap_or_else(|| PathBuf::from("envoy")),
                concurrency: Some(concurrency.unwrap_or(CONCURRENCY)).filter(|count| *count > 0),
                log_level,
                component_log_level: given(component_log_level),
                admin: (Ipv4Addr::LOCALHOST, admin).into(),
                drain: drain_duration.map_or(Duration::from_secs(5), |Time(time)| time),
                until_idle: exit_on_zero_active_connections.unwrap_or(false),
                inbound_only: role == Role::Sidecar,
            },
            folder,
            status: served_at(address, status),
            metrics: served_at(address, metrics),
            application: Application {
                address,
                probes: app_probes.unwrap_or_default(),
                metrics: app_metrics,
            },
            log_level,
            node: NodeSettings {
                role,
                pod: needed("--pod-name", pod_name)?,
                namespace,
                service_account,
                address,
                labels,
                interception: interception_mode.unwrap_or_default(),
                locality: given(locality),
                cluster_id: given(cluster_id),
            },
        })
    }
}

// === impl NodeSettings ===

impl NodeSettings {
    /// The id that the controller knows the proxy by.
    pub(crate) fn id(&self) -> String {
        let Self { role, pod, namespace, address, .. } = self;
        format!("{role}~{address}~{pod}.{namespace}~{namespace}.svc.{DOMAIN}")
    }
}

/// Where a page is served: to all, but for a workload on loopback, which has no other machines.
fn served_at(address: IpAddr, port: u16) -> SocketAddr {
    let any: IpAddr = match std::path::Path::new("/proc/net/if_inet6").exists() {
        // Takes connections of IPv4 as well.
        true => std::net::Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    (if address.is_loopback() { address } else { any }, port).into()
}

/// An empty value of the environment is none.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn needed(flag: &str, text: Option<String>) -> Result<String> {
    given(text).with_context(|| format!("{flag} is needed"))
}

/// HOST:PORT, the host without brackets.
fn host_and_port(flag: &str, text: &str) -> Result<(String, u16)> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let parts = parts.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts.filter(|(_, port)| *port > 0) else {
        bail!("{flag} takes HOST:PORT, not {text:?}");
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Ok((host.to_owned(), port))
}

/// Labels of a file; only one that was named must be there.
fn labels_of(file: Option<&Path>) -> Result<Labels> {
    let path = file.unwrap_or(Path::new("/etc/podinfo/labels"));
    match std::fs::read_to_string(path) {
        Ok(text) => Labels::of_downward_api(&text)
            .map_err(|why| anyhow::anyhow!("--labels-file {}: {why}", path.display())),
        Err(_) if file.is_none() => Ok(Labels::default()),
        Err(error) => Err(error).with_context(|| format!("--labels-file {}", path.display())),
    }
}

#[cfg(test)]
mod tests;
