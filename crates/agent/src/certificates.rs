//! The workload's certificate: got, and got again in good time.
//!
//! In: the roots of the mesh, a token, the service. Out: [`State`], whenever it changes.
//!
//! ```text
//! roots file ──► known ──┐                       ┌──► sds
//! token, or the last     ├──► obtain ──► State ──┤
//! certificate ───────────┘                       └──► readiness, metrics
//! ```
//!
//! A token that lasts is asked with first: whoever checks it knows whether the workload may still
//! have an identity. Where it is not accepted the certificate that is held is tried, so that the
//! workload outlives those who check tokens. A token that is good once is used once.
//!
//! **Invariant:** a key is made here and leaves by the state alone; the last certificate stays in
//! force until the next one is there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use identity::TrustBundle;
use identity::client::{self, Certificate, ClientError, Credential};
use identity::folder::read;
use identity::renewal::{self, Backoff};
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::keep;
use crate::settings::{CertificateSettings, TokenFile};

/// Pauses between attempts: from, and at most. As those of Envoy for its stream.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often the file of the roots is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What there is, and how it went.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// The certificate; none before the first.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// Whom to trust, PEM: the roots of the file, and those that the service said.
    pub(crate) roots: Arc<str>,
    /// Grows when certificate or roots differ from those before.
    pub(crate) version: u64,
    /// Certificates got so far.
    pub(crate) obtained: u64,
    /// Attempts that failed so far.
    pub(crate) failed: u64,
    /// Why the last attempt failed; none if it did not.
    pub(crate) trouble: Option<Arc<str>>,
}

/// Gets certificates for one workload.
pub(crate) struct Certificates {
    settings: CertificateSettings,
    state: watch::Sender<State>,
    /// The roots of the file.
    known: TrustBundle,
    /// Those that came with the certificate.
    told: TrustBundle,
    backoff: Backoff,
}

// === impl State ===

impl State {
    /// What is missing for mutual TLS; nothing if all is there.
    pub(crate) fn missing(&self) -> Option<String> {
        let what = match &self.certificate {
            None => "there is no certificate yet",
            Some(certificate) if certificate.not_after <= SystemTime::now() => {
                "the certificate has expired"
            }
            Some(_) => return None,
        };
        Some(match &self.trouble {
            Some(trouble) => format!("{what}: {trouble}"),
            None => what.to_owned(),
        })
    }
}

// === impl Certificates ===

impl Certificates {
    /// Nothing is asked before [`Self::run`].
    pub(crate) fn new(settings: CertificateSettings) -> (Self, watch::Receiver<State>) {
        let (state, receiver) = watch::channel(State::default());
        let (first, longest) = PAUSE;
        let backoff = Backoff::new(first, longest);
        let (known, told) = (TrustBundle::default(), TrustBundle::default());
        (Self { settings, state, known, told, backoff }, receiver)
    }

    /// Get certificates, for ever.
    pub(crate) async fn run(mut self) {
        let mut due = Instant::now();
        if let TokenFile::Once { keep, .. } = &self.settings.token
            && let Some(kept) = keep::load(keep)
        {
            tracing::info!("goes on with the certificate of the last run");
            due += renewal::due(kept.left());
            self.hold(kept);
        }
        loop {
            // Others than before: the service may have another authority now.
            if self.look() {
                due = Instant::now();
            }
            if due <= Instant::now() {
                due = Instant::now() + self.attempt().await;
            }
            tokio::time::sleep_until(due.min(Instant::now() + LOOK)).await;
        }
    }

    /// Read the roots again. Out: whether there are others.
    fn look(&mut self) -> bool {
        // A file that is gone or broken changes nothing; it is said when it is needed.
        let Ok(bundle) = bundle(&self.settings.roots) else { return false };
        let others = bundle != self.known;
        if others {
            self.known = bundle;
            self.tell_roots();
        }
        others
    }

    fn tell_roots(&self) {
        let all = self.known.clone().union(self.told.clone()).to_pem();
        self.state.send_if_modified(|state| {
            let differs = *state.roots != *all;
            if differs {
                state.roots = all.into();
                state.version += 1;
            }
            differs
        });
    }

    fn hold(&self, certificate: Certificate) {
        self.state.send_modify(|state| {
            state.certificate = Some(Arc::new(certificate));
            state.version += 1;
        });
    }

    /// Ask for a certificate. Out: when to ask again.
    async fn attempt(&mut self) -> Duration {
        match self.obtain().await {
            Ok((certificate, roots)) => {
                let left = certificate.left();
                let next = renewal::due(left);
                tracing::info!(
                    id = %self.settings.id,
                    holds_seconds = left.as_secs(),
                    renewal_in_seconds = next.as_secs(),
                    "got a certificate"
                );
                if let TokenFile::Once { keep, .. } = &self.settings.token {
                    keep::store(keep, &certificate);
                }
                self.backoff.reset();
                self.told = roots;
                self.tell_roots();
                self.state.send_modify(|state| {
                    state.obtained += 1;
                    state.trouble = None;
                });
                self.hold(certificate);
                next
            }
            Err(error) => {
                let pause = self.backoff.pause();
                let trouble: Arc<str> = format!("{error:#}").into();
                let pause_ms = pause.as_millis() as u64;
                tracing::warn!(next_attempt_ms = pause_ms, "no certificate: {trouble}");
                self.state.send_modify(|state| {
                    state.failed += 1;
                    state.trouble = Some(trouble);
                });
                pause
            }
        }
    }

    async fn obtain(&self) -> Result<(Certificate, TrustBundle)> {
        let held = self.state.borrow().certificate.clone();
        let held = held.filter(|certificate| !certificate.left().is_zero());
        let (file, held_first) = match &self.settings.token {
            TokenFile::Lasting(file) => (file, false),
            TokenFile::Once { file, .. } => (file, true),
        };
        let by_token = || async { self.ask(Credential::Token(&token(file)?)).await };
        let by_held =
            |held: Arc<Certificate>| async move { self.ask(Credential::Certificate(&held)).await };
        match held {
            None => by_token().await,
            Some(held) if held_first => by_held(held).await,
            Some(held) => match by_token().await {
                Err(error) if other_may_do(&error) => {
                    tracing::warn!("by token: {error:#}; trying the certificate that is held");
                    by_held(held).await
                }
                other => other,
            },
        }
    }

    async fn ask(&self, credential: Credential<'_>) -> Result<(Certificate, TrustBundle)> {
        let CertificateSettings { address, id, roots, lifetime, .. } = &self.settings;
        // Read again: what is known may be of a file that is gone.
        let bundle = bundle(roots)?;
        let (certificate, told) = client::obtain(address, &bundle, credential, *lifetime).await?;
        let got = certificate.id().context("the certificate")?;
        if got != *id {
            bail!(
                "the credential proves {got}, and this workload is set to be {id}; see \
                 --namespace, --service-account and --trust-domain"
            );
        }
        Ok((certificate, told))
    }
}

/// Whether another credential may be accepted.
fn other_may_do(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(error) => error.is_refusal(),
        // The token is not there, or none.
        None => true,
    }
}

fn bundle(file: &Path) -> Result<TrustBundle> {
    let text = read(file).context("--roots")?;
    TrustBundle::from_pem(&text).map_err(|why| anyhow::anyhow!("--roots {}: {why}", file.display()))
}

fn token(file: &Path) -> Result<Zeroizing<String>> {
    let text = read(file).context("the token")?;
    let text = std::str::from_utf8(&text).unwrap_or_default().trim();
    if text.is_empty() {
        bail!("the token: {} holds none", file.display());
    }
    Ok(Zeroizing::new(text.to_owned()))
}
