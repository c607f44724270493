//! The authority and the callers that the controller believes.
//!
//! In: settings. Out: an authority in service, and who may ask it and xDS.
//!
//! **Invariant:** xDS takes no join token: what is used up by one call proves nothing about a
//! stream.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use identity::ca::CaSettings;
use identity::{
    Authenticator, CertificateAuthority, IdentityFolder, JoinTokens, JwtIssuer, ServerIdentity,
    Source, SpiffeId, Stats, TokenSource,
};

use crate::settings::IdentitySettings;

/// The identity side of the controller.
pub(crate) struct Identity {
    /// The authority.
    pub(crate) ca: Arc<CertificateAuthority>,
    /// Who may ask for certificates.
    pub(crate) for_certificates: Arc<Authenticator>,
    /// Who may open xDS streams.
    pub(crate) for_streams: Arc<Authenticator>,
    /// Who may be a gateway.
    pub(crate) gateways: Arc<BTreeSet<SpiffeId>>,
}

// === impl Identity ===

impl Identity {
    /// Read or make the authority.
    pub(crate) fn start(settings: IdentitySettings) -> Result<Self> {
        let IdentitySettings {
            folder, plug_in, own, names, lifetime, longest, jwt, gateways, ..
        } = settings;
        let trust_domain = own.trust_domain().clone();
        let folder = IdentityFolder::open(&folder).context("--identity-directory")?;
        let tokens = Arc::new(JoinTokens::new(&folder, trust_domain.clone()));
        let mut sources: Vec<Arc<dyn TokenSource>> = Vec::new();
        if let Some((issuer, keys)) = jwt {
            let keys = read(&keys)?;
            let issuer = JwtIssuer::new(&issuer, &keys, trust_domain.clone());
            sources.push(Arc::new(issuer.context("--jwt-keys")?));
        }
        let stats: Arc<Stats> = Arc::default();
        let for_streams = Authenticator::new(sources.clone(), Arc::clone(&stats));
        sources.push(tokens);
        let for_certificates = Authenticator::new(sources, Arc::clone(&stats));
        let settings = CaSettings {
            trust_domain,
            folder,
            source: plug_in.map_or(Source::SelfSigned, Source::PlugIn),
            server: ServerIdentity { id: own, names },
            lifetime,
            longest,
        };
        let ca = CertificateAuthority::start(settings, stats);
        Ok(Self {
            ca: ca.context("starting the certificate authority")?,
            for_certificates: Arc::new(for_certificates),
            for_streams: Arc::new(for_streams),
            gateways: Arc::new(gateways),
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("reading {} (--jwt-keys)", file.display()))
}
