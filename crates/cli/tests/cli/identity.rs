//! `heddle ca` and `heddle token`, as far as they need no controller; `tests/identity.rs` of the
//! workspace has the rest.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use identity::Authority;
use identity::folder::read_ca;

use super::{Folder, NODE};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn given_empty_folders_then_ca_init_makes_a_root_and_an_intermediate_that_work() {
    let folder = Folder::new();
    let args = ["ca", "init", "--root", "root", "--directory", "ca-1", "--secret", "secret.yaml"];
    let ran = folder.run(&args);
    ran.says(0, &[]);
    assert!(ran.out.contains("made root") && !ran.out.contains("PRIVATE"), "{}", ran.out);
    let files = read_ca(&folder.path().join("ca-1")).expect("files");
    let first = Authority::from_files(&files, SystemTime::now()).expect("usable");
    assert!(!first.about().self_signed);
    for file in ["root/ca-key.pem", "ca-1/ca-key.pem", "secret.yaml"] {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
    }
    let secret = std::fs::read_to_string(folder.path().join("secret.yaml")).expect("there");
    let secret: serde_json::Value = serde_yaml::from_str(&secret).expect("YAML");
    assert_eq!(secret["metadata"]["name"], "cacerts");
    for (key, value) in [("ca-cert.pem", &files.certificate), ("ca-key.pem", &files.key)] {
        assert_eq!(secret["stringData"][key].as_str().map(str::as_bytes), Some(&value[..]));
    }
    // Nothing is overwritten; another intermediate comes from the same root.
    folder.run(&args).says(1, &["ca-1", "holds a CA already"]);
    folder.run(&["ca", "init", "--root", "root", "--directory", "ca-2"]).says(0, &[]);
    let files = read_ca(&folder.path().join("ca-2")).expect("files");
    let second = Authority::from_files(&files, SystemTime::now()).expect("usable");
    assert_eq!(first.roots(), second.roots());
    assert_ne!(first.about().serial, second.about().serial);
    folder.run(&["ca", "init", "--root", "ca-2", "--directory", "ca-3"]).says(1, &["refuse"]);
    std::fs::create_dir(folder.path().join("empty")).expect("made");
    folder
        .run(&["ca", "init", "--root", "empty", "--directory", "ca-3"])
        .says(1, &["--root", "empty/ca-cert.pem"]);
}

#[test]
fn given_no_identity_directory_or_a_bad_name_then_token_create_says_so() {
    let folder = Folder::new();
    let run = |more: &[&str]| {
        let mut args = vec!["token", "create", "--identity-directory", "."];
        args.extend(more);
        folder.run(&args)
    };
    let ran = run(&["--namespace", "shop", "--service-account", "web"]);
    ran.says(0, &[]);
    assert!(ran.out.starts_with("heddle-join-") && ran.out.trim().len() == 55, "{}", ran.out);
    run(&["--namespace", "../x"]).says(1, &["../x", "a namespace"]);
    run(&["--namespace", "a", "--minutes", "0"]).says(2, &["--minutes"]);
    run(&["--namespace", "a", "--trust-domain", "A"]).says(1, &["--trust-domain", "lower-case"]);
    folder
        .run(&["token", "create", "--identity-directory", "nowhere", "--namespace", "a"])
        .says(1, &["nowhere is no folder", "--identity-directory"]);
}

#[test]
fn given_nothing_to_ask_with_then_ca_request_says_what_is_missing() {
    let folder = Folder::new();
    let run = |more: &[&str]| {
        let mut args = vec!["ca", "request", "--directory", "c", "--address", "127.0.0.1:1"];
        args.extend(more);
        folder.run(&args)
    };
    run(&[]).says(1, &["--roots", "c/root-cert.pem"]);
    folder.write("bad.pem", "x");
    run(&["--roots", "bad.pem"]).says(1, &["bad.pem", "no certificate"]);
    folder.run(&["ca", "init", "--root", "root", "--directory", "ca"]).says(0, &[]);
    let roots = ["--roots", "root/root-cert.pem"];
    run(&roots).says(1, &["without --token-file", "c/cert-chain.pem"]);
    folder.write("token", "abc");
    folder.write("empty", "\n");
    run(&["--roots", "root/root-cert.pem", "--token-file", "empty"]).says(1, &["empty"]);
    run(&["--roots", "root/root-cert.pem", "--token-file", "token"])
        .says(1, &["connecting to 127.0.0.1:1", "refused"]);
    let began = std::time::Instant::now();
    run(&["--roots", "root/root-cert.pem", "--token-file", "token", "--wait", "2"])
        .says(1, &["note", "refused", "trying again in"]);
    assert!(began.elapsed().as_secs() <= 2, "{:?}", began.elapsed());
}

#[test]
fn given_a_folder_without_certificates_then_bootstrap_says_what_writes_them() {
    let folder = Folder::new();
    let args = ["bootstrap", "--node", NODE, "--certificates", "."];
    folder.run(&args).says(1, &["sds-certificate.json", "heddle ca request"]);
    folder.write("sds-certificate.json", "{}");
    folder.write("sds-roots.json", "{}");
    let ran = folder.run(&args);
    ran.says(0, &[]);
    let path = folder.path().canonicalize().expect("a path").join("sds-roots.json");
    for part in ["15012", "IP_ADDRESS", &*path.to_string_lossy()] {
        assert!(ran.out.contains(part), "{part} is not in {}", ran.out);
    }
}
