//! TLS to the control plane.
//!
//! In: where certificate and roots come from, and the name that is dialled. Out: the transport
//! socket of the cluster that leads to the control plane.
//!
//! **Invariant:** the server must prove the name or address that is dialled: another workload of
//! the mesh, whose certificate comes from the same root, is not taken for the control plane.

use std::net::IpAddr;

use crate::Any;
use crate::envoy::config::core::v3::{TransportSocket, transport_socket};
use crate::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use crate::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use crate::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext, subject_alt_name_matcher::SanType,
};
use crate::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use crate::secrets::Secrets;

/// TLS 1.3 to `host`.
pub fn transport_socket(secrets: &Secrets, host: &str) -> TransportSocket {
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
        validation_context_sds_secret_config: Some(secrets.roots()),
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
            tls_certificate_sds_secret_configs: vec![secrets.certificate()],
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, json as wire};

    #[test]
    fn it_breaks_no_field_rule_and_demands_the_name_that_is_dialled() {
        for (host, kind) in [("heddle.heddle-system.svc", "DNS"), ("127.0.0.1", "IP_ADDRESS")] {
            let socket = transport_socket(&Secrets::Files("/certificates".into()), host);
            assert_eq!(check::violations(&socket), vec![]);
            let shown = wire::message_to_json(&socket).to_string();
            for part in [kind, host, "/certificates/sds-roots.json", "TLSv1_3"] {
                assert!(shown.contains(part), "{part} is not in {shown}");
            }
        }
    }
}
