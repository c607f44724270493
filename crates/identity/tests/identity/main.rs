//! The identity crate, judged from outside: openssl reads every certificate.
//!
//! **Invariant:** each test has a folder and an authority of its own.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod authority;
mod callers;
mod connections;
mod csr;
mod folder;
mod openssl;
mod service;

use std::path::Path;
use std::time::{Duration, SystemTime};

use identity::{Authority, CaFiles, CertifiedRequest, Issued, SpiffeId, TrustDomain};

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("valid")
}

fn id(namespace: &str, service_account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), namespace, service_account).expect("valid")
}

/// A new self-signed authority.
fn authority() -> Authority {
    let now = SystemTime::now();
    let files = Authority::self_signed(&domain(), now).expect("a root");
    Authority::from_files(&files, now).expect("it can be used")
}

/// The files of an authority from those that a tool wrote to a folder.
fn files(folder: &Path, certificate: &str, key: &str, roots: &str, chain: &str) -> CaFiles {
    let read = |name: &str| match name {
        "" => Vec::new(),
        name => std::fs::read(folder.join(name)).expect("the file is there"),
    };
    CaFiles {
        certificate: read(certificate),
        key: read(key).into(),
        roots: read(roots),
        chain: read(chain),
    }
}

/// Issue for a request, which must be good.
fn issue(authority: &Authority, id: &SpiffeId, request: &[u8], lifetime: Duration) -> Issued {
    let request = CertifiedRequest::check(request, id).expect("a good request");
    authority.issue(id, &request, lifetime, SystemTime::now()).expect("issued")
}
