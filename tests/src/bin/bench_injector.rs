//! Measures injection alone: the bytes of a pod in, the bytes of its patch out, on one thread.
//!
//! In: an ordinary pod, one with a hundred containers, one of five megabytes. Out: a table; each
//! figure stands beside plain reading and writing of the same pod in the same run.
//!
//! **Invariant:** every pod is injected, or the run fails; the median of many.

#![allow(clippy::print_stdout, reason = "a tool")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use injector::{Namespace, Outcome, ProxyConfig, Settings, inject};
use serde_json::{Value, json};

const ROUNDS: usize = 201;
/// What an ordinary pod may cost.
const BAR: Duration = Duration::from_millis(1);

fn pod(containers: usize, padding: usize) -> Value {
    let container = |n: usize| {
        json!({
            "name": format!("c{n}"),
            "image": "registry.example.com/shop/web:1",
            "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": "PADDING", "value": "x".repeat(padding)}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        })
    };
    json!({
        "metadata": {
            "generateName": "web-7d9c5b8f4-",
            "labels": {"app": "web", "version": "v1"},
            "annotations": {"sidecar.istio.io/proxyCPU": "200m", "prometheus.io/scrape": "true"},
        },
        "spec": {"containers": (0..containers).map(container).collect::<Vec<_>>()},
    })
}

fn median(run: impl Fn() -> Result<()>, rounds: usize) -> Result<Duration> {
    let mut all = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        run()?;
        all.push(began.elapsed());
    }
    all.sort_unstable();
    Ok(all[rounds / 2])
}

fn main() -> Result<()> {
    let namespace = Namespace {
        name: "shop".to_owned(),
        labels: [("istio-injection".to_owned(), "enabled".to_owned())].into(),
        ..Namespace::default()
    };
    let settings = Settings::default().for_cluster(None);
    let mesh = ProxyConfig::default();
    println!(
        "{:<24} {:>12} {:>8} {:>14} {:>10}",
        "pod", "measured", "bar", "read + write", "patch"
    );
    let mut missed = 0;
    for (what, containers, padding, bar) in [
        ("ordinary", 1, 100, Some(BAR)),
        ("of 100 containers", 100, 100, None),
        ("of 5 MB", 1, 5 << 20, None),
    ] {
        let bytes = serde_json::to_vec(&pod(containers, padding))?;
        let injected = || -> Result<Vec<u8>> {
            let pod: Value = serde_json::from_slice(&bytes)?;
            match inject(&pod, &namespace, &settings, &mesh)? {
                Outcome::Injected { patch, .. } => Ok(serde_json::to_vec(&patch)?),
                Outcome::Skipped(why) => anyhow::bail!("not injected: {why}"),
            }
        };
        let plain = || -> Result<()> {
            let pod: Value = serde_json::from_slice(&bytes)?;
            ensure!(serde_json::to_vec(&pod)?.len() == bytes.len(), "other bytes");
            Ok(())
        };
        let rounds = if padding > 1000 { 21 } else { ROUNDS };
        let measured = median(|| injected().map(drop), rounds)?;
        let plain = median(plain, rounds)?;
        let late = bar.is_some_and(|bar| measured > bar);
        missed += u32::from(late);
        let bar = bar.map(|bar| format!("{bar:?}")).unwrap_or_default();
        let mark = if late { "MISSED" } else { "" };
        let size = injected()?.len();
        println!("{what:<24} {measured:>12.1?} {bar:>8} {plain:>14.1?} {size:>8} B  {mark}");
    }
    ensure!(missed == 0, "{missed} bars were missed");
    Ok(())
}
