//! TLS to the control plane, by certificates in files that may be replaced.
//!
//! In: a folder. Out: the transport socket of the cluster that leads to the control plane, and the
//! two files that it watches: `sds-certificate.json` (certificate and key, so that both are always
//! of one pair) and `sds-roots.json`. Envoy takes up a file that is moved over the old one.
//!
//! **Invariant:** the server must prove the name or address that is dialled: another workload of
//! the mesh, whose certificate comes from the same root, is not taken for the control plane.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::Any;
use crate::envoy::config::core::v3::{
    ApiVersion, ConfigSource, PathConfigSource, TransportSocket, config_source, transport_socket,
};
use crate::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use crate::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use crate::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext, subject_alt_name_matcher::SanType,
};
use crate::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

/// Name of the file with certificate and key.
pub const CERTIFICATE_FILE: &str = "sds-certificate.json";
/// Name of the file with the roots.
pub const ROOTS_FILE: &str = "sds-roots.json";

const CERTIFICATE: &str = "default";
const ROOTS: &str = "ROOTCA";

/// TLS 1.3 to `host`, with the files of `folder`, which must be an absolute path.
pub fn transport_socket(folder: &Path, host: &str) -> TransportSocket {
    let address = host.parse::<IpAddr>().ok();
    let matcher = SubjectAltNameMatcher {
        san_type: match address {
            Some(_) => SanType::IpAddress.into(),
            None => SanType::Dns.into(),
        },
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(host.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![matcher],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret(folder, ROOTS, ROOTS_FILE)),
        ..Default::default()
    };
    let only = TlsProtocol::TlSv13.into();
    let context = UpstreamTlsContext {
        sni: if address.is_none() { host.to_owned() } else { String::new() },
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: only,
                tls_maximum_protocol_version: only,
                ..Default::default()
            }),
            alpn_protocols: vec!["h2".to_owned()],
            tls_certificate_sds_secret_configs: vec![secret(folder, CERTIFICATE, CERTIFICATE_FILE)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                validation,
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(Any::pack(&context))),
    }
}

/// The content of `sds-certificate.json`: a chain and its key, PEM. It is as secret as the key.
pub fn certificate_file(chain: &str, key: &str) -> Value {
    let certificate = json!({
        "certificate_chain": { "inline_string": chain },
        "private_key": { "inline_string": key },
    });
    file(CERTIFICATE, "tls_certificate", certificate)
}

/// The content of `sds-roots.json`: certificates, PEM.
pub fn roots_file(roots: &str) -> Value {
    file(ROOTS, "validation_context", json!({ "trusted_ca": { "inline_string": roots } }))
}

fn file(name: &str, kind: &str, content: Value) -> Value {
    const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    json!({ "resources": [{ "@type": SECRET, "name": name, kind: content }] })
}

fn secret(folder: &Path, name: &str, file: &str) -> SdsSecretConfig {
    let path = PathConfigSource {
        path: folder.join(file).to_string_lossy().into_owned(),
        ..Default::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(
                path,
            )),
            ..Default::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::extensions::transport_sockets::tls::v3::Secret;
    use crate::{check, json as wire};

    #[test]
    fn it_breaks_no_field_rule_and_demands_the_name_that_is_dialled() {
        for (host, kind) in [("heddle.heddle-system.svc", "DNS"), ("127.0.0.1", "IP_ADDRESS")] {
            let socket = transport_socket(Path::new("/certificates"), host);
            assert_eq!(check::violations(&socket), vec![]);
            let shown = wire::message_to_json(&socket).to_string();
            for part in [kind, host, "/certificates/sds-roots.json", "TLSv1_3"] {
                assert!(shown.contains(part), "{part} is not in {shown}");
            }
        }
    }

    #[test]
    fn its_files_are_secrets() {
        for (file, name) in [(certificate_file("c", "k"), CERTIFICATE), (roots_file("r"), ROOTS)] {
            let mut resource = file["resources"][0].clone();
            resource.as_object_mut().expect("an object").remove("@type");
            let secret = wire::from_json::<Secret>(&resource).expect("a secret");
            assert_eq!(secret.name, name);
        }
    }
}
