//! `heddle inject`.
//!
//! **Invariant:** what is no pod comes out as it went in.

use super::Folder;

const DEPLOYMENT: &str = "\
# A shop.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: 'web:1'}]
";
const SERVICE: &str = "\
# Kept, comments and all.
apiVersion: v1
kind: Service
metadata:   {name: web}   # as it is written
spec: {ports: [{port: 80}]}
";
const CRON: &str = "\
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec:
  jobTemplate:
    spec:
      template:
        metadata: {annotations: {sidecar.istio.io/agentLogLevel: debug}}
        spec: {containers: [{name: report, image: 'report:1'}], restartPolicy: Never}
";

#[test]
fn given_documents_then_pods_get_their_sidecar_and_others_pass_as_they_are() {
    let all = format!("{DEPLOYMENT}---\n{SERVICE}---\n{CRON}");
    let folder = Folder::with("shop.yaml", &all);
    let ran = folder.run(&["inject", "-f", "shop.yaml"]);
    ran.says(
        0,
        &["shop.yaml:16: CronJob report: annotation sidecar.istio.io/agentLogLevel has no"],
    );
    let documents: Vec<&str> = ran.out.split("---\n").skip(1).collect();
    let [deployment, service, cron] = documents[..] else { panic!("{}", ran.out) };
    assert_eq!(service, SERVICE);
    for (text, name) in [(deployment, "web"), (cron, "report")] {
        for part in ["name: heddle-init", "name: heddle-proxy", "image: heddle/proxy:"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let label = format!("service.istio.io/canonical-name: {name}");
        assert!(text.contains(&label), "{text}");
    }
    // What is injected is not injected again.
    let folder = Folder::with("again.yaml", &ran.out);
    let again = folder.run(&["inject", "-f", "again.yaml"]);
    again.says(0, &["Deployment web: not injected: it has a sidecar"]);
    assert_eq!(again.out, ran.out);
}

#[test]
fn given_a_pod_that_is_refused_then_nothing_is_printed_and_each_fault_is_named() {
    let bad = CRON.replace("agentLogLevel: debug", "proxyCPU: lots");
    let folder = Folder::with("cron.yaml", &bad);
    let ran = folder.run(&["inject", "-f", "cron.yaml"]);
    ran.says(
        1,
        &["cron.yaml:1: error: CronJob report: annotation sidecar.istio.io/proxyCPU: \"lots\""],
    );
    assert_eq!(ran.out, "");
}

#[test]
fn given_settings_as_the_cluster_has_them_then_they_are_in_force() {
    let folder = Folder::with("web.yaml", DEPLOYMENT);
    folder.write("settings.yaml", "{image: 'mine:2', nativeSidecars: disabled}");
    let map = "kind: ConfigMap\ndata:\n  injector: 'image: mine:3'\n  \
               mesh: 'defaultConfig: {concurrency: 7}'\n";
    folder.write("map.yaml", map);
    let run = |settings: &str| folder.run(&["inject", "-f", "web.yaml", "--settings", settings]);
    let ran = run("settings.yaml");
    ran.says(0, &[]);
    assert!(ran.out.contains("image: mine:2") && ran.out.contains("postStart"), "{}", ran.out);
    let ran = run("map.yaml");
    ran.says(0, &[]);
    assert!(ran.out.contains("image: mine:3") && ran.out.contains("value: '7'"), "{}", ran.out);
    folder.write("bad.yaml", "imge: a");
    run("bad.yaml").says(1, &["settings of the injector: unknown field `imge`"]);
    let nowhere = folder.run(&["inject", "-f", "nowhere.yaml"]);
    nowhere.says(1, &["nowhere.yaml"]);
    let text = Folder::with("text.yaml", "a: [");
    text.run(&["inject", "-f", "text.yaml"]).says(1, &["text.yaml:1: "]);
}
