//! Node agents, by an API server within the process.
//!
//! **Invariant:** time is virtual: pauses take none.

use std::time::SystemTime;

use identity::Method;
use serde_json::json;

use super::*;
use crate::fake::Fake;

fn id(namespace: &str, account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().expect("an id")
}

/// A caller whose pod is on this node.
fn caller(who: SpiffeId, node: Option<&str>) -> Verified {
    let now = SystemTime::now();
    let end = now + Duration::from_secs(600);
    let verified = Verified::new(who, Method::ServiceAccount, end, now).expect("good");
    verified.on_node(node.map(Into::into))
}

fn agents(fake: &Fake) -> NodeAgents {
    NodeAgents::new(fake.client(), [id("mesh", "agent")].into())
}

/// A pod of `shop` on a node.
fn run(fake: &Fake, name: &str, account: &str, node: &str, phase: &str) {
    let pod = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": node, "serviceAccountName": account},
        "status": {"phase": phase},
    });
    fake.state().put("pods", ("shop".to_owned(), name.to_owned()), pod);
}

#[tokio::test(start_paused = true)]
async fn given_a_node_agent_then_it_may_ask_for_the_pods_of_its_node_and_for_no_others() {
    let fake = Fake::new();
    run(&fake, "web-1", "web", "node-1", "Running");
    run(&fake, "db-1", "db", "node-2", "Running");
    run(&fake, "job-1", "job", "node-1", "Succeeded");
    run(&fake, "new-1", "new", "node-1", "Pending");
    let agents = agents(&fake);
    let agent = caller(id("mesh", "agent"), Some("node-1"));
    for (wanted, allowed) in [
        (id("shop", "web"), true),
        (id("shop", "new"), true),
        (id("shop", "db"), false),
        (id("shop", "job"), false),
        (id("other", "web"), false),
        (id("shop", "nobody"), false),
    ] {
        match agents.check(&agent, &wanted).await {
            Ok(()) => assert!(allowed, "{wanted}"),
            Err(NotDelegated::Denied(why)) => {
                assert!(!allowed && why.contains("node-1") && why.contains(&wanted.to_string()));
            }
            Err(other) => panic!("{other}"),
        }
    }
    // The pod goes, and with it the right.
    fake.state().delete("pods", &("shop".to_owned(), "web-1".to_owned()));
    assert!(agents.check(&agent, &id("shop", "web")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn given_somebody_else_or_a_credential_without_a_node_then_it_is_denied() {
    let fake = Fake::new();
    run(&fake, "web-1", "web", "node-1", "Running");
    let agents = agents(&fake);
    for (who, node, says) in [
        (id("shop", "web"), Some("node-1"), "--node-agent"),
        (id("other", "agent"), Some("node-1"), "--node-agent"),
        (id("mesh", "agent"), None, "names no node"),
        (id("mesh", "agent"), Some("node-2"), "no pod on node node-2"),
    ] {
        let denied = agents.check(&caller(who, node), &id("shop", "web")).await;
        let Err(NotDelegated::Denied(why)) = denied else { panic!("{denied:?}") };
        assert!(why.contains(says), "{why}");
    }
    // Not knowing is no.
    fake.state().down = true;
    let agent = caller(id("mesh", "agent"), Some("node-1"));
    let unknown = agents.check(&agent, &id("shop", "web")).await;
    assert!(matches!(unknown, Err(NotDelegated::Unavailable(_))), "{unknown:?}");
}
