//! Connections: protocol versions, peers that do not speak, storms, ends.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::client;
use identity::folder::{replace, write_ca};
use identity::{Authority, PrivateKey, TrustBundle};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::Code;

use super::openssl;
use super::service::{Service, refusal};
use super::{HOUR, domain, id};

/// Held by tests that measure time: beside each other they would measure each other.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn given_tls_1_1_or_1_2_then_there_is_no_connection() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let root = service.place.path().join("identity/root-cert.pem");
    let attempt = |version: &str| {
        let args = format!(
            "s_client -connect {} {version} -alpn h2 -CAfile {} -verify_return_error -verify_ip 127.0.0.1 \
             -cipher ALL:@SECLEVEL=0",
            service.address,
            root.display()
        );
        openssl::run(service.place.path(), &args)
    };
    for version in ["-tls1", "-tls1_1", "-tls1_2"] {
        let ran = attempt(version);
        assert!(!ran.ok, "{version}: {}", ran.text);
        // An alert of the server, not a refusal of this openssl to try.
        assert!(ran.text.contains("SSL alert number"), "{version}: {}", ran.text);
    }
    let ran = attempt("-tls1_3");
    assert!(ran.ok && ran.text.contains("Verify return code: 0 (ok)"), "{}", ran.text);
    assert!(ran.text.contains("ALPN protocol: h2"), "{}", ran.text);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_slow_loris_handshakes_then_others_are_served_and_the_slow_are_cut() {
    if !openssl::is_here() {
        return;
    }
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    // More than may shake hands at once; each says nothing.
    let mut silent: Vec<TcpStream> =
        (0..1500).map(|_| TcpStream::connect(service.address).expect("connected")).collect();
    let began = Instant::now();
    for _ in 0..20 {
        service.ask(&service.signer.token(json!({}))).await.expect("served");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    // The oldest gave way, the rest ends by its time.
    let mut first = silent.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
    assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0, "it is cut");
    let mut last = silent.pop().expect("many");
    last.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    assert_eq!(last.read(&mut [0; 1]).unwrap_or(0), 0, "it is cut");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_connection_that_proves_nothing_then_it_is_closed_in_time() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let config = identity::tls::client_config(service.ca.authority().roots(), None);
    let connector = TlsConnector::from(Arc::new(config.expect("set up")));
    let stream = tokio::net::TcpStream::connect(service.address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut silent = connector.connect(name, stream).await.expect("a handshake");
    // One that asks, and is not believed, is no better.
    let asking = service.connect(None).await.expect("connected");
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, None).expect("a request");
    let refused = client::request(&asking, None, csr, None).await;
    assert_eq!(refusal(refused).0, Code::Unauthenticated);
    let mut bytes = Vec::new();
    let end = silent.read_to_end(&mut bytes);
    let end = tokio::time::timeout(Duration::from_secs(28), end).await;
    end.expect("it is closed").ok();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_flood_of_csrs_by_one_then_others_are_served() {
    if !openssl::is_here() {
        return;
    }
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    let greedy = service.holder(&id("greedy", "one"), HOUR);
    let modest = service.holder(&id("modest", "one"), HOUR);
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, None).expect("a request");
    let until = Instant::now() + Duration::from_secs(3);
    let mut flood = JoinSet::new();
    for _ in 0..4 {
        let channel = service.connect(Some(&greedy)).await.expect("connected");
        for _ in 0..250 {
            let (channel, csr) = (channel.clone(), csr.clone());
            flood.spawn(async move {
                let (mut times, mut refused) = (Vec::new(), 0);
                while Instant::now() < until {
                    let began = Instant::now();
                    match client::request(&channel, None, csr.clone(), None).await {
                        Ok(_) => times.push(began.elapsed()),
                        Err(client::ClientError::Refused(status)) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                            refused += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (times, refused)
            });
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let channel = service.connect(Some(&modest)).await.expect("connected");
    let mut times = Vec::new();
    while Instant::now() < until - Duration::from_millis(300) {
        let began = Instant::now();
        client::request(&channel, None, csr.clone(), None).await.expect("served");
        times.push(began.elapsed());
    }
    let flood = flood.join_all().await;
    let refused: u64 = flood.iter().map(|(_, refused)| refused).sum();
    let mut flood: Vec<Duration> = flood.into_iter().flat_map(|(times, _)| times).collect();
    let middle = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (one, all) = (middle(&mut times), middle(&mut flood));
    eprintln!(
        "flood: {} issued, {refused} refused, median {all:?}; beside it {}, median {one:?}",
        flood.len(),
        times.len()
    );
    // Whoever has a thousand requests under way waits for those; another does not.
    assert!(one < all, "{one:?} beside a flood whose median is {all:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_connection_whose_certificate_expires_then_it_ends() {
    if !openssl::is_here() {
        return;
    }
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    let short = service.holder(&id("shop", "web"), Duration::from_secs(3));
    let channel = service.connect(Some(&short)).await.expect("connected");
    let csr = client::csr(&short.key, None).expect("a request");
    client::request(&channel, None, csr.clone(), None).await.expect("still valid");
    // TLS counts whole seconds, and the one that a certificate ends in is still good for a handshake.
    tokio::time::sleep(Duration::from_millis(4100)).await;
    // It ended, and with the same certificate there is no other.
    assert!(client::request(&channel, None, csr.clone(), None).await.is_err());
    if let Ok(late) = service.connect(Some(&short)).await {
        assert!(client::request(&late, None, csr, None).await.is_err());
    }
    assert_eq!(service.ca.stats().issued.get(), 1);
    // GOAWAY comes a little before the end: there may have been time for others.
    let connections = service.ca.stats().connections.get();
    assert!((1..=3).contains(&connections), "{connections}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while service.ca.stats().handshake_failures.get() == 0 {
        assert!(Instant::now() < deadline, "a handshake with it must fail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_plug_in_ca_that_is_replaced_then_it_signs_and_a_bad_one_does_not() {
    if !openssl::is_here() {
        return;
    }
    let _alone = ALONE.lock().await;
    let now = std::time::SystemTime::now();
    let cacerts = tempfile::tempdir().expect("a folder");
    let folder = cacerts.path().join("cacerts");
    let root = super::authority();
    write_ca(&folder, &root.intermediate(&domain(), now).expect("made")).expect("written");
    let service = Service::start_with(Some(folder.clone()), None).await;
    let first = service.ca.authority().about().clone();
    assert!(!first.self_signed);
    let kept = service.holder(&id("shop", "web"), HOUR);
    let channel = service.connect(Some(&kept)).await.expect("connected");

    // A key that does not fit: refused, the old one stays.
    let next = root.intermediate(&domain(), now).expect("made");
    replace(&folder.join("ca-key.pem"), &next.key, 0o600).expect("written");
    let deadline = Instant::now() + Duration::from_secs(10);
    while service.ca.stats().bad_files.get() == 0 {
        assert!(Instant::now() < deadline, "the bad key was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(service.ca.authority().about(), &first);
    service.ask(&service.signer.token(json!({}))).await.expect("the old one signs");

    // A file that is gone: the old one stays.
    std::fs::remove_file(folder.join("ca-cert.pem")).expect("removed");
    while service.ca.stats().bad_files.get() == 1 {
        assert!(Instant::now() < deadline, "the missing file was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(service.ca.authority().about(), &first);

    // All that belongs together, and a second root: in service.
    let second = super::authority();
    let mut both = root.roots().to_pem();
    both.push_str(&second.roots().to_pem());
    replace(&folder.join("root-cert.pem"), both.as_bytes(), 0o644).expect("written");
    replace(&folder.join("cert-chain.pem"), &next.chain, 0o644).expect("written");
    replace(&folder.join("ca-cert.pem"), &next.certificate, 0o644).expect("written");
    while service.ca.authority().about() == &first {
        assert!(Instant::now() < deadline, "the new files were not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(service.ca.authority().roots().roots().count(), 2);
    let file = service.place.path().join("identity/root-cert.pem");
    let published = || TrustBundle::from_pem(&std::fs::read(&file).expect("there")).expect("PEM");
    while &published() != service.ca.authority().roots() {
        assert!(Instant::now() < deadline, "the new roots were not published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Connections that are open go on, and certificates of before are still good.
    let csr = client::csr(&kept.key, None).expect("a request");
    client::request(&channel, None, csr.clone(), None).await.expect("the connection is open");
    let again = service.connect(Some(&kept)).await.expect("connected");
    client::request(&again, None, csr, None).await.expect("the same root");
    assert!(Authority::from_files(&next, now).is_ok());
    let none = refusal(service.ask("x.y.z").await);
    assert_eq!(none.0, Code::Unauthenticated);
    service.stop().await;
}
