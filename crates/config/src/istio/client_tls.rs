//! TLS to a destination: `tls` of a DestinationRule.
//!
//! **Invariant:** what cannot be read comes to no connections, never to plain text.

use std::sync::Arc;

use model::rows::{ClientTls, OriginTls};
use serde::Deserialize;

use crate::schema::{OnBad, Rule, Type, field, not_yet};
use crate::text;

/// The schema.
pub(super) const CLIENT_TLS: Type = Type::Ruled(
    &Type::Strict(&[
        field("mode", Type::Enum(&["DISABLE", "MUTUAL", "ISTIO_MUTUAL", "SIMPLE"])).or_parent(),
        field("clientCertificate", Type::Checked(path)).or_parent(),
        field("privateKey", Type::Checked(path)).or_parent(),
        field("caCertificates", Type::Checked(path)).or_parent(),
        not_yet("credentialName").of(Type::Text).or_parent(),
        field("subjectAltNames", Type::List(&Type::Checked(text::not_empty), OnBad::Parent))
            .or_parent(),
        field("sni", Type::Checked(text::dns_name)).or_parent(),
        field("insecureSkipVerify", Type::Bool).or_parent(),
        not_yet("caCrl").or_parent(),
    ]),
    &[Rule {
        holds: "!has(self.mode) || self.mode != 'MUTUAL' || has(self.credentialName) \
                || (has(self.clientCertificate) && has(self.privateKey))",
        else_says: "mode MUTUAL needs a credentialName, or a clientCertificate and its privateKey",
    }],
);

/// The decoded form of `CLIENT_TLS`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Tls {
    mode: Option<String>,
    client_certificate: Option<Arc<str>>,
    private_key: Option<Arc<str>>,
    ca_certificates: Option<Arc<str>>,
    subject_alt_names: Vec<Arc<str>>,
    sni: Option<Arc<str>>,
    insecure_skip_verify: bool,
}

/// A file of the proxy's own file system.
fn path(text: &str) -> Result<(), String> {
    match text.starts_with('/') && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(format!("must be the absolute path of a file of the proxy, but is {text:?}")),
    }
}

// === impl Tls ===

impl Tls {
    /// A field that says nothing beside this mode.
    pub(super) fn idle(&self) -> Option<&'static str> {
        let certificate = self.client_certificate.as_ref().map(|_| "clientCertificate");
        let certificate = certificate.or(self.private_key.as_ref().map(|_| "privateKey"));
        let roots = self.ca_certificates.as_ref().map(|_| "caCertificates");
        match self.mode.as_deref() {
            Some("MUTUAL") => None,
            Some("SIMPLE") => certificate,
            _ => certificate.or(roots),
        }
    }

    /// What it means; else what is missing: field and reason.
    pub(super) fn lower(self) -> Result<ClientTls, (&'static str, &'static str)> {
        let Self {
            mode,
            client_certificate,
            private_key,
            ca_certificates: roots,
            subject_alt_names: names,
            sni,
            insecure_skip_verify: trusts_anybody,
        } = self;
        let certificate = match mode.as_deref() {
            None | Some("DISABLE") => return Ok(ClientTls::Disable),
            Some("ISTIO_MUTUAL") => return Ok(ClientTls::Mesh { sni, names }),
            Some("MUTUAL") => match (client_certificate, private_key) {
                (Some(chain), Some(key)) => Some((chain, key)),
                (None, _) => return Err(("clientCertificate", "is required by mode MUTUAL")),
                (_, None) => return Err(("privateKey", "is required by mode MUTUAL")),
            },
            Some(_) => None,
        };
        let origin = OriginTls { certificate, roots, sni, names, trusts_anybody };
        Ok(ClientTls::Origin(origin.into()))
    }
}
