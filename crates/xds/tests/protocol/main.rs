//! Scripts of the protocol: what a proxy says, and what it gets. Names start with the number of
//! the requirement they show.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "the whole crate is a test, its helpers too"
)]

mod bad_input;
mod delta;
mod dsl;
mod equal;
mod lost;
mod model;
mod order;
mod reject;
mod routes;
mod server;
mod sotw;
mod streams;

use std::collections::BTreeSet;
use std::path::Path;

/// Requirements that a name such as `r1_r2_later_requests…` begins with.
fn numbers(name: &str) -> impl Iterator<Item = u32> {
    let numbers = name.split('_').map(|part| part.strip_prefix('r').and_then(|n| n.parse().ok()));
    numbers.map_while(|number| number)
}

/// The numbers in the names of all tests below a folder.
fn tested(folder: &Path, out: &mut BTreeSet<u32>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tested(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            for line in text.lines() {
                let line = line.trim_start();
                let line = line.strip_prefix("async ").unwrap_or(line);
                out.extend(line.strip_prefix("fn ").into_iter().flat_map(numbers));
            }
        }
    }
}

#[test]
fn each_requirement_has_a_test_or_a_written_reason_and_none_has_both() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for package in ["xds", "controller", "identity", "model", "translate"] {
        for folder in ["src", "tests"] {
            tested(&here.join("..").join(package).join(folder), &mut tests);
        }
    }
    // These are about everything, so their tests are in the house of all crates.
    let house = std::fs::read_to_string(here.join("../../tests/golden.rs")).expect("a source");
    assert!(house.contains("fn r105_"), "r105");
    tests.insert(105);
    let reasons = std::fs::read_to_string(here.join("tests/README.md")).expect("the reasons");
    let reasons: BTreeSet<u32> = reasons
        .lines()
        .filter_map(|line| line.strip_prefix("| R")?.split(' ').next()?.parse().ok())
        .collect();
    let missing: Vec<_> =
        (1..=109).filter(|n| !tests.contains(n) && !reasons.contains(n)).collect();
    assert!(missing.is_empty(), "neither tested nor explained: {missing:?}");
    let both: Vec<_> = tests.intersection(&reasons).collect();
    assert!(both.is_empty(), "tested, so no reason is needed: {both:?}");
}
