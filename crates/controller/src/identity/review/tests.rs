//! Tokens against an API server within the process.
//!
//! **Invariant:** time is virtual, but for the end of tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::fake::Fake;

const WEB: &str = "system:serviceaccount:shop:web";

/// A token that says this of itself; none believes its signature but the fake.
fn token(audience: &Value, lifetime: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let end = i64::try_from(now.as_secs()).expect("a time") + lifetime;
    let claims = json!({"aud": audience, "exp": end, "sub": "system:serviceaccount:x:liar"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(&claims))
}

fn good() -> String {
    token(&json!(["istio-ca"]), 600)
}

/// What the API server says about a token that is good.
fn user(name: &str) -> Value {
    json!({"authenticated": true, "user": {"username": name}, "audiences": ["istio-ca"]})
}

fn reviewer(fake: &Fake) -> Reviewer {
    Reviewer::new(fake.client(), "cluster.local".parse().expect("a domain"))
}

async fn ask(reviewer: &Reviewer, token: &str) -> Result<String, Refusal> {
    let verdict = reviewer.verify(token).expect("a token of this sort").await;
    verdict.map(|verified| verified.id.to_string())
}

const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test(start_paused = true)]
async fn given_a_projected_token_then_the_identity_is_what_the_api_server_says() {
    let fake = Fake::new();
    let token = good();
    fake.state().reviews.insert(token.clone(), user(WEB));
    let reviewer = reviewer(&fake);
    assert_eq!(ask(&reviewer, &token).await.as_deref(), Ok(ID), "not what the token says");
    for _ in 0..100 {
        assert_eq!(ask(&reviewer, &token).await.as_deref(), Ok(ID));
    }
    assert_eq!(fake.state().reviewed, 1, "the answer is kept");
    assert!(reviewer.verify("heddle-join-abc").is_none(), "another sort");
}

#[tokio::test(start_paused = true)]
async fn given_a_token_of_a_pod_then_its_node_is_known_too() {
    let fake = Fake::new();
    let token = good();
    let reviewer = reviewer(&fake);
    for (extra, node) in [
        (json!({NODE: ["node-1"]}), Some("node-1")),
        (json!({NODE: []}), None),
        (json!({"other": ["x"]}), None),
    ] {
        let mut status = user(WEB);
        status["user"]["extra"] = extra;
        fake.state().reviews.insert(token.clone(), status);
        let verified = reviewer.verify(&token).expect("a token").await.expect("good");
        assert_eq!(verified.node.as_deref(), node);
        tokio::time::sleep(FRESH).await;
    }
}

#[tokio::test(start_paused = true)]
async fn given_a_revoked_service_account_then_its_token_is_refused_within_half_a_minute() {
    let fake = Fake::new();
    let token = good();
    fake.state().reviews.insert(token.clone(), user(WEB));
    let reviewer = reviewer(&fake);
    assert!(ask(&reviewer, &token).await.is_ok());
    let gone = "serviceaccounts \"web\" not found";
    let refused = json!({"authenticated": false, "error": gone});
    fake.state().reviews.insert(token.clone(), refused);
    tokio::time::sleep(FRESH).await;
    assert_eq!(ask(&reviewer, &token).await, Err(Refusal::TokenReview(gone.to_owned())));
    // And what was answered before does not come back when the API server is away.
    fake.state().down = true;
    tokio::time::sleep(FRESH).await;
    assert_eq!(ask(&reviewer, &token).await, Err(Refusal::TokenReview(gone.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn given_an_api_server_that_is_away_then_kept_answers_hold_and_nobody_else_is_let_in() {
    let fake = Fake::new();
    let (kept, other) = (token(&json!("istio-ca"), 3), good());
    for token in [&kept, &other] {
        fake.state().reviews.insert(token.clone(), user(WEB));
    }
    let reviewer = reviewer(&fake);
    assert!(ask(&reviewer, &kept).await.is_ok());
    fake.state().down = true;
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(ask(&reviewer, &kept).await.as_deref(), Ok(ID));
    assert!(matches!(ask(&reviewer, &other).await, Err(Refusal::Unavailable(_))));
    // Until the token ends, which is a matter of real time.
    std::thread::sleep(Duration::from_millis(3100));
    assert_eq!(ask(&reviewer, &kept).await, Err(Refusal::Expired("token")));
    fake.state().down = false;
    assert_eq!(ask(&reviewer, &other).await.as_deref(), Ok(ID));
}

#[tokio::test(start_paused = true)]
async fn given_a_token_that_is_not_for_us_by_its_own_words_then_nobody_is_asked() {
    let fake = Fake::new();
    let api = json!(["https://kubernetes.default.svc"]);
    let reviewer = reviewer(&fake);
    for (token, refusal) in [
        (token(&api, 600), Refusal::TokenAudience(AUDIENCE)),
        (token(&Value::Null, 600), Refusal::TokenSignature),
        (token(&json!([]), 600), Refusal::TokenAudience(AUDIENCE)),
        (token(&json!(["istio-ca"]), -1), Refusal::Expired("token")),
        ("a.b.c".to_owned(), Refusal::TokenSignature),
        (format!("a.{}.c", "b".repeat(1 << 20)), Refusal::TokenSignature),
    ] {
        fake.state().reviews.insert(token.clone(), user(WEB));
        assert_eq!(ask(&reviewer, &token).await, Err(refusal));
    }
    assert_eq!(fake.state().reviewed, 0);
}

#[tokio::test(start_paused = true)]
async fn given_an_answer_that_names_no_workload_or_another_audience_then_it_is_refused() {
    let fake = Fake::new();
    let token = good();
    let reviewer = reviewer(&fake);
    let wrong = |status: Value| {
        fake.state().reviews.insert(token.clone(), status);
    };
    for (status, reason) in [
        (user("alice"), "token_subject"),
        (user("system:node:node-1"), "token_subject"),
        (user("system:serviceaccount:shop:../x"), "token_subject"),
        (json!({"authenticated": true, "audiences": ["istio-ca"]}), "token_subject"),
        (json!({"authenticated": true, "user": {"username": WEB}}), "token_audience"),
        (
            json!({"authenticated": true, "user": {"username": WEB}, "audiences": ["other"]}),
            "token_audience",
        ),
        (json!({}), "token_review"),
    ] {
        wrong(status);
        let refused = ask(&reviewer, &token).await.expect_err("refused");
        assert_eq!(refused.reason(), reason, "{refused}");
        tokio::time::sleep(FRESH_REFUSAL).await;
    }
}

#[tokio::test(start_paused = true)]
async fn given_many_calls_with_one_token_at_once_then_the_api_server_is_asked_at_most_a_few_times()
{
    let fake = Fake::new();
    let token = good();
    fake.state().reviews.insert(token.clone(), user(WEB));
    let reviewer = reviewer(&fake);
    let calls = (0..500).map(|_| ask(&reviewer, &token));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok(ID)));
    let reviewed = fake.state().reviewed;
    assert!(reviewed <= AT_ONCE, "{reviewed}");
}

/// A key that nobody signs with: P-256's own generator.
fn jwks() -> Value {
    let (x, y) = (
        "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
        "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
    );
    json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "x": x, "y": y}]})
}

#[tokio::test(start_paused = true)]
async fn given_the_keys_of_the_cluster_then_forged_tokens_keep_nobody_busy() {
    let fake = Fake::new();
    fake.state().keys = Some(jwks());
    let token = good();
    // Whatever it would say.
    fake.state().reviews.insert(token.clone(), user(WEB));
    let reviewer = reviewer(&fake);
    for _ in 0..100 {
        assert_eq!(ask(&reviewer, &token).await, Err(Refusal::TokenSignature));
    }
    // Of a key that is not there either.
    let rest = token.split_once('.').expect("three parts").1;
    let head = URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "kid": "two"}).to_string());
    let other = format!("{head}.{rest}");
    fake.state().reviews.insert(other.clone(), user(WEB));
    for _ in 0..100 {
        assert_eq!(ask(&reviewer, &other).await, Err(Refusal::TokenSignature));
    }
    assert_eq!(fake.state().reviewed, 0);
    assert_eq!(fake.state().keys_read, 1, "strangers cause no more");
    // Where not all keys are known, the API server is asked.
    let mut more = jwks();
    let strange = json!({"kty": "OKP", "crv": "Ed25519", "kid": "three", "x": "AAAA"});
    more["keys"].as_array_mut().expect("keys").push(strange);
    fake.state().keys = Some(more);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(ask(&reviewer, &other).await.as_deref(), Ok(ID));
    assert_eq!(fake.state().keys_read, 2);
}

#[test]
fn what_is_kept_is_bounded_and_refusals_push_out_no_answer() {
    let now = SystemTime::now();
    let review = |answer: Answer, age: u64| Review {
        answer,
        at: Instant::now() + Duration::from_secs(age),
        expires: now + Duration::from_secs(600),
    };
    let hash = |n: usize| jwt::hash(&n.to_string());
    let mut kept = Kept::default();
    let id = Subject { id: ID.parse().expect("an id"), node: None };
    kept.add(hash(0), review(Ok(id.clone()), 0), now);
    for n in 1..3000 {
        kept.add(hash(n), review(Err(Refusal::TokenSignature), n as u64), now);
    }
    assert_eq!((kept.believed.len(), kept.refused.len()), (1, KEPT.1));
    assert!(kept.any(&hash(2999)).is_some() && kept.any(&hash(1)).is_none(), "the oldest went");
    for n in 0..KEPT.0 + 10 {
        kept.add(hash(n), review(Ok(id.clone()), n as u64), now);
    }
    assert_eq!(kept.believed.len(), KEPT.0);
    // Those whose time is over go first.
    let later = now + Duration::from_secs(601);
    kept.add(hash(1 << 40), review(Ok(id), 0), later);
    assert_eq!(kept.believed.len(), 1);
}
