//! Authorities: self-signed and plug-in; what they issue.

use std::path::Path;
use std::time::{Duration, SystemTime};

use identity::{Authority, CaError};

use super::openssl::{self, P256, P384, RSA_2048, good};
use super::{HOUR, authority, domain, files, id, issue};

/// Write an answer as clients get it: `leaf.pem`, `above.pem` (intermediates), `roots.pem`.
fn write(folder: &Path, answer: &[String]) {
    let (leaf, rest) = answer.split_first().expect("a certificate");
    let (roots, above) = rest.split_last().expect("roots");
    std::fs::write(folder.join("leaf.pem"), leaf).expect("written");
    std::fs::write(folder.join("above.pem"), above.concat()).expect("written");
    std::fs::write(folder.join("roots.pem"), roots).expect("written");
}

/// openssl's verdict on a written answer, as a server's and as a client's.
#[track_caller]
fn verify(folder: &Path, chain: bool) {
    let above = if chain { "-untrusted above.pem" } else { "" };
    for purpose in ["sslserver", "sslclient"] {
        let args =
            format!("verify -x509_strict -purpose {purpose} -CAfile roots.pem {above} leaf.pem");
        assert!(good(folder, &args).contains("OK"));
    }
}

#[test]
fn given_each_kind_of_key_then_the_certificate_is_what_openssl_expects() {
    if !openssl::is_here() {
        return;
    }
    let authority = authority();
    let shop = id("shop", "web");
    for (key, has, usage) in [
        (P256, "NIST CURVE: P-256", "Digital Signature\n"),
        (P384, "NIST CURVE: P-384", "Digital Signature\n"),
        (RSA_2048, "Public-Key: (2048 bit)", "Digital Signature, Key Encipherment\n"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let request = openssl::request(folder, key, "");
        let issued = issue(&authority, &shop, &request, HOUR);
        write(folder, &authority.answer(&issued));
        verify(folder, false);
        let text = good(folder, "x509 -in leaf.pem -noout -text");
        let compact: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(has), "{text}");
        assert!(text.contains(usage), "{text}");
        for part in [
            "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/shop/sa/web X509v3",
            "X509v3 Basic Constraints: critical CA:FALSE",
            "X509v3 Key Usage: critical",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "Issuer: O = cluster.local, CN = Root CA",
            "Subject: Subject Public Key Info",
        ] {
            assert!(compact.contains(part), "{part:?} is not in {text}");
        }
        let serial = good(folder, "x509 -in leaf.pem -noout -serial");
        let serial = serial.trim().trim_start_matches("serial=").to_lowercase();
        assert!(issued.serial.trim_start_matches('0').ends_with(serial.trim_start_matches('0')));
        assert_eq!(issued.serial.len(), 32, "128 bits");
        // It belongs to the requester's key.
        let public = |args: &str| good(folder, args);
        assert_eq!(public("x509 -in leaf.pem -noout -pubkey"), public("pkey -in key.pem -pubout"));
    }
}

#[test]
fn given_two_certificates_then_their_serial_numbers_differ() {
    if !openssl::is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let authority = authority();
    let request = openssl::request(folder.path(), P256, "");
    let mut serials: Vec<String> =
        (0..200).map(|_| issue(&authority, &id("a", "b"), &request, HOUR).serial).collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 200);
}

#[test]
fn given_a_lifetime_beyond_the_authoritys_then_it_is_cut() {
    if !openssl::is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let authority = authority();
    let request = openssl::request(folder.path(), P256, "");
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    let issued = issue(&authority, &id("a", "b"), &request, century);
    assert_eq!(issued.not_after, authority.about().not_after);
    // Clocks that are two minutes behind accept it.
    write(folder.path(), &authority.answer(&issued));
    let before = SystemTime::now() - Duration::from_secs(100);
    let before = before.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    good(folder.path(), &format!("verify -attime {before} -CAfile roots.pem leaf.pem"));
}

#[test]
fn given_an_authority_about_to_end_then_nothing_is_issued() {
    let now = SystemTime::now();
    let files = Authority::self_signed(&domain(), now).expect("a root");
    let authority = Authority::from_files(&files, now).expect("usable");
    let key = identity::PrivateKey::generate().expect("a key");
    let late = authority.about().not_after - Duration::from_secs(30);
    let error = authority.issue_server(&id("a", "b"), &[], &key, HOUR, late);
    assert_eq!(
        error.expect_err("too late").to_string(),
        "the CA certificate has expired or is about to"
    );
    let after = authority.about().not_after + HOUR;
    assert!(matches!(Authority::from_files(&files, after), Err(CaError::Time { .. })));
}

/// Make `root.pem`, `root.key`, and below it `ca.pem`, `ca.key` with openssl.
fn plug_in(folder: &Path, root: &str, ca: &str, extensions: &str, days: i32) {
    std::fs::write(
        folder.join("ext"),
        format!("{extensions}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"),
    )
    .expect("written");
    good(folder, &format!("genpkey {root} -out root.key"));
    good(
        folder,
        "req -x509 -new -key root.key -subj /O=Org/CN=Root -days 3650 -out root.pem \
         -addext keyUsage=critical,keyCertSign,cRLSign",
    );
    good(folder, &format!("genpkey {ca} -out ca.key"));
    good(folder, "req -new -key ca.key -subj /O=Org/CN=Intermediate -out ca.csr");
    good(
        folder,
        &format!(
            "x509 -req -in ca.csr -CA root.pem -CAkey root.key -CAcreateserial -days {days} -extfile ext -out ca.pem"
        ),
    );
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).expect("there");
    std::fs::write(folder.join("chain.pem"), text("ca.pem") + &text("root.pem")).expect("written");
}

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign";

#[test]
fn given_a_plug_in_ca_of_each_kind_then_its_certificates_verify() {
    if !openssl::is_here() {
        return;
    }
    for (root, ca, key) in [
        (P256, P256, "P-256"),
        (P384, P384, "P-384"),
        (RSA_2048, RSA_2048, "RSA-2048"),
        (RSA_2048, P256, "P-256"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        plug_in(folder, root, ca, CA, 365);
        // The same key in each of its formats.
        let traditional = if ca == RSA_2048 { "rsa -traditional" } else { "ec" };
        good(folder, &format!("{traditional} -in ca.key -out old.key"));
        let old = std::fs::read_to_string(folder.join("old.key")).expect("there");
        assert!(old.contains("BEGIN RSA PRIVATE KEY") || old.contains("BEGIN EC PRIVATE KEY"));
        for key_file in ["ca.key", "old.key"] {
            for chain in ["chain.pem", "ca.pem", "root.pem", ""] {
                let files = files(folder, "ca.pem", key_file, "root.pem", chain);
                let authority = Authority::from_files(&files, SystemTime::now()).expect("usable");
                assert_eq!(authority.about().key, key);
                assert!(!authority.about().self_signed);
                let request = openssl::request(folder, P256, "");
                let issued = issue(&authority, &id("a", "b"), &request, HOUR);
                let answer = authority.answer(&issued);
                assert_eq!(answer.len(), 3, "leaf, intermediate, roots");
                write(folder, &answer);
                verify(folder, true);
            }
        }
    }
}

#[test]
fn given_an_intermediate_made_here_then_its_certificates_verify() {
    if !openssl::is_here() {
        return;
    }
    let now = SystemTime::now();
    let root = authority();
    let files = root.intermediate(&domain(), now).expect("an intermediate");
    let below = Authority::from_files(&files, now).expect("usable");
    assert!(!below.about().self_signed);
    let folder = tempfile::tempdir().expect("a folder");
    let request = openssl::request(folder.path(), P256, "");
    let issued = issue(&below, &id("a", "b"), &request, HOUR);
    write(folder.path(), &below.answer(&issued));
    verify(folder.path(), true);
    // It may sign workloads, but no further authority.
    let deeper = below.intermediate(&domain(), now).expect("made");
    assert!(Authority::from_files(&deeper, now).is_err());
}

#[test]
fn given_an_authority_then_its_files_make_it_again() {
    let now = SystemTime::now();
    let root = super::authority();
    let below = root.intermediate(&domain(), now).expect("made");
    let below = Authority::from_files(&below, now).expect("usable");
    for authority in [root, below] {
        let again = authority.to_files().expect("files");
        let again = Authority::from_files(&again, now).expect("usable");
        assert_eq!(again.about(), authority.about());
        assert_eq!(again.roots(), authority.roots());
        assert_eq!(again.chain(), authority.chain());
    }
}

#[test]
fn given_a_bad_plug_in_ca_then_the_message_names_the_file_and_the_fault() {
    if !openssl::is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let other = tempfile::tempdir().expect("a folder");
    let (folder, other) = (folder.path(), other.path());
    plug_in(folder, P256, P256, CA, 365);
    plug_in(other, P256, P256, CA, 365);
    let text = |name: &str| std::fs::read(folder.join(name)).expect("there");
    let others = |name: &str| std::fs::read(other.join(name)).expect("there");
    let good_files = || files(folder, "ca.pem", "ca.key", "root.pem", "chain.pem");
    let says = |files: identity::CaFiles, now, parts: &[&str]| {
        let error = Authority::from_files(&files, now).err().expect("refused").to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    };
    let now = SystemTime::now();
    assert!(Authority::from_files(&good_files(), now).is_ok());

    let mut bad = good_files();
    bad.key = others("ca.key").into();
    says(bad, now, &["ca-key.pem is not the key of ca-cert.pem"]);
    let mut bad = good_files();
    bad.key = b"nothing".to_vec().into();
    says(bad, now, &["ca-key.pem", "PKCS#8"]);
    let mut bad = good_files();
    bad.roots = others("root.pem");
    says(bad, now, &["no valid chain", "Intermediate"]);
    let mut bad = good_files();
    bad.roots = Vec::new();
    says(bad, now, &["root-cert.pem", "no certificate"]);
    let mut bad = good_files();
    bad.chain = text("ca.key");
    says(bad, now, &["cert-chain.pem", "something else than certificates"]);
    let mut bad = good_files();
    bad.certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
    says(bad, now, &["ca-cert.pem", "damaged"]);
    says(
        good_files(),
        now + Duration::from_secs(400 * 24 * 3600),
        &["Intermediate", "has expired"],
    );
    says(good_files(), now - Duration::from_secs(24 * 3600), &["not valid yet"]);

    // No authority; one that may not sign; one without room below it.
    for (extensions, parts) in [
        ("basicConstraints=critical,CA:FALSE", &["ca-cert.pem", "CA:TRUE"][..]),
        ("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign", &["key usage"]),
        (
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nextendedKeyUsage=codeSigning",
            &["clients would refuse"],
        ),
        (
            "basicConstraints=critical,CA:TRUE\nnameConstraints=critical,permitted;URI:.example.com",
            &["clients would refuse"],
        ),
    ] {
        plug_in(folder, P256, P256, extensions, 365);
        says(good_files(), SystemTime::now(), parts);
    }
}
