//! openssl, the neutral judge.

use std::path::Path;
use std::process::{Command, Stdio};

/// What openssl came to.
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) text: String,
}

/// Whether there is an openssl; says so when there is none.
pub(crate) fn is_here() -> bool {
    let found = Command::new("openssl").arg("version").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("SKIPPED: there is no openssl on this machine");
    }
    found
}

/// Run openssl in a folder; arguments are separated by spaces.
pub(crate) fn run(folder: &Path, args: &str) -> Ran {
    let output = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    let text = [output.stdout, output.stderr].concat();
    Ran { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Run openssl, which must succeed.
#[track_caller]
pub(crate) fn good(folder: &Path, args: &str) -> String {
    let ran = run(folder, args);
    assert!(ran.ok, "openssl {args}: {}", ran.text);
    ran.text
}

/// A key and a request, as `key.pem` and `csr.pem`.
#[track_caller]
pub(crate) fn request(folder: &Path, key: &str, more: &str) -> Vec<u8> {
    good(folder, &format!("genpkey {key} -out key.pem"));
    good(folder, &format!("req -new -key key.pem -subj /O=agent -out csr.pem {more}"));
    std::fs::read(folder.join("csr.pem")).expect("written")
}

pub(crate) const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
pub(crate) const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
pub(crate) const P224: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-224";
pub(crate) const P521: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-521";
pub(crate) const RSA_2048: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
pub(crate) const RSA_1024: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:1024";
