//! What annotations of a pod say about its sidecar.
//!
//! In: annotations, settings of the mesh. Out: `Wishes`, every fault, and what has no effect.
//!
//! **Invariant:** an annotation of ours is read, refused, or told to have no effect; none is
//! ignored in silence.

use std::collections::BTreeMap;
use std::fmt::Display;

use ipnet::IpNet;
use serde_json::Value;

use crate::pod::Pod;
use crate::proxy_config::{self, ProxyConfig};
use crate::refusal::Fault;

/// How the sidecar is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// By resource: request and limit. One of the two set replaces both of the settings.
    pub(crate) resources: BTreeMap<&'static str, (Option<String>, Option<String>)>,
    pub(crate) image: Option<String>,
    pub(crate) log_level: Option<String>,
    pub(crate) component_log_level: Option<String>,
    pub(crate) native: Option<bool>,
    /// Volumes of the pod, with their names.
    pub(crate) volumes: Vec<Value>,
    /// Where the sidecar sees them.
    pub(crate) volume_mounts: Vec<Value>,
    pub(crate) keep_probes: bool,
    pub(crate) merge_metrics: bool,
    /// Settings of the pod over those of the mesh.
    pub(crate) proxy: ProxyConfig,
    /// Flags of the container that captures, with their values.
    pub(crate) capture: Vec<(&'static str, String)>,
}

/// Annotations of traffic, the flag that each becomes, and what is allowed.
const CAPTURE: [(&str, &str, Allowed); 7] = [
    ("includeInboundPorts", "--include-inbound-ports", Allowed::PortsOrAll),
    ("excludeInboundPorts", "--exclude-inbound-ports", Allowed::Ports),
    ("includeOutboundIPRanges", "--include-outbound-ip-ranges", Allowed::RangesOrAll),
    ("excludeOutboundIPRanges", "--exclude-outbound-ip-ranges", Allowed::Ranges),
    ("includeOutboundPorts", "--include-outbound-ports", Allowed::Ports),
    ("excludeOutboundPorts", "--exclude-outbound-ports", Allowed::Ports),
    ("excludeInterfaces", "--exclude-interfaces", Allowed::Interfaces),
];
const TRAFFIC: &str = "traffic.sidecar.istio.io/";
const SIDECAR: &str = "sidecar.istio.io/";
const TEMPLATES: &str = "inject.istio.io/templates";
const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

/// What a list may hold.
#[derive(Clone, Copy)]
enum Allowed {
    Ports,
    PortsOrAll,
    Ranges,
    RangesOrAll,
    Interfaces,
}

/// Read them all.
pub(crate) fn read(
    pod: Pod<'_>,
    mesh: &ProxyConfig,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<String>,
) -> Wishes {
    let mut wishes = Wishes { merge_metrics: true, ..Wishes::default() };
    let mut own = ProxyConfig::default();
    let mut mode = None;
    for (key, value) in pod.annotations() {
        if key == proxy_config::ANNOTATION {
            own = proxy_config::of_pod(value, faults, warnings);
            continue;
        }
        let read = match key.strip_prefix(SIDECAR) {
            Some(name) => wishes.sidecar(name, value, &mut mode),
            None => match key.strip_prefix(TRAFFIC) {
                Some(name) => wishes.traffic(name, value),
                None => wishes.other(key, value),
            },
        };
        match read {
            Ok(true) => {}
            Ok(false) => warnings.push(format!("annotation {key} has no effect in Heddle")),
            Err(allowed) => faults.push(Fault::annotation(key, value, allowed)),
        }
    }
    wishes.proxy = own.over(mesh);
    if let Some(mode) = mode {
        wishes.proxy.interception_mode = Some(mode);
    }
    wishes
}

// === impl Wishes ===

impl Wishes {
    /// Whether connections of the pod are captured.
    pub(crate) fn captures(&self) -> bool {
        self.proxy.interception_mode.as_deref() != Some("NONE")
    }

    /// An annotation of sidecars. Whether there is such a one; else what is allowed.
    fn sidecar(
        &mut self,
        name: &str,
        value: &str,
        mode: &mut Option<String>,
    ) -> Result<bool, String> {
        let text = || value.to_owned();
        match name {
            // Said elsewhere; the mark of what was injected is written anew.
            "inject" | "status" => {}
            "proxyCPU" => self.resource("cpu").0 = Some(quantity(value, "100m or 2")?),
            "proxyCPULimit" => self.resource("cpu").1 = Some(quantity(value, "500m or 2")?),
            "proxyMemory" => self.resource("memory").0 = Some(quantity(value, "64Mi or 1Gi")?),
            "proxyMemoryLimit" => self.resource("memory").1 = Some(quantity(value, "64Mi or 1Gi")?),
            "proxyImage" => {
                let good = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic());
                self.image = Some(when(good, text, "use the reference of an image")?);
            }
            "logLevel" => {
                let allowed = format!("use one of {}", LEVELS.join(", "));
                self.log_level = Some(when(LEVELS.contains(&value), text, allowed)?);
            }
            "componentLogLevel" => {
                let good = value.split(',').all(|part| {
                    let parts = part.trim().split_once(':');
                    parts.is_some_and(|(c, l)| is_word(c) && LEVELS.contains(&l))
                });
                let allowed = "use COMPONENT:LEVEL,…, such as misc:error,upstream:debug";
                self.component_log_level = Some(when(good, text, allowed)?);
            }
            "nativeSidecar" => self.native = Some(truth(value)?),
            "rewriteAppHTTPProbers" => self.keep_probes = !truth(value)?,
            "interceptionMode" => {
                let allowed = "use REDIRECT or NONE; TPROXY is not supported";
                *mode = Some(when(matches!(value, "REDIRECT" | "NONE"), text, allowed)?);
            }
            "userVolume" => self.volumes = named_objects(value, "a volume")?,
            "userVolumeMount" => {
                let mounts = named_objects(value, "a mount of a volume")?;
                let good = mounts.iter().all(|mount| mount["mountPath"].is_string());
                self.volume_mounts = when(good, || mounts, "each mount needs a mountPath")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn traffic(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let Some((_, flag, allowed)) = CAPTURE.iter().find(|(n, ..)| *n == name) else {
            return Ok(false);
        };
        self.capture.push((flag, allowed.check(value)?));
        Ok(true)
    }

    fn other(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "prometheus.istio.io/merge-metrics" => self.merge_metrics = truth(value)?,
            TEMPLATES if value != "sidecar" => {
                return Err("only sidecar can be injected; the chart installs gateways".to_owned());
            }
            _ if key.starts_with("readiness.status.sidecar.istio.io/")
                || key.starts_with("status.sidecar.istio.io/")
                || key == "proxy.istio.io/overrides" =>
            {
                return Ok(false);
            }
            // Somebody else's.
            _ => {}
        }
        Ok(true)
    }

    fn resource(&mut self, name: &'static str) -> &mut (Option<String>, Option<String>) {
        self.resources.entry(name).or_default()
    }
}

fn when<T>(good: bool, value: impl FnOnce() -> T, allowed: impl Display) -> Result<T, String> {
    if good { Ok(value()) } else { Err(allowed.to_string()) }
}

fn truth(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "use \"true\" or \"false\"".to_owned())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// An amount as Kubernetes writes it; not below zero.
fn quantity(value: &str, such_as: &str) -> Result<String, String> {
    let good = amount(value).is_some();
    when(good, || value.to_owned(), format_args!("it is no amount; use one such as {such_as}"))
}

/// An amount in whole units.
pub(crate) fn amount(value: &str) -> Option<f64> {
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (digits, suffix) = value.split_at(end);
    let number: f64 = digits.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-18..=18).contains(&exponent).then(|| 10_f64.powi(exponent))?
        }
    };
    Some(number * factor)
}

/// Objects with names: a list of them, or a map from name to object, as JSON.
fn named_objects(text: &str, what: &str) -> Result<Vec<Value>, String> {
    let allowed = || format!("use a JSON list of objects with a name, each {what}");
    let named = |mut object: Value, name: &str| {
        object["name"] = Value::from(name);
        object
    };
    let all: Vec<Value> =
        match serde_json::from_str(text).map_err(|e| format!("{}: {e}", allowed()))? {
            Value::Array(items) => items,
            Value::Object(map) if map.values().all(Value::is_object) => {
                map.into_iter().map(|(name, object)| named(object, &name)).collect()
            }
            _ => return Err(allowed()),
        };
    let good = all.iter().all(|o| o["name"].as_str().is_some_and(|name| !name.is_empty()));
    when(good, || all, allowed())
}

// === impl Allowed ===

impl Allowed {
    /// The list without spaces; else what is allowed.
    fn check(self, value: &str) -> Result<String, String> {
        let parts: Vec<&str> = value.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
        let all = parts == ["*"] && matches!(self, Self::PortsOrAll | Self::RangesOrAll);
        let good = all || parts.iter().all(|part| self.holds(part));
        when(good, || parts.join(","), self.words())
    }

    fn holds(self, part: &str) -> bool {
        match self {
            Self::Ports | Self::PortsOrAll => part.parse::<u16>().is_ok_and(|port| port > 0),
            Self::Ranges | Self::RangesOrAll => {
                part.parse::<IpNet>().is_ok() || part.parse::<std::net::IpAddr>().is_ok()
            }
            // What the kernel takes as a name.
            Self::Interfaces => part.len() < 16 && is_word(part),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Ports => "use ports from 1 to 65535, separated by commas",
            Self::PortsOrAll => "use ports from 1 to 65535, separated by commas, or *",
            Self::Ranges => "use blocks of addresses such as 10.0.0.0/8, separated by commas",
            Self::RangesOrAll => {
                "use blocks of addresses such as 10.0.0.0/8, separated by commas, or *"
            }
            Self::Interfaces => "use names of network interfaces, separated by commas",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(key: &str, value: &str) -> Vec<String> {
        let pod = serde_json::json!({"metadata": {"annotations": {key: value}}});
        let (mut faults, mut warnings) = (Vec::new(), Vec::new());
        read(Pod(&pod), &ProxyConfig::default(), &mut faults, &mut warnings);
        faults.iter().map(ToString::to_string).chain(warnings).collect()
    }

    #[test]
    fn given_a_malformed_annotation_then_it_its_value_and_what_is_allowed_are_named() {
        for (key, value, allowed) in [
            ("sidecar.istio.io/proxyCPU", "lots", "100m"),
            ("sidecar.istio.io/proxyCPULimit", "-1", "500m"),
            ("sidecar.istio.io/proxyMemory", "1 GB", "64Mi"),
            ("sidecar.istio.io/proxyMemoryLimit", "", "64Mi"),
            ("sidecar.istio.io/proxyImage", "a b", "reference of an image"),
            ("sidecar.istio.io/logLevel", "loud", "trace, debug"),
            ("sidecar.istio.io/componentLogLevel", "upstream", "misc:error"),
            ("sidecar.istio.io/nativeSidecar", "maybe", "\"true\""),
            ("sidecar.istio.io/rewriteAppHTTPProbers", "1", "\"true\""),
            ("sidecar.istio.io/interceptionMode", "TPROXY", "REDIRECT or NONE"),
            ("sidecar.istio.io/userVolume", "{", "JSON"),
            ("sidecar.istio.io/userVolume", "[{\"emptyDir\": {}}]", "with a name"),
            ("sidecar.istio.io/userVolumeMount", "{\"a\": {}}", "mountPath"),
            ("prometheus.istio.io/merge-metrics", "no", "\"true\""),
            ("inject.istio.io/templates", "gateway", "only sidecar"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "http", "ports from 1 to 65535"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "*", "ports from 1 to 65535"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "0", "ports from 1 to 65535"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "65536", "ports from 1 to"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33", "10.0.0.0/8"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*", "10.0.0.0/8"),
            ("traffic.sidecar.istio.io/excludeInterfaces", "a;reboot", "network interfaces"),
            ("proxy.istio.io/config", "a: [", "neither YAML nor JSON"),
        ] {
            let said = faults(key, value);
            assert_eq!(said.len(), 1, "{key} {value}: {said:?}");
            let expected = format!("annotation {key}: {value:?} is not understood: ");
            assert!(said[0].starts_with(&expected), "{}", said[0]);
            assert!(said[0].contains(allowed), "{}", said[0]);
        }
        let said = faults("proxy.istio.io/config", "concurrency: -1");
        assert_eq!(
            said,
            ["annotation proxy.istio.io/config: concurrency must be between 0 and 1024, but is -1"]
        );
    }

    #[test]
    fn given_an_annotation_without_effect_then_that_is_told_and_those_of_others_are_left_alone() {
        let said = faults("sidecar.istio.io/agentLogLevel", "debug");
        assert_eq!(said, ["annotation sidecar.istio.io/agentLogLevel has no effect in Heddle"]);
        assert_eq!(faults("traffic.sidecar.istio.io/kubevirtInterfaces", "a").len(), 1);
        assert_eq!(faults("example.com/anything", "]["), Vec::<String>::new());
        assert_eq!(faults("proxy.istio.io/config", "tracing: {}").len(), 1);
    }

    #[test]
    fn given_amounts_then_they_are_read_as_kubernetes_does() {
        for (text, want) in
            [("100m", 0.1), ("2", 2.0), ("1.5", 1.5), ("1e3", 1000.0), ("1Ki", 1024.0)]
        {
            assert!((amount(text).unwrap() - want).abs() < 1e-9, "{text}");
        }
        for bad in ["", "m", "1x", "1e", "1e99", "--1", ".", "1 "] {
            assert_eq!(amount(bad), None, "{bad}");
        }
    }
}
