//! An authority whose files are in a folder.
//!
//! In: the folder. Out: its files whenever they are read, for the authority in service; the
//! authority's roots as a file.
//!
//! Files are read again every few seconds rather than on a notice of the system: notices get lost
//! on mounted volumes, and a certificate that was missed is an outage when the old one ends.
//!
//! **Invariant:** the files of a plug-in CA are never written.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use crate::authority::CaFiles;
use crate::ca::{CertificateAuthority, Found};
use crate::folder::{FolderError, IdentityFolder, key_is_open, read_ca};
use crate::spiffe::TrustDomain;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// Where an authority's files are.
#[derive(Clone, Debug)]
pub struct FolderSource {
    folder: IdentityFolder,
    plug_in: Option<PathBuf>,
}

// === impl FolderSource ===

impl FolderSource {
    /// A self-signed authority in `folder`; or the CA in the folder `plug_in`, which has
    /// `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`.
    pub fn new(folder: IdentityFolder, plug_in: Option<PathBuf>) -> Self {
        Self { folder, plug_in }
    }

    /// The folder with the files.
    pub fn folder(&self) -> PathBuf {
        self.plug_in.clone().unwrap_or_else(|| self.folder.ca())
    }

    /// The files; those of a self-signed authority are made now unless they are there.
    pub fn files(&self, trust_domain: &TrustDomain) -> Result<CaFiles, FolderError> {
        let files = match &self.plug_in {
            None => self.folder.self_signed(trust_domain, SystemTime::now())?,
            Some(folder) => read_ca(folder)?,
        };
        let folder = self.folder();
        if key_is_open(&folder) {
            tracing::warn!(
                folder = %folder.display(),
                "ca-key.pem can be read by others than its owner; run chmod 600 on it"
            );
        }
        Ok(files)
    }

    /// Publish the roots of an authority in service.
    pub fn publish(&self, ca: &CertificateAuthority) -> Result<(), FolderError> {
        self.folder.publish(ca.authority().roots()).map(drop)
    }

    /// Read the files again and again, and keep the roots published, until told to stop.
    pub async fn run(
        self,
        ca: Arc<CertificateAuthority>,
        found: mpsc::Sender<Found>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let (source, served) = (self.clone(), Arc::clone(&ca));
            let looked = tokio::task::spawn_blocking(move || {
                if let Err(error) = source.publish(&served) {
                    tracing::error!("the trust bundle cannot be published: {error}");
                }
                match read_ca(&source.folder()) {
                    Ok(files) => Found::Files(files),
                    Err(error) => Found::Unreadable(error.to_string()),
                }
            });
            match looked.await {
                // Nobody takes files any more when this fails.
                Ok(looked) => drop(found.send(looked).await),
                Err(error) => {
                    tracing::error!("the authority's files are not read any more: {error}");
                    return;
                }
            }
        }
    }
}
