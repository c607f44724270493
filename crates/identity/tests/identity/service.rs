//! A certificate service on a port, for the tests of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use identity::ca::CaSettings;
use identity::client::{self, Certified, ClientError};
use identity::{
    Authenticator, CertificateAuthority, Connections, Delegation, FolderSource, IdentityFolder,
    JoinTokens, JwtIssuer, PrivateKey, ServerIdentity, SpiffeId, Stats, ca_server, serve, tls,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{domain, id};

pub(crate) const ISSUER: &str = "https://issuer.example.com";

/// A running service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Arc<CertificateAuthority>,
    pub(crate) folder: IdentityFolder,
    pub(crate) place: tempfile::TempDir,
    pub(crate) signer: Signer,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Signs JWTs.
pub(crate) struct Signer(pub(crate) EncodingKey, pub(crate) String);

/// A certificate and its key.
pub(crate) struct Holder {
    pub(crate) key: PrivateKey,
    pub(crate) certified: Certified,
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_with(None, None).await
    }

    /// With a plug-in CA from a folder, and with somebody who says who may ask for whom.
    pub(crate) async fn start_with(
        plug_in: Option<PathBuf>,
        delegation: Option<Arc<dyn Delegation>>,
    ) -> Self {
        let place = tempfile::tempdir().expect("a folder");
        let folder = IdentityFolder::open(&place.path().join("identity")).expect("opened");
        let settings = CaSettings {
            trust_domain: domain(),
            server: ServerIdentity {
                id: id("heddle-system", "heddle"),
                names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            },
            lifetime: Duration::from_secs(24 * 3600),
            longest: Duration::from_secs(30 * 24 * 3600),
        };
        let stats: Arc<Stats> = Arc::default();
        let source = FolderSource::new(folder.clone(), plug_in);
        let files = source.files(&domain()).expect("there");
        let ca = CertificateAuthority::start(settings, &files, Arc::clone(&stats));
        let ca = ca.expect("it starts");
        source.publish(&ca).expect("written");
        let (found, finds) = mpsc::channel(1);
        let signer = Signer::new();
        let issuer = JwtIssuer::new(ISSUER, signer.1.as_bytes(), domain()).expect("good keys");
        let join = JoinTokens::new(&folder, domain());
        let authenticator =
            Authenticator::new(vec![Arc::new(issuer), Arc::new(join)], Arc::clone(&stats));
        let (stop, stopped) = watch::channel(false);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let routes = tonic::service::Routes::new(ca_server(
            Arc::clone(&ca),
            authenticator.into(),
            delegation,
        ));
        let connections = Connections {
            tls: ca.tls(),
            trust_domain: domain(),
            stats,
            stopped: stopped.clone(),
            grace: Duration::from_secs(5),
            max_age: None,
        };
        let tasks = vec![
            tokio::spawn(serve(listener, routes, connections)),
            tokio::spawn(source.run(Arc::clone(&ca), found, stopped.clone())),
            tokio::spawn(Arc::clone(&ca).run(finds, stopped)),
        ];
        Self { address, ca, folder, place, signer, stop, tasks }
    }

    /// Connect, with a certificate if there is one.
    pub(crate) async fn connect(&self, holder: Option<&Holder>) -> Result<Channel, ClientError> {
        let config = tls::client_config(self.ca.authority().roots(), holder.map(Holder::identity));
        client::connect(&self.address.to_string(), config.expect("a configuration")).await
    }

    /// Ask for a certificate with a token.
    pub(crate) async fn ask(&self, token: &str) -> Result<Holder, ClientError> {
        let channel = self.connect(None).await?;
        let key = PrivateKey::generate().expect("a key");
        let csr = client::csr(&key, None).expect("a request");
        let certified = client::request(&channel, Some(token), csr, None).await?;
        Ok(Holder { key, certified })
    }

    /// A workload with a certificate for so long.
    pub(crate) fn holder(&self, id: &SpiffeId, lifetime: Duration) -> Holder {
        let key = PrivateKey::generate().expect("a key");
        let csr = client::csr(&key, None).expect("a request");
        let authority = self.ca.authority();
        let issued = super::issue(&authority, id, csr.as_bytes(), lifetime);
        let mut answer = authority.answer(&issued);
        let roots = answer.pop().expect("roots");
        Holder { key, certified: Certified { chain: answer.concat(), roots } }
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.expect("no panic");
        }
    }
}

impl Holder {
    pub(crate) fn identity(
        &self,
    ) -> (Vec<rustls::pki_types::CertificateDer<'static>>, &PrivateKey) {
        let chain = identity::pem::certificates(self.certified.chain.as_bytes());
        (chain.expect("certificates"), &self.key)
    }
}

impl Signer {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = PrivateKey::generate().expect("a key");
        let pem = key.to_pem().expect("PEM");
        std::fs::write(folder.path().join("key.pem"), pem.as_bytes()).expect("written");
        let public = super::openssl::good(folder.path(), "pkey -in key.pem -pubout");
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).expect("PKCS#8");
        Self(EncodingKey::from_ec_der(der.secret_pkcs8_der()), public)
    }

    /// A good token for `shop/web`, with these claims changed.
    pub(crate) fn token(&self, changes: Value) -> String {
        let mut claims = json!({
            "iss": ISSUER,
            "aud": ["istio-ca"],
            "sub": "system:serviceaccount:shop:web",
            "exp": jsonwebtoken::get_current_timestamp() + 600,
        });
        let claims_map = claims.as_object_mut().expect("an object");
        for (key, value) in changes.as_object().expect("an object") {
            match value {
                Value::Null => claims_map.remove(key),
                value => claims_map.insert(key.clone(), value.clone()),
            };
        }
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.0).expect("signed")
    }
}

/// The gRPC code of a refusal, and its text.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T, ClientError>) -> (tonic::Code, String) {
    match result.err().expect("refused") {
        ClientError::Refused(status) => (status.code(), status.message().to_owned()),
        other => panic!("not refused by the service: {other}"),
    }
}
