//! A real Envoy judges every golden case.
//!
//! In: the binary that `ENVOY_BIN` names; skipped aloud without. Out: what it refuses.
//!
//! **Invariant:** Envoy gets the very messages of the case; what is discovered in a mesh stands in
//! one file here.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use house::golden::Case;
use house::mesh::Envoy;
use house::static_file::static_file;

#[test]
fn given_each_golden_case_then_envoy_accepts_it() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let cases = Mutex::new(Case::all().expect("the cases are readable").into_iter());
    let refused = Mutex::new(Vec::new());
    let work = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (cases, refused, envoy, work) = (&cases, &refused, &envoy, &work);
            scope.spawn(move || {
                loop {
                    // Not in the head of the loop: the lock would be held all along.
                    let Some(case) = cases.lock().expect("no panic").next() else { return };
                    let outcome = case.run().expect("the case can be worked through");
                    let file = work.path().join(format!("{worker}.json"));
                    let content = static_file(&outcome, None, |_, cluster| cluster);
                    let content = content.unwrap_or_else(|e| panic!("{}: {e:#}", case.name));
                    std::fs::write(&file, content.to_string()).expect("writable");
                    let (accepted, log) = verdict(envoy, &file);
                    if !accepted || log.contains("deprecated") {
                        refused.lock().expect("no panic").push(format!("{}: {log}", case.name));
                    }
                }
            });
        }
    });
    let refused = refused.into_inner().expect("no panic");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn verdict(envoy: &Path, file: &Path) -> (bool, String) {
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--use-dynamic-base-id", "--log-level", "warning", "-c"])
        .arg(file)
        .output()
        .expect("Envoy starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
