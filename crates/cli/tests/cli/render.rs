//! `heddle render` with files that are good, or nearly.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::{Folder, MESH, NODE, Ran};

/// Whether the dump has a route for a host.
fn serves(ran: &Ran, host: &str) -> bool {
    ran.dump().to_string().contains(&format!("\"{host}\""))
}

#[test]
fn given_a_folder_of_files_then_every_document_of_each_counts() {
    let folder = Folder::new();
    let documents: Vec<&str> = MESH.split("---\n").collect();
    folder.write("gateway.yaml", documents[0]);
    folder.write("below/rules.yml", format!("---\n{}---\n", documents[1]));
    folder.write("below/deeper/service.json", r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "namespace": "edge"}, "spec": {"ports": [{"port": 80, "name": "http"}]}}]}"#);
    folder.write("README.md", "not: [yaml");
    folder.write(".hidden.yaml", "not: [yaml");
    folder.write("rules.yaml~", "not: [yaml");
    let ran = folder.render(&[]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(serves(&ran, "shop.example.com"));
    assert!(ran.out.contains("outbound|80||shop.edge.svc.cluster.local"), "{}", ran.out);
}

#[test]
fn given_a_file_that_is_named_twice_then_it_is_read_once() {
    let folder = Folder::with("mesh.yaml", MESH);
    let ran = folder.render(&["-f", "mesh.yaml", "./mesh.yaml"]);
    let ran =
        if ran.code == Some(0) { ran } else { folder.render(&["-f", "mesh.yaml", "./mesh.yaml"]) };
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[test]
fn given_one_object_in_two_files_then_the_first_by_path_is_in_force_and_both_are_named() {
    let folder = Folder::with("b.yaml", MESH);
    folder.write("a.yaml", MESH.replace("shop.example.com", "first.example.com"));
    for paths in [["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]] {
        let ran =
            folder.run(&["render", "-f", paths[0], paths[1], "--node", NODE, "--labels", "app=gw"]);
        ran.says(
            1,
            &["VirtualService edge/shop: stands in a.yaml already", "b.yaml:8:1", "remove one"],
        );
        assert!(serves(&ran, "first.example.com") && !serves(&ran, "shop.example.com"));
    }
}

#[test]
fn given_labels_then_they_count_only_where_no_pod_of_that_name_is_among_the_files() {
    let folder = Folder::with("mesh.yaml", MESH);
    assert!(serves(&folder.render(&[]), "shop.example.com"));
    let without = folder.run(&["render", "-f", ".", "--node", NODE]);
    assert!(!serves(&without, "shop.example.com"));
    let pod = |app: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: gw-1, namespace: edge, labels: {{app: {app}}}}}\n"
        )
    };
    folder.write("pod.yaml", pod("other"));
    let ran = folder.render(&[]);
    assert!(!serves(&ran, "shop.example.com"), "the labels of the Pod count");
    ran.says(0, &["its labels count, not --labels", "pod.yaml"]);
    folder.write("pod.yaml", pod("gw"));
    let ran = folder.run(&["render", "-f", ".", "--node", NODE]);
    assert!(serves(&ran, "shop.example.com"), "a Pod in the files gives labels");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[test]
fn given_mesh_settings_then_they_count_and_a_bad_one_keeps_its_default() {
    let folder = Folder::with("mesh.yaml", MESH);
    let settings = tempfile::tempdir().expect("a folder");
    let path = settings.path().join("settings.yaml");
    std::fs::write(&path, "connectTimeout: 7s\n").expect("written");
    let with = |path: &std::path::Path| folder.render(&["--mesh-config", &path.to_string_lossy()]);
    let ran = with(&path);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.contains("\"7s\""), "{}", ran.out);
    std::fs::write(&path, "accessLogFile: /dev/stdout\nconnectTimeout: soon\n").expect("written");
    let ran = with(&path);
    ran.says(1, &["MeshConfig mesh spec.connectTimeout", "settings.yaml:2:1", "such as 5s"]);
    assert!(ran.out.contains("\"10s\""), "the default stays");
    std::fs::write(&path, "a: [").expect("written");
    with(&path).says(1, &["settings.yaml:1:", "not a YAML document"]);
    std::fs::write(&path, [0xff, 0xfe]).expect("written");
    with(&path).says(1, &["settings.yaml:1:1", "not UTF-8"]);
    with(&settings.path().join("none.yaml")).says(1, &["none.yaml", "No such file"]);
}

#[test]
fn given_each_format_then_standard_output_is_a_document_of_it() {
    let folder = Folder::with("mesh.yaml", MESH);
    folder.render(&["-o", "json"]).dump();
    let yaml = folder.render(&["-o", "yaml"]);
    assert!(yaml.out.starts_with("configs:\n"), "{}", yaml.out);
    let table = folder.render(&["-o", "table"]);
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(
        lines[0].trim_start().starts_with("TYPE") && lines[0].contains("FROM"),
        "{}",
        table.out
    );
    let host =
        lines.iter().find(|l| l.contains("http.8080/shop.example.com")).expect("a virtual host");
    assert!(host.contains("VirtualService edge/shop") && host.contains("mesh.yaml:"), "{host}");
    folder.render(&["-o", "xml"]).says(2, &["xml", "json, yaml, table"]);
}

#[test]
fn given_the_same_files_then_the_output_is_the_same_bytes() {
    let folder = Folder::with("mesh.yaml", MESH);
    assert_eq!(folder.render(&[]).out, folder.render(&[]).out);
}

#[test]
fn given_a_sidecar_then_its_interception_mode_decides_what_it_opens() {
    let folder = Folder::with("mesh.yaml", MESH);
    let node = "sidecar~10.0.0.9~web-1.edge~edge.svc.cluster.local";
    let captured = folder.run(&["render", "-f", ".", "--node", node]).dump().to_string();
    assert!(captured.contains("virtualOutbound") && captured.contains("virtualInbound"));
    let args = ["render", "-f", ".", "--node", node, "--interception-mode", "NONE"];
    let alone = folder.run(&args).dump().to_string();
    assert!(alone.contains("127.0.0.1_80") && !alone.contains("virtualOutbound"), "{alone}");
}

#[test]
fn given_a_reader_that_leaves_early_then_nothing_is_said() {
    let folder = Folder::with("mesh.yaml", MESH);
    // More than a pipe holds.
    for i in 0..300 {
        folder.write(
            &format!("more-{i}.yaml"),
            MESH.replace("shop", &format!("shop-{i}"))
                .replace("name: edge,", &format!("name: edge-{i},")),
        );
    }
    let mut child = folder
        .command(&["render", "-f", ".", "--node", NODE, "--labels", "app=gw"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    assert_eq!(first, "{\n");
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert!(!ran.err.contains("pipe"), "{}", ran.err);
}
