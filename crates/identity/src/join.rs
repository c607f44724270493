//! Join tokens: a secret that a machine is handed once, for its first certificate.
//!
//! In: an identity and a lifetime, from an operator; later the token, from a caller. Out: the
//! identity, once.
//!
//! The folder holds one file per token, named by the token's SHA-256; removing the file uses the
//! token up. Of callers that use it at once, in whatever process, one succeeds.
//!
//! **Invariant:** the token itself is written nowhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authenticate::{Method, Refusal, TokenSource, Verdict, Verified};
use crate::authority::hex;
use crate::folder::{FolderError, IdentityFolder, read, write_new};
use crate::spiffe::{SpiffeId, TrustDomain};

/// What every join token begins with: it is told from a JWT, and found by scanners of secrets.
pub const PREFIX: &str = "heddle-join-";

/// The join tokens of a folder.
#[derive(Clone, Debug)]
pub struct JoinTokens {
    folder: PathBuf,
    trust_domain: TrustDomain,
}

/// The file of one token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    /// Seconds since 1970.
    expires: u64,
}

/// Uses a token up.
#[derive(Clone, Debug)]
pub(crate) struct Redeem(Arc<Path>);

// === impl JoinTokens ===

impl JoinTokens {
    /// Those of a folder.
    pub fn new(folder: &IdentityFolder, trust_domain: TrustDomain) -> Self {
        Self { folder: folder.tokens(), trust_domain }
    }

    /// Make a token for a workload. Tokens whose time is over are removed by the way.
    pub fn create(
        &self,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, FolderError> {
        self.sweep(now);
        let mut secret = Zeroizing::new([0; 32]);
        let failed = |why: &str| FolderError::Io {
            doing: "making a token in",
            path: self.folder.clone(),
            source: io::Error::other(why.to_owned()),
        };
        rand::fill(&mut *secret).map_err(|_| failed("there are no random bytes"))?;
        let mut token = Zeroizing::new(String::with_capacity(64));
        token.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(*secret, &mut token);
        let expires = (now + lifetime).duration_since(SystemTime::UNIX_EPOCH);
        let expires = expires.map_err(|_| failed("the clock is before 1970"))?.as_secs();
        let entry = serde_json::to_vec(&Entry { id: id.to_string(), expires });
        let entry = entry.map_err(|error| failed(&error.to_string()))?;
        write_new(&self.file(&token), &entry, 0o600)?;
        Ok(token)
    }

    fn file(&self, token: &str) -> PathBuf {
        self.folder.join(format!("{}.json", hex(digest(&SHA256, token.as_bytes()).as_ref())))
    }

    fn look_up(&self, token: &str) -> Result<Verified, Refusal> {
        let path = self.file(token);
        // By its hash: how long this takes says nothing about other tokens.
        let entry = match read(&path) {
            Ok(entry) => entry,
            Err(FolderError::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Refusal::Unavailable(source.to_string()));
            }
            Err(_) => return Err(Refusal::JoinToken),
        };
        let entry: Entry = serde_json::from_slice(&entry).map_err(|_| Refusal::JoinToken)?;
        let id: SpiffeId =
            entry.id.parse().map_err(|error| Refusal::TokenSubject(format!("{error}")))?;
        if *id.trust_domain() != self.trust_domain {
            let foreign = format!("it is for the trust domain {}", id.trust_domain());
            return Err(Refusal::TokenSubject(foreign));
        }
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.expires);
        let verified = Verified::new(id, Method::JoinToken, expires, SystemTime::now());
        let verified = verified.map_err(|_| Refusal::JoinToken)?;
        Ok(verified.once(Redeem(path.into())))
    }

    fn sweep(&self, now: SystemTime) {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let Ok(files) = fs::read_dir(&self.folder) else { return };
        for path in files.flatten().map(|file| file.path()) {
            let Ok(text) = read(&path) else { continue };
            if serde_json::from_slice::<Entry>(&text).is_ok_and(|entry| entry.expires < now) {
                // Another process may have been first.
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl TokenSource for JoinTokens {
    fn verify<'a>(&'a self, token: &'a str) -> Option<Verdict<'a>> {
        token.starts_with(PREFIX).then(|| {
            let (tokens, token) = (self.clone(), Zeroizing::new(token.to_owned()));
            let verdict: Verdict<'a> = Box::pin(async move {
                let looked_up = tokio::task::spawn_blocking(move || tokens.look_up(&token)).await;
                looked_up.unwrap_or_else(|error| Err(Refusal::Unavailable(error.to_string())))
            });
            verdict
        })
    }
}

// === impl Redeem ===

impl Redeem {
    /// Use the token up; refused when somebody did already.
    pub(crate) fn redeem(&self) -> Result<(), Refusal> {
        fs::remove_file(&self.0).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::JoinToken,
            _ => Refusal::Unavailable(error.to_string()),
        })
    }
}
