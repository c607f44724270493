//! `heddle status --mtls`: who connects to workloads without mutual TLS.
//!
//! In: the pods of a cluster, and what the agents in them have counted. Out: a document, a workload
//! after the other, and its table.
//!
//! **Invariant:** a pod that does not answer is named; its workload is not shown as if nobody came.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use crate::cluster::{AgentPages, pod_id};

/// How injection marks the pods that it made part of the mesh.
const INJECTED: &str = "sidecar.istio.io/status";
/// Name of a workload, which injection makes sure of.
const WORKLOAD: &str = "service.istio.io/canonical-name";
/// What agents count.
const CONNECTIONS: &str = "heddle_inbound_connections_total{";

/// A workload, and who came to it.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload {
    namespace: String,
    name: String,
    pods: u64,
    mutual_tls: u64,
    plain_text: u64,
    refused: u64,
    /// Clients without mutual TLS, by name.
    without: Vec<Client>,
}

/// A client of a workload that came without mutual TLS.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Client {
    /// `namespace/pod`, `node NAME`, or an address that belongs to neither.
    name: String,
    plain_text: u64,
    refused: u64,
}

/// Count by workload. `pods`: all of the cluster; `pages`: those of agents, by namespace and pod.
/// Out: also what is to be said of pods that do not answer.
pub(super) fn workloads(pods: &[Pod], pages: &AgentPages) -> (Vec<Workload>, Vec<String>) {
    let names = names(pods);
    let (mut workloads, mut silent) = (BTreeMap::new(), Vec::new());
    for pod in pods {
        let id = pod_id(pod);
        let page = match pages.get(&id) {
            Some(Ok(page)) => page,
            Some(Err(error)) => {
                let (namespace, name) = id;
                silent.push(format!(
                    "{namespace}/{name} does not answer, so its clients are not in the list: \
                     {error:#}"
                ));
                continue;
            }
            None => continue,
        };
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(WORKLOAD));
        let key = (id.0, label.unwrap_or(&id.1).clone());
        let (workload, clients): &mut (Workload, BTreeMap<String, Client>) =
            workloads.entry(key).or_default();
        workload.pods += 1;
        for (source, security, count) in counts(&String::from_utf8_lossy(page)) {
            let name = names.get(&source).cloned().unwrap_or(source);
            let client =
                || clients.entry(name.clone()).or_insert(Client { name, ..Client::default() });
            match security.as_str() {
                "mutual_tls" => workload.mutual_tls += count,
                "none" => {
                    workload.plain_text += count;
                    client().plain_text += count;
                }
                _ => {
                    workload.refused += count;
                    client().refused += count;
                }
            }
        }
    }
    let workloads = workloads.into_iter().map(|((namespace, name), (workload, clients))| {
        Workload { namespace, name, without: clients.into_values().collect(), ..workload }
    });
    (workloads.collect(), silent)
}

/// Whether there is an agent in a pod.
pub(super) fn is_injected(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|notes| notes.contains_key(INJECTED))
}

/// Whom addresses belong to.
fn names(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for pod in pods {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { continue };
        if let (Some(node), Some(address)) = (&spec.node_name, &status.host_ip) {
            names.insert(address.clone(), format!("node {node}"));
        }
    }
    for pod in pods {
        // Pods in the network of their node cannot be told apart.
        let own = pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true));
        // The address of one that has ended may be another's by now.
        let status = pod.status.as_ref().filter(|status| {
            own && !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        });
        let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let (namespace, name) = pod_id(pod);
        names.extend(addresses.map(|ip| (ip.ip.clone(), format!("{namespace}/{name}"))));
    }
    names
}

/// Source, security and number of connections, line by line.
fn counts(page: &str) -> impl Iterator<Item = (String, String, u64)> {
    page.lines().filter_map(|line| {
        let (labels, count) = line.strip_prefix(CONNECTIONS)?.split_once("} ")?;
        // Neither holds a character that is escaped.
        let label = |name: &str| {
            let value = labels.split(',').find_map(|label| label.strip_prefix(name))?;
            Some(value.strip_prefix("=\"")?.strip_suffix('"')?.to_owned())
        };
        Some((label("source")?, label("security")?, count.parse().ok()?))
    })
}

/// The table.
pub(super) fn table(workloads: &[Workload]) -> Table {
    let mut table = Table::new();
    let header = ["WORKLOAD", "PODS", "MUTUAL TLS", "PLAIN TEXT", "REFUSED", "WITHOUT MUTUAL TLS"];
    table.load_style(presets::NOTHING).set_header(header);
    for workload in workloads {
        let Workload { namespace, name, pods, mutual_tls, plain_text, refused, without } = workload;
        let clients = without.iter().map(|Client { name, plain_text, refused }| {
            match (plain_text, refused) {
                (plain, 0) => format!("{name}: {plain}"),
                (0, refused) => format!("{name}: {refused} refused"),
                (plain, refused) => format!("{name}: {plain}, {refused} refused"),
            }
        });
        let counts = [pods, mutual_tls, plain_text, refused].map(u64::to_string);
        let mut row = vec![format!("{namespace}/{name}")];
        row.extend(counts);
        row.push(clients.collect::<Vec<_>>().join("\n"));
        table.add_row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;

    fn pod(name: &str, workload: &str, address: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {WORKLOAD: workload}},
            "spec": {"nodeName": "one", "containers": []},
            "status": {"phase": "Running", "hostIP": "10.0.0.1", "podIPs": [{"ip": address}]},
        }))
        .expect("a pod")
    }

    #[test]
    fn clients_are_joined_to_pods_and_pods_to_workloads() {
        let pods = [
            pod("web-1", "web", "10.1.0.1"),
            pod("web-2", "web", "10.1.0.2"),
            pod("db-0", "db", "10.1.0.3"),
            pod("old-0", "old", "10.1.0.9"),
        ];
        let page = |lines: &str| Ok(Bytes::from(lines.to_owned()));
        let pages = BTreeMap::from([
            (
                ("shop".to_owned(), "web-1".to_owned()),
                page(
                    "# HELP heddle_inbound_connections_total a\n\
                     heddle_inbound_connections_total{security=\"mutual_tls\",source=\"10.1.0.3\"} 7\n\
                     heddle_inbound_connections_total{security=\"none\",source=\"10.1.0.9\"} 2\n",
                ),
            ),
            (
                ("shop".to_owned(), "web-2".to_owned()),
                page(
                    "heddle_inbound_connections_total{security=\"refused\",source=\"10.1.0.9\"} 3\n\
                     heddle_inbound_connections_total{security=\"none\",source=\"10.0.0.1\"} 4\n\
                     heddle_inbound_connections_total{security=\"none\",source=\"others\"} 5\n",
                ),
            ),
            (("shop".to_owned(), "db-0".to_owned()), Err(anyhow::anyhow!("port-forward"))),
        ]);
        let (workloads, silent) = workloads(&pods, &pages);
        let table: String =
            table(&workloads).lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(
            table,
            " WORKLOAD  PODS  MUTUAL TLS  PLAIN TEXT  REFUSED  WITHOUT MUTUAL TLS
 shop/web  2     7           11          3        node one: 4
                                                  others: 5
                                                  shop/old-0: 2, 3 refused
"
        );
        assert!(silent.len() == 1 && silent[0].starts_with("shop/db-0 does not"), "{silent:?}");
    }
}
