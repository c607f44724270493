//! Values of settings that are more than a word.
//!
//! In: texts of flags, parts of a YAML file. Out: checked values, or what is wrong with them.
//!
//! **Invariant:** a value means the same whether it stands in a flag, in the environment or in a
//! file.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Beside one workload
    Sidecar,
    /// A gateway
    Router,
}

/// How connections come to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub(crate) enum Interception {
    /// They are redirected to it
    #[default]
    Redirect,
    /// The workload makes them to ports of the proxy
    None,
}

/// What is logged, in Envoy's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "levels explain themselves")]
pub(crate) enum LogLevel {
    Trace,
    Debug,
    Info,
    #[default]
    Warning,
    Error,
    Critical,
    Off,
}

/// A time: a number and ms, s, m, h or d; 0 needs no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

/// Labels of a workload, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels(pub(crate) BTreeMap<String, String>);

/// The application's probes, by the path under which the agent answers them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes(pub(crate) BTreeMap<String, Probe>);

/// A probe as Kubernetes has it. Its other fields are for kubelet, and newer versions may have more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    #[serde(flatten)]
    pub(crate) action: Action,
    /// Unit: seconds; 0 = 1.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) timeout_seconds: u64,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    HttpGet(HttpGet),
    TcpSocket(TcpSocket),
    Grpc(Grpc),
}

/// Get a page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpGet {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) path: String,
    pub(crate) port: u16,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) host: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) scheme: Scheme,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) http_headers: Vec<Header>,
}

/// A header of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) value: String,
}

/// Open a connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TcpSocket {
    pub(crate) port: u16,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) host: String,
}

/// Ask the health service of gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Grpc {
    pub(crate) port: u16,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) service: String,
}

/// How a page is got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Scheme {
    #[default]
    #[serde(rename = "HTTP", alias = "http", alias = "")]
    Http,
    #[serde(rename = "HTTPS", alias = "https")]
    Https,
}

/// Where the application has metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppMetrics {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) scheme: Scheme,
}

/// As it is written; annotations are texts, so its port may be one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMetrics {
    port: Number,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: Scheme,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u16),
    Text(String),
}

/// Kubernetes takes null for what is not said.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn of_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

// === impl Role ===

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        })
    }
}

// === impl Interception ===

impl Interception {
    /// As the controller reads it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::None => "NONE",
        }
    }
}

// === impl LogLevel ===

impl LogLevel {
    /// As Envoy reads it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
}

// === impl Time ===

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no time; use a number and ms, s, m, h or d, such as 5s");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" if number == 0 => 1,
            _ => return Err(bad()),
        };
        let longest = 10 * 365 * 86_400_000;
        let time = number.checked_mul(milliseconds).filter(|time| *time <= longest);
        let time = time.ok_or_else(|| format!("{text:?} is longer than 10 years"))?;
        Ok(Self(Duration::from_millis(time)))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Labels ===

impl Labels {
    /// Lines of `key="value"`, as the downward API writes them.
    pub(crate) fn of_downward_api(text: &str) -> Result<Self, String> {
        let mut labels = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let bad = || format!("line {}: {line:?} is not KEY=\"VALUE\"", number + 1);
            let (key, value) =
                line.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(bad)?;
            // Quoted as in Go: what can stand in a label is so in JSON too.
            let value: String = serde_json::from_str(value).map_err(|_| bad())?;
            labels.insert(key.to_owned(), value);
        }
        Ok(Self(labels))
    }
}

impl FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let labels = parts.map(|part| match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("{part:?} is not KEY=VALUE")),
        });
        labels.collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self)
    }
}

// === impl Probes ===

impl Probes {
    fn check(probes: BTreeMap<String, Probe>) -> Result<Self, String> {
        let good = |key: &str| {
            let parts: Vec<&str> = key.split('/').collect();
            matches!(parts[..], ["", "app-health", container, "livez" | "readyz" | "startupz"]
                if !container.is_empty())
        };
        match probes.keys().find(|key| !good(key)) {
            Some(key) => {
                Err(format!("{key:?} is not /app-health/CONTAINER/livez, …/readyz or …/startupz"))
            }
            None => Ok(Self(probes)),
        }
    }
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Self::default()) } else { Self::check(of_json(text)?) }
    }
}

impl<'de> Deserialize<'de> for Probes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let probes = BTreeMap::deserialize(deserializer)?;
        Self::check(probes).map_err(serde::de::Error::custom)
    }
}

// === impl AppMetrics ===

impl AppMetrics {
    fn check(written: WrittenMetrics) -> Result<Self, String> {
        let WrittenMetrics { port, path, scheme } = written;
        let port = match port {
            Number::Number(port) => Some(port),
            Number::Text(text) => text.parse().ok(),
        };
        let port = port.filter(|port| *port > 0).ok_or("port: not a number from 1 to 65535")?;
        let path = match path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Self { port, path, scheme })
    }
}

impl FromStr for AppMetrics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::check(of_json(text)?)
    }
}

impl<'de> Deserialize<'de> for AppMetrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::check(WrittenMetrics::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
