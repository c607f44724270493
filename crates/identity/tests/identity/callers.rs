//! Who is believed, and who is not: the certificate service from outside.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::api::IstioCertificateRequest;
use identity::api::istio_certificate_service_client::IstioCertificateServiceClient;
use identity::client::{self, ClientError};
use identity::jwt::{Signature, Signatures};
use identity::{Delegation, JoinTokens, JwtIssuer, NotDelegated, PrivateKey, SpiffeId, Verified};
use jsonwebtoken::Algorithm;
use serde_json::json;
use tonic::Code;

use super::openssl;
use super::service::{ISSUER, Service, Signer, refusal};
use super::{HOUR, domain, id};

/// The identity in an answer, as openssl reads it.
fn identity_in(chain: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("chain.pem"), chain).expect("written");
    let text = openssl::good(folder.path(), "x509 -in chain.pem -noout -ext subjectAltName");
    text.lines().nth(1).expect("a name").trim().to_owned()
}

#[tokio::test]
async fn given_a_good_jwt_then_the_certificate_names_its_subject() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let by_account = service.ask(&service.signer.token(json!({}))).await.expect("issued");
    assert_eq!(
        identity_in(&by_account.certified.chain),
        "URI:spiffe://cluster.local/ns/shop/sa/web"
    );
    let sub = json!({"sub": "spiffe://cluster.local/ns/a/sa/b", "aud": "istio-ca"});
    let by_id = service.ask(&service.signer.token(sub)).await.expect("issued");
    assert_eq!(identity_in(&by_id.certified.chain), "URI:spiffe://cluster.local/ns/a/sa/b");
    assert_eq!(by_id.certified.roots, service.ca.authority().roots().to_pem());
    assert_eq!(service.ca.stats().issued.get(), 2);
    service.stop().await;
}

#[tokio::test]
async fn given_a_jwt_that_proves_nothing_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let signer = &service.signer;
    let past = jsonwebtoken::get_current_timestamp() - 60;
    let good = signer.token(json!({}));
    let (head, rest) = good.split_once('.').expect("three parts");
    let (claims, signature) = rest.split_once('.').expect("three parts");
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let admin = encode(
        &String::from_utf8(URL_SAFE_NO_PAD.decode(claims).expect("base64"))
            .expect("text")
            .replace("shop:web", "shop:adm"),
    );
    let none = encode(r#"{"alg":"none","typ":"JWT"}"#);
    let hmac = {
        // The public key, which everybody has, as a shared secret.
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let key = jsonwebtoken::EncodingKey::from_secret(signer.1.as_bytes());
        let claims = json!({"iss": ISSUER, "aud": "istio-ca", "exp": past + 600, "sub": "system:serviceaccount:shop:web"});
        jsonwebtoken::encode(&header, &claims, &key).expect("signed")
    };
    let not_yet = jsonwebtoken::get_current_timestamp() + 300;
    for (what, token, says) in [
        (
            "wrong audience",
            signer.token(json!({"aud": "https://kubernetes.default.svc"})),
            "audience",
        ),
        ("no audience", signer.token(json!({"aud": null})), "audience"),
        ("expired", signer.token(json!({"exp": past})), "expired"),
        ("no end", signer.token(json!({"exp": null})), "exp"),
        ("not valid yet", signer.token(json!({"nbf": not_yet})), "expired"),
        ("foreign issuer", signer.token(json!({"iss": "https://evil.example.com"})), "issuer"),
        ("no issuer", signer.token(json!({"iss": null})), "issuer"),
        ("foreign key", Signer::new().token(json!({})), "not signed by a configured key"),
        ("tampered", format!("{head}.{admin}.{signature}"), "not signed"),
        ("alg none", format!("{none}.{claims}."), "not signed"),
        ("alg none, with a signature", format!("{none}.{claims}.{signature}"), "not signed"),
        ("public key as a secret", hmac, "not signed"),
        ("no subject", signer.token(json!({"sub": null})), "sub"),
        ("a person", signer.token(json!({"sub": "alice"})), "names no workload"),
        (
            "half an account",
            signer.token(json!({"sub": "system:serviceaccount:shop"})),
            "service account",
        ),
        (
            "a path",
            signer.token(json!({"sub": "system:serviceaccount:shop:../x"})),
            "names no workload",
        ),
        (
            "foreign domain",
            signer.token(json!({"sub": "spiffe://other/ns/a/sa/b"})),
            "trust domain",
        ),
        ("no token", "x.y.z".to_owned(), "not signed"),
        ("nothing like a token", "abc".to_owned(), "sort of token"),
    ] {
        let (code, text) = refusal(service.ask(&token).await);
        assert_eq!(code, Code::Unauthenticated, "{what}");
        assert!(text.contains(says), "{what}: {text}");
        assert!(!text.contains(signature), "{what}: {text}");
    }
    assert_eq!(service.ca.stats().issued.get(), 0);
    assert_eq!(service.ca.stats().authentication_failures.get(), 19);
    service.stop().await;
}

#[test]
fn given_keys_that_are_no_public_keys_then_the_message_says_so() {
    let symmetric = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;
    for (keys, says) in [
        ("", "there is none"),
        ("{\"keys\":[]}", "there is none"),
        (symmetric, "no public key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "damaged"),
        (&**PrivateKey::generate().expect("a key").to_pem().expect("PEM"), "PrivateKey"),
    ] {
        let error = JwtIssuer::new(ISSUER, keys.as_bytes(), domain()).err().expect("refused");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn given_the_keys_of_a_cluster_then_signatures_are_told_apart() {
    use jsonwebtoken::jwk::{Jwk, JwkSet};
    if !openssl::is_here() {
        return;
    }
    let (own, other) = (Signer::new(), Signer::new());
    let jwk = |signer: &Signer, id: Option<&str>| {
        let mut jwk = Jwk::from_encoding_key(&signer.0, Algorithm::ES256).expect("a public key");
        jwk.common.key_id = id.map(str::to_owned);
        jwk
    };
    let keys = |all: Vec<Jwk>| {
        let set = serde_json::to_vec(&JwkSet { keys: all }).expect("JSON");
        Signatures::new(&set).expect("good keys")
    };
    // Whoever it is for, and when: that is for others to judge.
    let token = |signer: &Signer| signer.token(json!({"exp": 1, "aud": "x", "iss": null}));
    let known = keys(vec![jwk(&own, None)]);
    assert_eq!(known.check(&token(&own)), Signature::Good);
    assert_eq!(known.check(&token(&other)), Signature::Bad);
    assert_eq!(keys(vec![jwk(&other, None), jwk(&own, None)]).check(&token(&own)), Signature::Good);
    for bad in ["", "a.b.c", "e30.e30.", &token(&own).replace('.', "x")] {
        assert_eq!(known.check(bad), Signature::Bad, "{bad}");
    }
    let named = |id: &str| {
        let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
        header.kid = Some(id.to_owned());
        jsonwebtoken::encode(&header, &json!({"sub": "x"}), &own.0).expect("signed")
    };
    let known = keys(vec![jwk(&own, Some("one")), jwk(&other, Some("two"))]);
    assert_eq!(known.check(&named("one")), Signature::Good);
    assert_eq!(known.check(&named("two")), Signature::Bad);
    assert_eq!(known.check(&named("three")), Signature::UnknownKey);
    assert!(Signatures::new(b"{\"keys\": []}").is_err() && Signatures::new(b"x").is_err());
}

#[tokio::test]
async fn given_a_join_token_then_it_gives_one_certificate() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let tokens = JoinTokens::new(&service.folder, domain());
    let now = SystemTime::now();
    let token = tokens.create(&id("vm", "db"), HOUR, now).expect("made");
    let files = || std::fs::read_dir(service.place.path().join("identity/tokens")).expect("there");
    for file in files() {
        let text = std::fs::read_to_string(file.expect("there").path()).expect("read");
        assert!(!text.contains(&token[12..]), "the token is written nowhere");
    }
    // A bad request does not use it up.
    let channel = service.connect(None).await.expect("connected");
    let bad = client::request(&channel, Some(&token), "nonsense".to_owned(), None).await;
    assert_eq!(refusal(bad).0, Code::InvalidArgument);
    // Of many who use it at once one succeeds.
    let attempts = (0..8).map(|_| service.ask(&token));
    let results = futures_of(attempts).await;
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 7));
    for result in bad {
        let (code, text) = refusal(result);
        assert!(code == Code::Unauthenticated && text.contains("join token"), "{text}");
    }
    let chain = &good.into_iter().flatten().next().expect("one").certified.chain;
    assert_eq!(identity_in(chain), "URI:spiffe://cluster.local/ns/vm/sa/db");
    // Expired, unknown.
    let old = tokens.create(&id("vm", "db"), HOUR, now - 2 * HOUR).expect("made");
    for token in [&*old, "heddle-join-AAAA", "heddle-join-../../ca/ca-key.pem"] {
        assert_eq!(refusal(service.ask(token).await).0, Code::Unauthenticated);
    }
    // Those whose time is over go when the next is made.
    tokens.create(&id("vm", "db"), HOUR, now).expect("made");
    assert_eq!(files().count(), 1);
    service.stop().await;
}

async fn futures_of<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut all {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    all.into_iter().map(|(_, output)| output.expect("ready")).collect()
}

#[tokio::test]
async fn given_a_valid_certificate_then_it_is_renewed_for_the_same_identity() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let first = service.holder(&id("shop", "web"), HOUR);
    let channel = service.connect(Some(&first)).await.expect("connected");
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, Some(&id("shop", "web"))).expect("a request");
    let next = client::request(&channel, None, csr, None).await.expect("issued");
    assert_eq!(identity_in(&next.chain), "URI:spiffe://cluster.local/ns/shop/sa/web");
    // A token decides alone: a bad one is not made good by the certificate.
    let csr = client::csr(&key, None).expect("a request");
    let bad = client::request(&channel, Some("x.y.z"), csr.clone(), None).await;
    assert_eq!(refusal(bad).0, Code::Unauthenticated);
    let other = service.signer.token(json!({"sub": "system:serviceaccount:other:one"}));
    let by_token = client::request(&channel, Some(&other), csr, None).await.expect("issued");
    assert_eq!(identity_in(&by_token.chain), "URI:spiffe://cluster.local/ns/other/sa/one");
    service.stop().await;
}

/// The metadata by which a node agent asks for another identity.
fn for_another(text: String) -> prost_types::Struct {
    let kind = Some(prost_types::value::Kind::StringValue(text));
    let field = ("ImpersonatedIdentity".to_owned(), prost_types::Value { kind });
    prost_types::Struct { fields: [field].into() }
}

/// Lets `shop/web` ask for the namespace `b`, and does not know about `c`.
struct Friend;

impl Delegation for Friend {
    fn check<'a>(
        &'a self,
        caller: &'a Verified,
        asked: &'a SpiffeId,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotDelegated>> + Send + 'a>> {
        let answer = match asked.namespace() {
            "b" if caller.id == id("shop", "web") => Ok(()),
            "c" => Err(NotDelegated::Unavailable("away".to_owned())),
            _ => Err(NotDelegated::Denied("no".to_owned())),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test]
async fn given_a_caller_that_may_ask_for_another_then_the_certificate_is_of_that_one() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start_with(None, Some(Arc::new(Friend))).await;
    let ask = async |metadata: prost_types::Struct, csr_for: Option<SpiffeId>| {
        let channel = service.connect(None).await.expect("connected");
        let key = PrivateKey::generate().expect("a key");
        let csr = client::csr(&key, csr_for.as_ref()).expect("a request");
        let metadata = Some(metadata);
        let ask = IstioCertificateRequest { csr, validity_duration: 0, metadata };
        let mut request = tonic::Request::new(ask);
        let token = format!("Bearer {}", service.signer.token(json!({})));
        request.metadata_mut().insert("authorization", token.parse().expect("text"));
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
        answer.map(|answer| answer.into_inner().cert_chain.remove(0))
    };
    let other = id("b", "db");
    let issued = ask(for_another(other.to_string()), Some(other.clone())).await.expect("issued");
    assert_eq!(identity_in(&issued), "URI:spiffe://cluster.local/ns/b/sa/db");
    // The request may name nobody else than the one that is asked for.
    let own = ask(for_another(other.to_string()), Some(id("shop", "web"))).await;
    assert_eq!(own.expect_err("refused").code(), Code::InvalidArgument);
    let number = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
    let number =
        prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), number)].into() };
    for (metadata, code) in [
        (for_another(id("d", "db").to_string()), Code::PermissionDenied),
        (for_another(id("c", "db").to_string()), Code::Unavailable),
        (for_another("spiffe://elsewhere/ns/b/sa/db".to_owned()), Code::InvalidArgument),
        (for_another("b/db".to_owned()), Code::InvalidArgument),
        (for_another(String::new()), Code::InvalidArgument),
        (number, Code::InvalidArgument),
    ] {
        assert_eq!(ask(metadata, None).await.expect_err("refused").code(), code);
    }
    assert_eq!(service.ca.stats().issued.get(), 1);
    assert_eq!(service.ca.stats().refusals()["impersonation"], 6);
    service.stop().await;
}

#[tokio::test]
async fn given_a_certificate_of_namespace_a_that_asks_for_b_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let holder = service.holder(&id("a", "web"), HOUR);
    let channel = service.connect(Some(&holder)).await.expect("connected");
    let csr = client::csr(&holder.key, Some(&id("b", "web"))).expect("a request");
    let (code, text) = refusal(client::request(&channel, None, csr.clone(), None).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.contains("ns/b/sa/web") && text.contains("another identity"), "{text}");
    // By metadata neither.
    let metadata = for_another(id("b", "web").to_string());
    let own = client::csr(&holder.key, None).expect("a request");
    let request = IstioCertificateRequest {
        csr: own.clone(),
        validity_duration: 0,
        metadata: Some(metadata),
    };
    let mut plain = IstioCertificateServiceClient::new(channel.clone());
    let refused = plain.create_certificate(request).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A negative lifetime, and one beyond all bounds.
    let request = |validity_duration| IstioCertificateRequest {
        csr: own.clone(),
        validity_duration,
        metadata: None,
    };
    let refused = plain.create_certificate(request(-1)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    plain.create_certificate(request(i64::MAX)).await.expect("cut to the longest");
    service.stop().await;
}

#[tokio::test]
async fn given_no_credential_or_a_large_request_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let channel = service.connect(None).await.expect("connected");
    let key = PrivateKey::generate().expect("a key");
    let csr = client::csr(&key, None).expect("a request");
    let (code, text) = refusal(client::request(&channel, None, csr, None).await);
    assert_eq!(code, Code::Unauthenticated);
    assert!(text.contains("no credential"), "{text}");
    let token = service.signer.token(json!({}));
    let large = client::request(&channel, Some(&token), "x".repeat(1 << 20), None).await;
    assert_eq!(refusal(large).0, Code::OutOfRange);
    let long = client::request(&channel, Some(&token), "x".repeat(20 << 10), None).await;
    assert_eq!(refusal(long).0, Code::InvalidArgument);
    service.stop().await;
}

#[tokio::test]
async fn given_a_certificate_from_another_root_then_there_is_no_connection() {
    if !openssl::is_here() {
        return;
    }
    let service = Service::start().await;
    let other = Service::start().await;
    let foreign = other.holder(&id("shop", "web"), HOUR);
    // TLS 1.3 tells the client with the first answer.
    let attempt = match service.connect(Some(&foreign)).await {
        Err(error) => Err(error),
        Ok(channel) => {
            let csr = client::csr(&foreign.key, None).expect("a request");
            client::request(&channel, None, csr, None).await
        }
    };
    match attempt.expect_err("refused") {
        ClientError::Connect { .. } => {}
        ClientError::Refused(status) => {
            assert_ne!(status.code(), Code::Unauthenticated, "{status}")
        }
        error => panic!("{error}"),
    }
    assert_eq!(service.ca.stats().connections.get(), 0);
    assert_eq!(service.ca.stats().handshake_failures.get(), 1);
    // Nor does a client believe a server of another root.
    let strange = identity::tls::client_config(other.ca.authority().roots(), None).expect("set up");
    let error = client::connect(&service.address.to_string(), strange).await.expect_err("refused");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    // One of this root, but of no workload of this mesh.
    let elsewhere = "spiffe://elsewhere/ns/a/sa/b".parse().expect("valid");
    let holder = service.holder(&elsewhere, HOUR);
    let channel = service.connect(Some(&holder)).await.expect("connected");
    let csr = client::csr(&holder.key, None).expect("a request");
    let (code, text) = refusal(client::request(&channel, None, csr, None).await);
    assert!(code == Code::Unauthenticated && text.contains("trust domain elsewhere"), "{text}");
    service.stop().await;
    other.stop().await;
}
