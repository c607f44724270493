//! TLS, of both sides.
//!
//! Within the mesh a client says by ALPN that it means mutual TLS of the mesh, and what is spoken
//! within, by the names that other meshes have for it. A server of the mesh answers none of these
//! names: what is then spoken, HTTP/1.1 or HTTP/2, shows in its first bytes.
//!
//! **Invariant:** certificate and roots of the mesh come from the agent beside the proxy, by
//! references whose bytes never change.

use envoy_api::Any;
use envoy_api::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_api::envoy::config::core::v3::{
    DataSource, Metadata, TransportSocket, data_source, transport_socket,
};
use envoy_api::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_api::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use envoy_api::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_api::secrets::Secrets;
use model::ir::{self, HttpVersion, MeshTls, UpstreamTls};
use model::rows::{OriginTls, Protocol, TLS_MODE};
use prost::{Message, Name};
use prost_types::{Struct, Value, value::Kind};

/// What clients of the mesh that speak HTTP ask for.
pub(crate) const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What others ask for, and those after the names above.
pub(crate) const MESH_BYTES: [&str; 2] = ["istio-peer-exchange", "istio"];

/// Where the roots of the system are.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// By what a cluster picks how to speak to an endpoint.
const MATCH: &str = "envoy.transport_socket_match";
const TLS_MODE_KEY: &str = "tlsMode";

/// The side of a workload: who comes in proves an identity of the mesh.
pub(crate) fn downstream(trust_domain: &str, http: bool) -> TransportSocket {
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &[] };
    let names = vec![uri(MatchPattern::Prefix(format!("spiffe://{trust_domain}/")))];
    tls_socket(&DownstreamTlsContext {
        common_tls_context: Some(of_mesh(names, alpn)),
        require_client_certificate: Some(true),
        ..Default::default()
    })
}

/// The side of a client: one for all endpoints, or one by what an endpoint says of itself.
pub(crate) fn upstream(
    cluster: &ir::Cluster,
) -> (Option<TransportSocket>, Vec<TransportSocketMatch>) {
    match &cluster.tls {
        UpstreamTls::Plain => (None, Vec::new()),
        UpstreamTls::Always(tls) => (Some(to_mesh(tls)), Vec::new()),
        UpstreamTls::Origin(tls) => (Some(to_origin(tls, cluster.http_version)), Vec::new()),
        UpstreamTls::WhereTaken(tls) => {
            let taken = TransportSocketMatch {
                name: "tlsMode-istio".to_owned(),
                r#match: Some(mode()),
                transport_socket: Some(to_mesh(tls)),
            };
            let otherwise = TransportSocketMatch {
                name: "tlsMode-disabled".to_owned(),
                r#match: Some(Struct::default()),
                transport_socket: Some(socket("raw_buffer", &RawBuffer::default())),
            };
            (None, vec![taken, otherwise])
        }
    }
}

/// What an endpoint that takes mutual TLS of the mesh says of itself.
pub(crate) fn endpoint_metadata() -> Metadata {
    let filter_metadata = [(MATCH.to_owned(), mode())].into();
    Metadata { filter_metadata, ..Default::default() }
}

fn mode() -> Struct {
    let value = Value { kind: Some(Kind::StringValue(TLS_MODE.to_owned())) };
    Struct { fields: [(TLS_MODE_KEY.to_owned(), value)].into() }
}

fn to_mesh(tls: &MeshTls) -> TransportSocket {
    let MeshTls { sni, names, trust_domain, protocol } = tls;
    let names = match &names[..] {
        [] => vec![uri(MatchPattern::Prefix(format!("spiffe://{trust_domain}/")))],
        some => some.iter().map(|name| uri(MatchPattern::Exact(name.to_string()))).collect(),
    };
    let [.., bytes] = MESH_BYTES;
    let [_, http, http2] = MESH_HTTP;
    let offers: &[&str] = match protocol {
        // Connections that are no HTTP ask for something else, by the listener.
        Protocol::Http | Protocol::Unknown => &[http, bytes],
        Protocol::Http2 => &[http2, bytes],
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => &[bytes],
    };
    tls_socket(&UpstreamTlsContext {
        sni: sni.to_string(),
        common_tls_context: Some(of_mesh(names, offers)),
        ..Default::default()
    })
}

fn of_mesh(names: Vec<SubjectAltNameMatcher>, alpn: &[&str]) -> CommonTlsContext {
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: names,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(Secrets::Agent.roots()),
        ..Default::default()
    };
    CommonTlsContext {
        tls_params: Some(versions()),
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        tls_certificate_sds_secret_configs: vec![Secrets::Agent.certificate()],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..Default::default()
    }
}

fn to_origin(tls: &OriginTls, http_version: HttpVersion) -> TransportSocket {
    let OriginTls { certificate, roots, sni, names, trusts_anybody } = tls;
    let asked = || sni.iter().map(|name| san(SanType::Dns, MatchPattern::Exact(name.to_string())));
    // A name may be one of DNS or an identity.
    let named = |name: &std::sync::Arc<str>| {
        let kind = if name.contains("://") { SanType::Uri } else { SanType::Dns };
        san(kind, MatchPattern::Exact(name.to_string()))
    };
    let validation = CertificateValidationContext {
        trusted_ca: Some(file(roots.as_deref().unwrap_or(SYSTEM_ROOTS))),
        match_typed_subject_alt_names: match &names[..] {
            [] => asked().collect(),
            some => some.iter().map(named).collect(),
        },
        ..Default::default()
    };
    let certificate = certificate.as_ref().map(|(chain, key)| TlsCertificate {
        certificate_chain: Some(file(chain)),
        private_key: Some(file(key)),
        ..Default::default()
    });
    let alpn: &[&str] = if http_version == HttpVersion::Http2 { &["h2"] } else { &[] };
    tls_socket(&UpstreamTlsContext {
        sni: sni.as_deref().unwrap_or_default().to_owned(),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(versions()),
            alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
            tls_certificates: certificate.into_iter().collect(),
            validation_context_type: (!trusts_anybody)
                .then_some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    }
}

fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    san(SanType::Uri, pattern)
}

fn san(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    SubjectAltNameMatcher { san_type: kind.into(), matcher: Some(matcher), ..Default::default() }
}

fn file(path: &str) -> DataSource {
    let specifier = data_source::Specifier::Filename(path.to_owned());
    DataSource { specifier: Some(specifier), ..Default::default() }
}

fn tls_socket<M: Message + Name>(context: &M) -> TransportSocket {
    socket("tls", context)
}

fn socket<M: Message + Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket {
        name: format!("envoy.transport_sockets.{name}"),
        config_type: Some(transport_socket::ConfigType::TypedConfig(Any::pack(config))),
    }
}
