//! What becomes of objects, good and bad, one file per kind.
//!
//! **Invariant:** goes through `read` and `lower` only, as every caller does.

#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

mod destination_rule;
mod gateway;
mod head;
mod kubernetes;
mod mesh_config;
mod schema;
mod virtual_service;

use std::sync::Arc;

use config::{RawObject, Read};
use model::{Problem, Reason, Row, Severity};

/// Read a text.
fn read(text: &str) -> Read {
    config::read(&Arc::from("test"), text)
}

/// The only object of a text.
fn object(text: &str) -> RawObject {
    let mut read = read(text);
    assert!(read.syntax.is_empty(), "{:?}\n{text}", read.syntax);
    assert_eq!((read.objects.len(), &read.problems[..]), (1, &[][..]), "{text}");
    read.objects.remove(0)
}

/// Rows and problems of the only object of a text.
fn lower(text: &str) -> (Vec<Row>, Vec<Problem>) {
    let (change, problems) = config::lower(object(text));
    (change.rows, problems)
}

/// An object of a kind of Istio with this `spec` in flow style.
fn istio(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n\
         spec: {spec}\n"
    )
}

/// Field and reason of each problem.
fn faults(problems: &[Problem]) -> Vec<(&str, Reason)> {
    problems.iter().map(|p| (p.field.as_str(), p.reason)).collect()
}

/// Every problem is one that a user can act on.
fn assert_clear(problems: &[Problem]) {
    for problem in problems {
        let message = &problem.message;
        assert!(message.len() > 8 && !message.ends_with('.'), "{problem}");
        assert!(!message.contains("u16") && !message.contains("untagged"), "{problem}");
    }
}

fn errors(problems: &[Problem]) -> usize {
    problems.iter().filter(|p| p.severity == Severity::Error).count()
}
