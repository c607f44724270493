//! The authority in service: new files are taken up, requests are answered, the server's own
//! certificate is renewed.
//!
//! In: files, from wherever they are kept; checked requests. Out: certificates, TLS settings for
//! new connections.
//!
//! **Invariant:** an authority is in service only after its checks; a bad one leaves the old one
//! in place. One writer, `run`; readers take no lock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};

use crate::authenticate::{Refusal, Verified};
use crate::authority::{Authority, CaError, CaFiles, IssueError};
use crate::csr::{CertifiedRequest, CsrError};
use crate::queue::{Busy, SigningQueue};
use crate::spiffe::TrustDomain;
use crate::stats::Stats;
use crate::tls::{ServerIdentity, ServerTls, TlsError};

/// Time between two looks at the clock.
const LOOK: Duration = Duration::from_secs(2);
/// Days before its end when an authority is warned about.
const WARNINGS: [u64; 4] = [1, 7, 14, 30];

/// What a keeper of files found since it last looked.
pub enum Found {
    /// Files, new or not.
    Files(CaFiles),
    /// Why there are none to be had.
    Unreadable(String),
}

/// What an authority in service is set to.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// Who the server is.
    pub server: ServerIdentity,
    /// Lifetime of certificates whose request names none.
    pub lifetime: Duration,
    /// Longest lifetime; requests for more get this.
    pub longest: Duration,
}

/// The authority in service.
pub struct CertificateAuthority {
    settings: CaSettings,
    current: ArcSwap<Authority>,
    tls: watch::Sender<Arc<ServerConfig>>,
    queue: SigningQueue,
    stats: Arc<Stats>,
    /// Digest of the first files.
    first: [u8; 32],
}

/// Why an authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaStartError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] CaError),
    /// The server's own certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its threads.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

/// Why a caller gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCertificate {
    /// The request.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// The credential was used up meanwhile.
    #[error(transparent)]
    Caller(#[from] Refusal),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] IssueError),
    /// The queue.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// What `run` remembers.
struct Seen {
    /// Digest of the files in service, or of those last refused.
    digest: [u8; 32],
    /// What the last look failed with.
    failure: Option<String>,
    /// Index into `WARNINGS` of the last warning.
    warned: Option<u64>,
    /// When the server's certificate is made anew.
    renew: SystemTime,
}

// === impl CertificateAuthority ===

impl CertificateAuthority {
    /// Check the files and take up service.
    pub fn start(
        settings: CaSettings,
        files: &CaFiles,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>, CaStartError> {
        let now = SystemTime::now();
        let authority = Authority::from_files(files, now)?;
        let tls = ServerTls::new(&authority, &settings.server, now)?;
        log_authority(&authority, "certificate authority in service");
        Ok(Arc::new(Self {
            settings,
            current: ArcSwap::from_pointee(authority),
            tls: watch::Sender::new(tls.config),
            queue: SigningQueue::new().map_err(CaStartError::Threads)?,
            stats,
            first: digest_of(files),
        }))
    }

    /// The authority that signs now.
    pub fn authority(&self) -> Arc<Authority> {
        self.current.load_full()
    }

    /// Counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// TLS settings for new connections.
    pub fn tls(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.tls.subscribe()
    }

    /// Issue to a caller. `lifetime`: none = as set.
    pub async fn issue(
        self: &Arc<Self>,
        caller: Verified,
        csr: String,
        lifetime: Option<Duration>,
    ) -> Result<Vec<String>, NoCertificate> {
        self.stats.requests.add(1);
        let lifetime = lifetime.unwrap_or(self.settings.lifetime).min(self.settings.longest);
        let ca = Arc::clone(self);
        let id = caller.id.clone();
        let job = move || ca.issue_now(&caller, &csr, lifetime);
        self.queue.run(&id, job).await.unwrap_or_else(|busy| {
            self.stats.busy.add(1);
            self.refused(&id, "busy", &busy.into())
        })
    }

    fn issue_now(
        &self,
        caller: &Verified,
        csr: &str,
        lifetime: Duration,
    ) -> Result<Vec<String>, NoCertificate> {
        let id = &caller.id;
        let request = CertifiedRequest::check(csr.as_bytes(), id).or_else(|error| {
            self.stats.bad_requests.add(1);
            self.refused(id, error.reason(), &error.into())
        })?;
        let authority = self.current.load();
        let issued = authority.issue(id, &request, lifetime, SystemTime::now());
        let issued = issued.or_else(|error| {
            self.stats.signing_failures.add(1);
            self.refused(id, "signing", &error.into())
        })?;
        if let Some(once) = &caller.redeem {
            once.redeem().or_else(|error| self.refused(id, error.reason(), &error.into()))?;
        }
        self.stats.issued.add(1);
        tracing::info!(
            %id, by = %caller.method, serial = issued.serial,
            expires = %at(issued.not_after), "certificate issued"
        );
        Ok(authority.answer(&issued))
    }

    /// Count and log a refusal.
    fn refused<T>(
        &self,
        id: &crate::SpiffeId,
        reason: &'static str,
        why: &NoCertificate,
    ) -> Result<T, NoCertificate> {
        self.stats.refused(reason);
        tracing::warn!(%id, reason, "certificate refused: {why}");
        Err(why.clone())
    }

    /// Take up new files and renew the server's certificate, until told to stop.
    pub async fn run(
        self: Arc<Self>,
        mut found: mpsc::Receiver<Found>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut seen = Seen {
            digest: self.first,
            failure: None,
            warned: None,
            renew: SystemTime::now() + self.half_life(),
        };
        let mut clock = tokio::time::interval(LOOK);
        loop {
            let found = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                Some(found) = found.recv() => Some(found),
                _ = clock.tick() => None,
            };
            let ca = Arc::clone(&self);
            // Checks sign.
            let looked = tokio::task::spawn_blocking(move || {
                ca.look(found, &mut seen, SystemTime::now());
                seen
            });
            match looked.await {
                Ok(back) => seen = back,
                Err(error) => {
                    tracing::error!("the authority's files are not looked at any more: {error}");
                    return;
                }
            }
        }
    }

    /// One look at what was found, and at the clock.
    fn look(&self, found: Option<Found>, seen: &mut Seen, now: SystemTime) {
        match found {
            Some(Found::Files(files)) => {
                let digest = digest_of(&files);
                if seen.digest != digest {
                    seen.digest = digest;
                    self.replace(&files, seen, now);
                }
                seen.failure = None;
            }
            Some(Found::Unreadable(why)) if seen.failure.as_ref() != Some(&why) => {
                self.stats.bad_files.add(1);
                tracing::error!(
                    "the authority's files cannot be read; the old ones stay in service: {why}"
                );
                seen.failure = Some(why);
            }
            Some(Found::Unreadable(_)) | None => {}
        }
        if now >= seen.renew {
            self.renew(seen, now);
        }
        self.warn_of_end(seen, now);
    }

    fn replace(&self, files: &CaFiles, seen: &mut Seen, now: SystemTime) {
        match Authority::from_files(files, now) {
            // Other text of the same, as when lost files were made again.
            Ok(authority) if authority.is(&self.current.load()) => {}
            Ok(authority) => {
                log_authority(&authority, "certificate authority replaced");
                self.current.store(Arc::new(authority));
                self.renew(seen, now);
            }
            Err(error) => {
                self.stats.bad_files.add(1);
                tracing::error!(
                    "the authority's new files are refused; the old ones stay in service: {error}"
                );
            }
        }
    }

    /// A new certificate for the server; connections that are open keep theirs.
    fn renew(&self, seen: &mut Seen, now: SystemTime) {
        match ServerTls::new(&self.current.load(), &self.settings.server, now) {
            Ok(tls) => {
                self.tls.send_replace(tls.config);
                let left = tls.not_after.duration_since(now).unwrap_or_default();
                seen.renew = now + left / 2;
                tracing::info!(expires = %at(tls.not_after), "server certificate renewed");
            }
            Err(error) => {
                tracing::error!("the server's certificate cannot be renewed: {error}");
                seen.renew = now + Duration::from_secs(30);
            }
        }
    }

    fn warn_of_end(&self, seen: &mut Seen, now: SystemTime) {
        let end = self.current.load().about().not_after;
        let due = ends_within(end, now);
        if due != seen.warned {
            seen.warned = due;
            if let Some(days) = due {
                tracing::warn!(expires = %at(end), "the certificate authority ends within {days} days; replace it");
            }
        }
    }

    /// Half of what a server certificate made now may live.
    fn half_life(&self) -> Duration {
        let end = self.current.load().about().not_after;
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        left.min(Duration::from_secs(24 * 3600)) / 2
    }
}

/// The fewest days, of those before which people are warned, within which something ends.
pub fn ends_within(end: SystemTime, now: SystemTime) -> Option<u64> {
    let left = end.duration_since(now).unwrap_or_default();
    WARNINGS.into_iter().find(|days| left <= Duration::from_secs(days * 24 * 3600))
}

fn log_authority(authority: &Authority, message: &str) {
    let about = authority.about();
    tracing::info!(
        subject = about.subject,
        key = about.key,
        self_signed = about.self_signed,
        roots = authority.roots().roots().count(),
        expires = %at(about.not_after),
        "{message}"
    );
}

fn digest_of(files: &CaFiles) -> [u8; 32] {
    let CaFiles { certificate, key, roots, chain } = files;
    let mut all = zeroize::Zeroizing::new(Vec::with_capacity(128));
    for part in [certificate, &**key, roots, chain] {
        all.extend_from_slice(digest(&SHA256, part).as_ref());
    }
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &all).as_ref());
    out
}

/// A time as people read it, in UTC.
pub fn at(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}
