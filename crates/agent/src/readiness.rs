//! Whether the proxy serves, and what is missing if not.
//!
//! In: the state of the certificate, the life of Envoy, its admin pages. Out: nothing, or what is
//! missing, in words.
//!
//! **Invariant:** asks anew each time; never ready without a certificate that holds.

use std::net::SocketAddr;

use http::Method;
use tokio::sync::watch;

use crate::call;
use crate::certificates::State;
use crate::envoy::{Life, Stop};

/// Of all its statistics, those that say how far Envoy is.
const PAGE: &str = "/stats?filter=^(server%5C.state|cluster_manager%5C.cds%5C.update_success|\
                    listener_manager%5C.lds%5C.update_success|listener_manager%5C.workers_started)$";

/// Knows what to ask.
#[derive(Clone)]
pub(crate) struct Readiness {
    pub(crate) certificate: watch::Receiver<State>,
    pub(crate) life: watch::Receiver<Life>,
    pub(crate) stop: watch::Receiver<Stop>,
    pub(crate) admin: SocketAddr,
}

// === impl Readiness ===

impl Readiness {
    /// What is missing; empty = ready.
    pub(crate) async fn missing(&self) -> Vec<String> {
        if *self.stop.borrow() > Stop::Not {
            return vec!["the proxy is ending".to_owned()];
        }
        let mut missing: Vec<String> = self.certificate.borrow().missing().into_iter().collect();
        let life = self.life.borrow().clone();
        if life.process.is_none() {
            missing.push(match &life.trouble {
                Some(trouble) => format!("Envoy does not run: {trouble}"),
                None => "Envoy is not started yet".to_owned(),
            });
            return missing;
        }
        match call::admin(self.admin, Method::GET, PAGE).await {
            Ok(page) => missing.extend(of_statistics(&page)),
            Err(error) => missing.push(format!("Envoy does not answer: {error:#}")),
        }
        missing
    }
}

/// What Envoy's own statistics say is missing.
fn of_statistics(page: &str) -> Vec<String> {
    let value = |name: &str| {
        let mut pairs = page.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    let count = |name: &str| value(name).unwrap_or(0);
    let mut missing = Vec::new();
    if count("cluster_manager.cds.update_success") == 0 {
        missing.push("clusters (CDS) have not come from the controller".to_owned());
    }
    if count("listener_manager.lds.update_success") == 0 {
        missing.push("listeners (LDS) have not come from the controller".to_owned());
    }
    let state = match value("server.state") {
        // Its workers take connections a moment later.
        Some(0) if count("listener_manager.workers_started") == 0 => Some("starting its workers"),
        Some(0) => None,
        Some(1) => Some("draining"),
        Some(2 | 3) => Some("initializing"),
        _ => Some("in an unknown state"),
    };
    missing.extend(state.map(|state| format!("Envoy is {state}")));
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let page = |state: u8, cds: u8, lds: u8, workers: u8| {
            format!(
                "cluster_manager.cds.update_success: {cds}\n\
                 listener_manager.lds.update_success: {lds}\n\
                 listener_manager.workers_started: {workers}\nserver.state: {state}\n"
            )
        };
        assert_eq!(of_statistics(&page(0, 1, 1, 1)), Vec::<String>::new());
        for (page, says) in [
            (page(2, 0, 0, 0), &["CDS", "LDS", "initializing"][..]),
            (page(2, 1, 0, 0), &["LDS", "initializing"]),
            (page(0, 1, 1, 0), &["workers"]),
            (page(1, 1, 1, 1), &["draining"]),
            (String::new(), &["CDS", "LDS", "unknown"]),
        ] {
            let missing = of_statistics(&page);
            assert_eq!(missing.len(), says.len(), "{missing:?}");
            for (missing, says) in missing.iter().zip(says) {
                assert!(missing.contains(says), "{missing} does not name {says}");
            }
        }
    }
}
