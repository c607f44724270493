//! The certificate of a workload and the roots of its mesh, as Envoy is told of them.
//!
//! In: where they come from, or their text. Out: references for TLS contexts, and the secrets
//! themselves, for whoever serves them.
//!
//! **Invariant:** the names are the same wherever they come from; texts are never logged here.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config_source;
use crate::envoy::config::core::v3::{
    ApiVersion, ConfigSource, DataSource, PathConfigSource, config_source as source, data_source,
};
use crate::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};
use crate::json as wire;

/// Name of the secret with certificate and key.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// Name of the secret with the roots.
pub const ROOTS: &str = "ROOTCA";

/// Name of the file with certificate and key.
pub const CERTIFICATE_FILE: &str = "sds-certificate.json";
/// Name of the file with the roots.
pub const ROOTS_FILE: &str = "sds-roots.json";

/// Where Envoy gets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// Two files of this folder, an absolute path. Envoy takes up a file that is moved over the
    /// old one.
    Files(PathBuf),
    /// The agent beside it, by SDS over the cluster `sds-grpc` of the bootstrap.
    Agent,
}

// === impl Secrets ===

impl Secrets {
    /// Reference to certificate and key.
    pub fn certificate(&self) -> SdsSecretConfig {
        self.config(WORKLOAD_CERTIFICATE, CERTIFICATE_FILE)
    }

    /// Reference to the roots.
    pub fn roots(&self) -> SdsSecretConfig {
        self.config(ROOTS, ROOTS_FILE)
    }

    fn config(&self, name: &str, file: &str) -> SdsSecretConfig {
        let sds_config = match self {
            Self::Files(folder) => watched(folder, file),
            Self::Agent => config_source::agent(),
        };
        SdsSecretConfig { name: name.to_owned(), sds_config: Some(sds_config) }
    }
}

/// The secret with a chain and its key, PEM. It is as secret as the key.
pub fn certificate(chain: &str, key: &str) -> Secret {
    let certificate = TlsCertificate {
        certificate_chain: Some(text(chain)),
        private_key: Some(text(key)),
        ..Default::default()
    };
    Secret {
        name: WORKLOAD_CERTIFICATE.to_owned(),
        r#type: Some(secret::Type::TlsCertificate(certificate)),
    }
}

/// The secret with roots, PEM.
pub fn roots(roots: &str) -> Secret {
    let context =
        CertificateValidationContext { trusted_ca: Some(text(roots)), ..Default::default() };
    Secret { name: ROOTS.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

/// A secret as the content of a file that Envoy reads.
pub fn file(secret: &Secret) -> Value {
    const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let mut resource = wire::message_to_json(secret);
    if let Some(fields) = resource.as_object_mut() {
        fields.insert("@type".to_owned(), json!(SECRET));
    }
    json!({ "resources": [resource] })
}

fn text(text: &str) -> DataSource {
    let specifier = data_source::Specifier::InlineString(text.to_owned());
    DataSource { specifier: Some(specifier), ..Default::default() }
}

fn watched(folder: &Path, file: &str) -> ConfigSource {
    let path = PathConfigSource {
        path: folder.join(file).to_string_lossy().into_owned(),
        ..Default::default()
    };
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(source::ConfigSourceSpecifier::PathConfigSource(path)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_the_secrets_by_their_names() {
        for (secret, name) in [(certificate("c", "k"), WORKLOAD_CERTIFICATE), (roots("r"), ROOTS)] {
            let mut resource = file(&secret)["resources"][0].clone();
            resource.as_object_mut().expect("an object").remove("@type");
            let read = wire::from_json::<Secret>(&resource).expect("a secret");
            assert_eq!((read.name.as_str(), &read), (name, &secret));
        }
    }
}
