//! The Secrets of the authority, by an API server within the process.
//!
//! **Invariant:** time is virtual: pauses take none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::ServerIdentity;
use serde_json::{Value, json};

use super::*;
use crate::fake::{Fake, Key};

const BUNDLE: &str = "istio-ca-root-cert";
const YEARS_10: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A replica of the controller, as far as its authority goes.
struct Replica {
    shared: Arc<Shared>,
    ca: Arc<CertificateAuthority>,
    _stop: watch::Sender<bool>,
}

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("a domain")
}

fn settings() -> CaSettings {
    CaSettings {
        trust_domain: domain(),
        server: ServerIdentity {
            id: "spiffe://cluster.local/ns/heddle-system/sa/heddle".parse().expect("an id"),
            names: vec!["heddle.heddle-system.svc".to_owned()],
        },
        lifetime: Duration::from_secs(3600),
        longest: Duration::from_secs(3600),
    }
}

fn secrets(fake: &Fake, shared: &Arc<Shared>) -> Secrets {
    Secrets::new(fake.client(), domain(), BUNDLE.to_owned(), Arc::clone(shared))
}

impl Replica {
    async fn start(fake: &Fake) -> Self {
        let shared = Arc::new(Shared::default());
        let mut secrets = secrets(fake, &shared);
        let ca = secrets.start(&settings(), &Arc::default()).await;
        let (stop, stopped) = watch::channel(false);
        let (found, finds) = mpsc::channel(1);
        tokio::spawn(secrets.run(Arc::clone(&ca), found, stopped.clone()));
        tokio::spawn(Arc::clone(&ca).run(finds, stopped));
        Self { shared, ca, _stop: stop }
    }

    fn serial(&self) -> String {
        self.ca.authority().about().serial.clone()
    }
}

/// Let some virtual time pass.
async fn pass(seconds: u64) {
    // In steps: work on other threads takes real time, which only passes between them.
    for _ in 0..seconds * 2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn key(name: &str) -> Key {
    ("heddle-system".to_owned(), name.to_owned())
}

fn object(name: &str, files: &CaFiles) -> Value {
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    json!({
        "metadata": {"name": name, "namespace": "heddle-system"},
        "data": {
            CERTIFICATE: encode(&files.certificate),
            KEY: encode(&files.key),
            ROOTS: encode(&files.roots),
            CHAIN: encode(&files.chain),
        },
    })
}

fn made(now: SystemTime) -> CaFiles {
    Authority::self_signed(&domain(), now).expect("made")
}

fn serial_of(files: &CaFiles) -> String {
    let authority = Authority::from_files(files, SystemTime::now()).expect("usable");
    authority.about().serial.clone()
}

fn secrets_written(fake: &Fake) -> usize {
    fake.state().written.iter().filter(|(plural, _)| plural == "secrets").count()
}

#[tokio::test(start_paused = true)]
async fn given_two_replicas_that_start_at_once_on_an_empty_cluster_then_they_make_one_root() {
    let fake = Fake::new();
    let (one, two) = tokio::join!(Replica::start(&fake), Replica::start(&fake));
    assert_eq!(one.serial(), two.serial());
    assert_eq!((secrets_written(&fake), fake.state().conflicts), (1, 1), "both tried");
    let secret = fake.state().objects["secrets"][&key(OWN)].clone();
    assert_eq!(secret["type"], TYPE);
    assert_eq!(secret["metadata"]["labels"]["heddle.io/control-plane"], "heddle-system");
    // And a restart keeps it.
    drop((one, two));
    let again = Replica::start(&fake).await;
    let files = files_of(serde_json::from_value(secret).expect("a Secret")).expect("files");
    assert_eq!(again.serial(), serial_of(&files));
    assert_eq!(secrets_written(&fake), 1);
}

#[tokio::test(start_paused = true)]
async fn given_a_secret_that_is_deleted_while_running_then_the_leader_puts_the_same_root_back() {
    let fake = Fake::new();
    let (leader, other) = tokio::join!(Replica::start(&fake), Replica::start(&fake));
    let serial = leader.serial();
    fake.state().delete("secrets", &key(OWN));
    pass(20).await;
    assert_eq!(secrets_written(&fake), 1, "nobody leads");
    assert_eq!(other.serial(), serial, "it is still in memory");
    leader.shared.leading.send_replace(true);
    pass(5).await;
    let secret = fake.state().objects["secrets"][&key(OWN)].clone();
    let files = files_of(serde_json::from_value(secret).expect("a Secret")).expect("files");
    assert_eq!(serial_of(&files), serial);
    assert_eq!((leader.serial(), other.serial()), (serial.clone(), serial.clone()));
    assert_eq!(Replica::start(&fake).await.serial(), serial);
}

#[tokio::test(start_paused = true)]
async fn given_a_published_root_and_no_secret_then_who_starts_waits_for_who_has_it_in_memory() {
    let fake = Fake::new();
    let leader = Replica::start(&fake).await;
    let labels = labels("heddle-system");
    let bundle = json!({"metadata": {"name": BUNDLE, "labels": labels}, "data": {}});
    fake.state().put("configmaps", key(BUNDLE), bundle);
    fake.state().delete("secrets", &key(OWN));
    let starting = Replica::start(&fake);
    let later = async {
        pass(20).await;
        leader.shared.leading.send_replace(true);
    };
    let (second, ()) = tokio::join!(starting, later);
    assert_eq!(second.serial(), leader.serial());
    // If nobody has it, a new one is made in the end.
    let serial = leader.serial();
    drop((leader, second));
    fake.state().delete("secrets", &key(OWN));
    let began = Instant::now();
    let third = Replica::start(&fake).await;
    assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
    assert_ne!(third.serial(), serial);
}

#[tokio::test(start_paused = true)]
async fn given_a_plug_in_ca_then_it_is_used_and_a_bad_one_leaves_the_old_in_place() {
    let fake = Fake::new();
    let root = made(SystemTime::now());
    let root = Authority::from_files(&root, SystemTime::now()).expect("usable");
    let below = || root.intermediate(&domain(), SystemTime::now()).expect("made");
    let first = below();
    fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &first));
    let replica = Replica::start(&fake).await;
    replica.shared.leading.send_replace(true);
    assert_eq!(replica.serial(), serial_of(&first));
    assert_eq!(secrets_written(&fake), 0, "no root is made beside it");
    for spoil in [
        |files: &mut CaFiles| files.key = made(SystemTime::now()).key,
        |files: &mut CaFiles| files.key.truncate(20),
        |files: &mut CaFiles| files.certificate.clear(),
        |files: &mut CaFiles| files.roots = made(SystemTime::now()).roots,
        |files: &mut CaFiles| *files = made(SystemTime::now() - YEARS_10),
    ] {
        let refused = replica.ca.stats().bad_files.get();
        let mut bad = below();
        spoil(&mut bad);
        fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &bad));
        pass(2).await;
        assert_eq!(replica.ca.stats().bad_files.get(), refused + 1);
        assert_eq!(replica.serial(), serial_of(&first));
    }
    let event = fake.state().objects["events"].values().next().cloned().expect("an event");
    assert_eq!(event["reason"], "BadCertificateAuthority", "{event}");
    assert_eq!(event["regarding"]["name"], PLUG_IN);
    assert!(event["note"].as_str().is_some_and(|n| n.contains("ca-key.pem")), "{event}");
    assert!(!event.to_string().contains("PRIVATE"), "{event}");
    let next = below();
    fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &next));
    pass(2).await;
    assert_eq!(replica.serial(), serial_of(&next));
}

#[tokio::test(start_paused = true)]
async fn given_a_plug_in_ca_that_is_deleted_then_it_stays_in_service_beside_a_root_of_ours() {
    let fake = Fake::new();
    let (own, plugged) = (made(SystemTime::now()), made(SystemTime::now()));
    fake.state().put("secrets", key(OWN), object(OWN, &own));
    let replica = Replica::start(&fake).await;
    replica.shared.leading.send_replace(true);
    assert_eq!(replica.serial(), serial_of(&own));
    fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &plugged));
    pass(2).await;
    assert_eq!(replica.serial(), serial_of(&plugged), "a CA of the user's has precedence");
    fake.state().delete("secrets", &key(PLUG_IN));
    fake.state().delete("secrets", &key(OWN));
    pass(20).await;
    assert_eq!(replica.serial(), serial_of(&plugged));
    assert_eq!(secrets_written(&fake), 0, "a user's key is copied nowhere");
}

#[tokio::test(start_paused = true)]
async fn given_a_bad_plug_in_ca_at_the_start_then_nothing_is_served_until_it_is_mended() {
    let fake = Fake::new();
    let good = made(SystemTime::now());
    let mut bad = made(SystemTime::now());
    bad.key = made(SystemTime::now()).key;
    fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &bad));
    let mut starting = Box::pin(Replica::start(&fake));
    let early = tokio::time::timeout(Duration::from_secs(60), &mut starting).await;
    assert!(early.is_err(), "no root is made in its place");
    assert_eq!(secrets_written(&fake), 0);
    fake.state().put("secrets", key(PLUG_IN), object(PLUG_IN, &good));
    assert_eq!(starting.await.serial(), serial_of(&good));
}

#[tokio::test(start_paused = true)]
async fn given_an_api_server_that_is_away_then_nothing_is_made_and_nothing_changes() {
    let fake = Fake::new();
    let files = made(SystemTime::now());
    fake.state().put("secrets", key(OWN), object(OWN, &files));
    fake.state().down = true;
    let mut starting = Box::pin(Replica::start(&fake));
    let early = tokio::time::timeout(Duration::from_secs(600), &mut starting).await;
    assert!(early.is_err(), "not knowing is not absence");
    fake.state().down = false;
    let replica = starting.await;
    replica.shared.leading.send_replace(true);
    assert_eq!(replica.serial(), serial_of(&files));
    fake.state().down = true;
    fake.state().cut();
    pass(120).await;
    assert_eq!(replica.serial(), serial_of(&files));
    assert_eq!(secrets_written(&fake), 0);
}

#[tokio::test(start_paused = true)]
async fn given_an_authority_that_ends_soon_then_the_leader_says_so_once() {
    let fake = Fake::new();
    let files = made(SystemTime::now() - YEARS_10 + Duration::from_secs(5 * 24 * 3600));
    fake.state().put("secrets", key(OWN), object(OWN, &files));
    let replica = Replica::start(&fake).await;
    pass(130).await;
    assert!(!fake.state().objects.contains_key("events"), "nobody leads");
    replica.shared.leading.send_replace(true);
    pass(300).await;
    let events: Vec<Value> = fake.state().objects["events"].values().cloned().collect();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "CertificateAuthorityEnds");
    assert_eq!(events[0]["regarding"]["name"], OWN);
    assert!(events[0]["note"].as_str().is_some_and(|n| n.ends_with("within 7 days")));
    let written = fake.state().written.iter().filter(|(plural, _)| plural == "events").count();
    assert_eq!(written, 1);
}

#[test]
fn what_to_do_follows_from_what_is_there_and_what_is_in_service() {
    use Presence::{Absent, There, Unknown};
    for (plug_in, own, serving, step) in [
        (Unknown, There, None, Step::Wait),
        (Unknown, There, Some(OWN), Step::Wait),
        (There, Unknown, None, Step::Take(PLUG_IN)),
        (There, There, Some(OWN), Step::Take(PLUG_IN)),
        (Absent, Unknown, None, Step::Wait),
        (Absent, There, None, Step::Take(OWN)),
        (Absent, Absent, None, Step::Create),
        (Absent, Absent, Some(OWN), Step::Restore),
        (Absent, There, Some(PLUG_IN), Step::Keep),
        (Absent, Absent, Some(PLUG_IN), Step::Keep),
    ] {
        assert_eq!(decide(plug_in, own, serving), step, "{plug_in:?} {own:?} {serving:?}");
    }
}

#[test]
fn given_a_secret_of_another_make_then_it_is_read_or_the_missing_key_is_named() {
    let files = made(SystemTime::now());
    let read = |drop: &[&str]| {
        let mut secret = object(PLUG_IN, &files);
        for name in drop {
            secret["data"][*name] = json!("");
        }
        files_of(serde_json::from_value(secret).expect("a Secret"))
    };
    // As istiod writes its own.
    assert_eq!(serial_of(&read(&[ROOTS, CHAIN]).expect("read")), serial_of(&files));
    for name in [CERTIFICATE, KEY] {
        let error = read(&[name]).err().expect("refused").to_string();
        assert!(error.contains(name), "{error}");
    }
}
