//! What outlives the process where a token is good once: key and certificate, in memory.
//!
//! In: a folder. Out: the certificate of the last run, if it holds still.
//!
//! **Invariant:** a key is written only to a file system in memory (tmpfs), to a file that its
//! owner alone reads.

use std::path::Path;

use identity::PrivateKey;
use identity::client::Certificate;
use identity::folder::{read, replace};
use rustix::fs::statfs;

/// Key and chain in one file, so that both are always of one pair.
const FILE: &str = "certificate.pem";
/// Where a chain begins.
const CHAIN: &str = "-----BEGIN CERTIFICATE-----";
/// File systems that live in memory, by the number that Linux has for them: tmpfs, ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The certificate of the last run.
pub(crate) fn load(folder: &Path) -> Option<Certificate> {
    let file = folder.join(FILE);
    if !file.exists() {
        return None;
    }
    let text = read(&file).ok()?;
    let text = std::str::from_utf8(&text).ok()?;
    let (key, chain) = text.split_at(text.find(CHAIN)?);
    let key = PrivateKey::from_pem(key.as_bytes()).ok()?;
    Certificate::new(key, chain.to_owned()).filter(|kept| kept.check().is_ok())
}

/// Keep a certificate for the next run.
pub(crate) fn store(folder: &Path, certificate: &Certificate) {
    // No number of file systems is negative; its type differs between machines.
    let kind = statfs(folder).map(|system| system.f_type as u64);
    if !kind.is_ok_and(|kind| IN_MEMORY.contains(&kind)) {
        tracing::warn!(
            "{} is not in memory (tmpfs), so the key is not kept there: after a restart another \
             join token is needed",
            folder.display()
        );
        return;
    }
    let stored = certificate.key.to_pem().map_err(anyhow::Error::from).and_then(|mut text| {
        text.push_str(&certificate.chain);
        Ok(replace(&folder.join(FILE), text.as_bytes(), 0o600)?)
    });
    if let Err(error) = stored {
        tracing::warn!("the certificate is not kept for the next run: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_certificate_gives_none() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(load(folder.path()).is_none());
        for text in ["", "nothing", CHAIN] {
            std::fs::write(folder.path().join(FILE), text).expect("written");
            assert!(load(folder.path()).is_none(), "{text}");
        }
    }
}
