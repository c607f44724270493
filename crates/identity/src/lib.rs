//! Who is who: the certificate authority, and how callers prove their identity.
//!
//! In: files of an authority, requests, credentials. Out: SPIFFE X.509 certificates, verified
//! identities, a TLS server that serves only to those.
//!
//! ```text
//! credential ──► Authenticator ──► Verified { id, expires } ──► xDS, CA service
//!                                                                    │ CSR (only its key counts)
//! files ──► Authority (checked, swapped) ◄── SigningQueue (own threads) ◄──┘
//! ```
//!
//! **Invariant:** the only crate that holds private keys; an identity comes from a verified
//! credential and from nothing else.

pub mod authenticate;
pub mod authority;
pub mod bundle;
pub mod ca;
pub mod client;
pub mod csr;
pub mod delegate;
pub mod folder;
pub mod join;
pub mod jwt;
pub mod key;
pub mod pem;
pub mod queue;
pub mod renewal;
pub mod serve;
pub mod server;
pub mod source;
pub mod spiffe;
pub mod stats;
pub mod tls;

pub use authenticate::{Authenticator, Method, Peer, Refusal, TokenSource, Verified};
pub use authority::{Authority, CaError, CaFiles, Issued};
pub use bundle::TrustBundle;
pub use ca::{CaSettings, CertificateAuthority, Found};
pub use csr::{CertifiedRequest, CsrError};
pub use delegate::{Delegation, NotDelegated};
pub use folder::{FolderError, IdentityFolder};
pub use join::JoinTokens;
pub use jwt::JwtIssuer;
pub use key::PrivateKey;
pub use serve::{Connections, serve};
pub use server::{Authenticated, ca_server};
pub use source::FolderSource;
pub use spiffe::{SpiffeId, TrustDomain};
pub use stats::Stats;
pub use tls::{ServerIdentity, ServerTls};

/// The certificate service's messages, client and server.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/identity.rs"));
    pub use istio::v1::auth::*;
}
