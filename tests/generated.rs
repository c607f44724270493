//! Files that are made from the table of kinds, held against it.
//!
//! In: `config::KINDS`. Out: the CRDs and the permissions of the chart; `UPDATE=1` rewrites them.
//!
//! **Invariant:** a file of `manifests/crds` or `charts/heddle/files` is made here or not there.

#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{KINDS, crd};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn yaml(value: &Value) -> String {
    let text = serde_yaml::to_string(value).expect("YAML");
    format!(
        "# Made from config::KINDS by `UPDATE=1 cargo test -p heddle-tests --test generated`.\n{text}"
    )
}

/// What the controller may do in every namespace: read what it watches, say how it went, have
/// tokens reviewed. What depends on values stands in the chart itself.
fn permissions() -> Value {
    let mut watched: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut statuses: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for known in KINDS.iter().filter(|known| known.in_api) {
        watched.entry(known.group).or_default().push(known.plural);
        if known.kind.spec().is_some() {
            statuses.entry(known.group).or_default().push(format!("{}/status", known.plural));
        }
    }
    let read = watched.into_iter().map(|(group, plurals)| {
        json!({"apiGroups": [group], "resources": plurals, "verbs": ["list", "watch"]})
    });
    let say = statuses.into_iter().map(
        |(group, plurals)| json!({"apiGroups": [group], "resources": plurals, "verbs": ["patch"]}),
    );
    let events = json!({
        "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"],
    });
    let review = json!({
        "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"],
    });
    read.chain(say).chain([events, review]).collect()
}

#[test]
fn given_the_table_of_kinds_then_the_files_of_the_chart_are_those_made_from_it() {
    let rules = ("charts/heddle/files/rules.yaml".to_owned(), yaml(&permissions()));
    let mut files = BTreeMap::from([rules]);
    for known in KINDS {
        if let Some(definition) = crd::definition(known) {
            let text = yaml(&definition);
            // Once for `kubectl apply`, once for helm, which takes only what is in the chart.
            files.insert(format!("manifests/crds/{}.yaml", known.plural), text.clone());
            files.insert(format!("charts/heddle/files/crds/{}.yaml", known.plural), text);
        }
    }
    // The permissions stand in what `heddle install` prints, too.
    let install = "crates/cli/src/install.yaml".to_owned();
    let printed = std::fs::read_to_string(root().join(&install)).expect("what install prints");
    let (before, rest) = printed.split_once("rules:\n# Made from").expect("the permissions");
    let end = rest.find("\n\n").or_else(|| rest.find("\n---")).expect("what follows them") + 1;
    let after = &rest[end..];
    let permissions = yaml(&permissions());
    files.insert(install, format!("{before}rules:\n{permissions}{after}"));
    let update = std::env::var_os("UPDATE").is_some();
    let mut stale = Vec::new();
    for (name, text) in &files {
        let path = root().join(name);
        if std::fs::read_to_string(&path).ok().as_ref() == Some(text) {
            continue;
        }
        if update {
            std::fs::write(&path, text).expect("written");
        } else {
            stale.push(name.clone());
        }
    }
    for folder in ["manifests/crds", "charts/heddle/files", "charts/heddle/files/crds"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = Path::new(folder).join(entry.file_name()).display().to_string();
            if entry.path().is_file() && !files.contains_key(&name) {
                if update {
                    std::fs::remove_file(entry.path()).expect("removed");
                } else {
                    stale.push(name);
                }
            }
        }
    }
    assert!(stale.is_empty(), "not what is made today; run it with UPDATE=1: {stale:?}");
}
