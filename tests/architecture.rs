//! Holds the workspace against ARCHITECTURE.md and the rules of the house.
//!
//! In: `cargo metadata`, the table of crates in ARCHITECTURE.md, the sources. Out: every place where
//! they differ.
//!
//! **Invariant:** reads only what is in the repository; needs no network.

#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const LONGEST_FILE: usize = 600;

/// What a pure crate may not name, and why.
const IMPURE: [(&str, &str); 7] = [
    ("async fn", "a pure crate is called, it does not wait"),
    ("tokio", "a pure crate is called, it does not wait"),
    ("std::env", "settings are passed by value"),
    ("std::fs", "reading files is the shell's work"),
    ("std::net::Tcp", "talking to others is the shell's work"),
    ("Instant::now", "time is an argument"),
    ("SystemTime", "time is an argument"),
];

/// A row of the table.
#[derive(Debug)]
struct Row {
    may_use: BTreeSet<String>,
    pure: bool,
}

#[test]
fn given_the_table_of_crates_then_no_crate_uses_more_than_it_may() {
    let table = table();
    let mut faults = Vec::new();
    for (name, row) in &table {
        for used in row.may_use.iter().filter(|used| !table.contains_key(*used)) {
            faults.push(format!("the row of {name} names {used}, which has no row"));
        }
    }
    let packages = packages();
    let ours: BTreeSet<String> = packages.keys().cloned().collect();
    let described: BTreeSet<String> = table.keys().cloned().collect();
    assert_eq!(ours, described, "the crates of the workspace and those of the table");
    for (name, uses) in &packages {
        for used in uses.iter().filter(|used| ours.contains(*used)) {
            if !table[name].may_use.contains(used) {
                faults.push(format!(
                    "{name} uses {used}; if that is meant, say so in the table of ARCHITECTURE.md"
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn given_a_pure_crate_then_it_waits_for_nothing_and_asks_nobody() {
    let table = table();
    assert!(table.values().any(|row| row.pure), "no crate is marked as pure");
    let mut faults = Vec::new();
    for (name, _) in table.iter().filter(|(_, row)| row.pure) {
        for file in sources(&root().join("crates").join(name).join("src")) {
            for (number, line) in read(&file).lines().enumerate() {
                let code = line.trim_start();
                if code.starts_with("//") {
                    continue;
                }
                for (word, why) in IMPURE.iter().filter(|(word, _)| code.contains(word)) {
                    let place = relative(&file);
                    faults.push(format!("{place}:{}: names {word}: {why}", number + 1));
                }
            }
        }
        let lints = root().join("crates").join(name).join(".clippy.toml");
        if !lints.is_file() {
            faults.push(format!("{name} is pure and has no .clippy.toml that says so"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn given_each_source_file_then_it_says_what_it_is_and_is_not_too_long() {
    let mut faults = Vec::new();
    let files = sources(&root().join("crates"));
    // Tests that have a file of their own are told by the file that they test.
    let files = files.iter().filter(|file| !file.ends_with("tests.rs"));
    for file in files.filter(|file| relative(file).contains("/src/")) {
        let (text, place) = (read(file), relative(file));
        if !text.starts_with("//! ") {
            faults.push(format!("{place} does not open with `//!`: what it is, in a sentence"));
        }
        if !text.lines().any(|l| l.starts_with("//!") && l.contains("**Invariant:**")) {
            faults.push(format!("{place} names no `**Invariant:**`"));
        }
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            faults.push(format!("{place} has {lines} lines; split it below {LONGEST_FILE}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The table whose head begins with `| crate |`.
fn table() -> BTreeMap<String, Row> {
    let text = read(&root().join("ARCHITECTURE.md"));
    let rows = text.lines().skip_while(|line| !line.starts_with("| crate |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let table: BTreeMap<String, Row> = rows
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let [name, _, may_use, pure] = &cells[..] else {
                panic!("this row of ARCHITECTURE.md has not four cells: {line}")
            };
            let name = names(name).into_iter().next().expect("a crate's name in backticks");
            let pure = pure.contains('✔');
            (name, Row { may_use: names(may_use).into_iter().collect(), pure })
        })
        .collect();
    assert!(!table.is_empty(), "ARCHITECTURE.md has no table that begins with `| crate |`");
    table
}

/// Every word in backticks.
fn names(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every package of the workspace and what it depends on, for whatever purpose.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("cargo metadata: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let uses = |package: &Value| {
        list(&package["dependencies"]).iter().map(|d| text(&d["name"])).collect::<BTreeSet<_>>()
    };
    packages.iter().map(|package| (text(&package["name"]), uses(package))).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every `.rs` file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}
