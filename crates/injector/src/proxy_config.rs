//! Settings of a proxy, of the mesh and of one pod.
//!
//! **Invariant:** what they may be is said by `config`, once.

pub use config::ProxyConfig;
use config::{ReadProxyConfig, read_proxy_config};

use crate::refusal::Fault;

/// The annotation with settings of one pod.
pub(crate) const ANNOTATION: &str = "proxy.istio.io/config";

/// Read the annotation; what cannot be used are faults, what has no effect is told.
pub(crate) fn of_pod(
    text: &str,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<String>,
) -> ProxyConfig {
    match read_proxy_config(text) {
        Ok(ReadProxyConfig { config, errors, warnings: without_effect }) => {
            let place = format!("annotation {ANNOTATION}");
            faults.extend(errors.into_iter().map(|error| Fault::field(place.clone(), error)));
            let told = without_effect.into_iter().map(|text| format!("{place}: {text}"));
            warnings.extend(told);
            config
        }
        Err(error) => {
            let why = format!("it is neither YAML nor JSON: {}", error.message);
            faults.push(Fault::annotation(ANNOTATION, text, why));
            ProxyConfig::default()
        }
    }
}
