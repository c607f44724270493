//! Golden cases: `golden/<area>/<case>/{given,proxy,when,then}.yaml`.
//!
//! `given` is what users write, `proxy` who asks (default: a gateway on a delta stream of Envoy
//! 1.40), `when` what changes afterwards, `then` what comes of it. `UPDATE=1` rewrites `then`:
//! read what changed before it is committed.
//!
//! **Invariant:** no case needs another, a network, or a clock.

#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use house::golden::Case;

#[test]
fn given_each_case_then_the_proxy_gets_what_is_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let cases = Case::all().expect("the cases are readable");
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = match case.run() {
            Ok(outcome) => outcome,
            Err(error) => {
                wrong.push(format!("{error:#}"));
                continue;
            }
        };
        let then = outcome.then.to_yaml().expect("YAML");
        if then == case.expected() {
            continue;
        }
        if update {
            case.rewrite(&then).expect("then.yaml is writable");
        } else {
            let difference = first_difference(&case.expected(), &then);
            wrong.push(format!("{}: {difference}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE=1 rewrites then.yaml", wrong.join("\n"));
    assert!(cases.len() >= 25, "only {} golden cases were found", cases.len());
}

#[test]
fn given_each_case_when_it_is_worked_through_twice_then_the_bytes_are_the_same() {
    for case in Case::all().expect("the cases are readable") {
        let bytes = || {
            let outcome = case.run().expect("the case can be worked through");
            outcome.resources.iter().map(|r| r.encoded.delta_entry()).collect::<Vec<_>>()
        };
        assert!(bytes() == bytes(), "{}", case.name);
    }
}

#[test]
fn r105_no_resource_of_any_case_names_a_load_reporting_service() {
    let mut clusters = 0;
    for case in Case::all().expect("the cases are readable") {
        let outcome = case.run().expect("the case can be worked through");
        for resource in outcome.resources {
            let kind = resource.encoded.resource_type();
            let text =
                envoy_api::json::to_json(kind.type_url(), &resource.encoded.body()).to_string();
            assert!(!text.contains("lrs_"), "{}: {text}", case.name);
            clusters += usize::from(kind == envoy_api::ResourceType::Cluster);
        }
    }
    assert!(clusters >= 25, "only {clusters} clusters were looked at");
}

fn first_difference(expected: &str, found: &str) -> String {
    if expected.is_empty() {
        return "there is no then.yaml".to_owned();
    }
    let mut lines = expected.lines().zip(found.lines()).enumerate();
    match lines.find(|(_, (a, b))| a != b) {
        Some((i, (a, b))) => format!("line {}: expected `{a}`, found `{b}`", i + 1),
        None => "one is longer than the other".to_owned(),
    }
}
