//! Files of an authority.
//!
//! In: a folder. Out: the authority's files, made by exactly one process when there are none; the
//! trust bundle as a file for others.
//!
//! ```text
//! <folder>/ca/{ca-cert,ca-key,root-cert,cert-chain}.pem   the self-signed authority
//! <folder>/root-cert.pem                                  the roots, published
//! <folder>/tokens/                                        join tokens, see `join`
//! ```
//!
//! **Invariant:** keys are in files that only their owner reads; what is there is whole, however a
//! writer ended.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::authority::{Authority, CaError, CaFiles, hex};
use crate::bundle::TrustBundle;
use crate::spiffe::TrustDomain;

/// Name of the certificate in a folder.
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Name of the key.
pub const KEY: &str = "ca-key.pem";
/// Name of the roots.
pub const ROOTS: &str = "root-cert.pem";
/// Name of the chain.
pub const CHAIN: &str = "cert-chain.pem";

/// Longest file that is read: a bundle of a thousand roots is shorter.
const LONGEST: u64 = 1 << 20;

/// A folder of the built-in authority.
#[derive(Clone, Debug)]
pub struct IdentityFolder(PathBuf);

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// `reading`, `writing` and so on.
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The files are no authority.
    #[error("{}: {source}", folder.display())]
    Ca {
        /// Where they are.
        folder: PathBuf,
        /// What is wrong.
        source: CaError,
    },
}

// === impl IdentityFolder ===

impl IdentityFolder {
    /// Open a folder, or make it.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        make_folder(path)?;
        make_folder(&path.join("tokens"))?;
        Ok(Self(path.to_owned()))
    }

    /// Where the self-signed authority is.
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// Where join tokens are.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// The self-signed authority, made now unless it is there. Of processes that do so at once
    /// one makes it, and all get that one.
    pub fn self_signed(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CaFiles, FolderError> {
        let folder = self.ca();
        if !folder.exists() {
            let files = Authority::self_signed(trust_domain, now)
                .map_err(|source| FolderError::Ca { folder: folder.clone(), source })?;
            let made = self.0.join(format!(".ca-{}", random_name()));
            let result = write_ca(&made, &files).and_then(|()| {
                // Fails when another process was first: a folder that is not empty stays.
                match fs::rename(&made, &folder) {
                    Err(_) if folder.exists() => Ok(()),
                    result => result.map_err(io_error("renaming to", &folder)),
                }
            });
            // Gone when it was renamed.
            let _ = fs::remove_dir_all(&made);
            result?;
            sync_folder(&self.0)?;
        }
        read_ca(&folder)
    }

    /// Publish the roots for others; true = the file differs now.
    pub fn publish(&self, roots: &TrustBundle) -> Result<bool, FolderError> {
        let (path, text) = (self.0.join(ROOTS), roots.to_pem());
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(false);
        }
        replace(&path, text.as_bytes(), 0o644)?;
        Ok(true)
    }
}

/// Read the files of an authority. `cert-chain.pem` may be missing.
pub fn read_ca(folder: &Path) -> Result<CaFiles, FolderError> {
    let chain = match read(&folder.join(CHAIN)) {
        Err(FolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Zeroizing::default()
        }
        result => result?,
    };
    Ok(CaFiles {
        certificate: read(&folder.join(CERTIFICATE))?.to_vec(),
        key: read(&folder.join(KEY))?,
        roots: read(&folder.join(ROOTS))?.to_vec(),
        chain: chain.to_vec(),
    })
}

/// Write the files of an authority; those that are there are an error.
pub fn write_ca(folder: &Path, files: &CaFiles) -> Result<(), FolderError> {
    make_folder(folder)?;
    write_new(&folder.join(KEY), &files.key, 0o600)?;
    write_new(&folder.join(CERTIFICATE), &files.certificate, 0o644)?;
    write_new(&folder.join(ROOTS), &files.roots, 0o644)?;
    write_new(&folder.join(CHAIN), &files.chain, 0o644)?;
    sync_folder(folder)
}

/// Whether others than its owner may read the key of a folder.
pub(crate) fn key_is_open(folder: &Path) -> bool {
    let mode = fs::metadata(folder.join(KEY)).map(|m| m.permissions().mode());
    mode.is_ok_and(|mode| mode & 0o077 != 0)
}

/// Write a file that must not be there yet.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), FolderError> {
    let failed = io_error("writing", path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io_error("writing", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)
}

/// Replace a file in one step.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FolderError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}-{}", random_name()));
    let renamed = write_new(&beside, content, mode)
        .and_then(|()| fs::rename(&beside, path).map_err(io_error("replacing", path)));
    if renamed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    renamed
}

/// The content of a file, wiped when it is dropped.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FolderError> {
    let failed = |source| io_error("reading", path)(source);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // Room for all of it: a vector that grows would leave copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(length.min(LONGEST) as usize + 1));
    file.take(LONGEST + 1).read_to_end(&mut out).map_err(failed)?;
    if out.len() as u64 > LONGEST {
        return Err(failed(io::Error::other("it is longer than 1 MiB")));
    }
    Ok(out)
}

/// Make a folder that only its owner enters; one that is there stays as it is.
fn make_folder(path: &Path) -> Result<(), FolderError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(source) => Err(io_error("creating", path)(source)),
    }
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("writing", path))
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> FolderError {
    move |source| FolderError::Io { doing, path: path.to_owned(), source }
}

/// A name that nobody else takes.
fn random_name() -> String {
    let mut bytes = [0; 12];
    // Without chance the name is taken at most once: creation then fails, and says so.
    let _ = rand::fill(&mut bytes);
    hex(&bytes)
}
