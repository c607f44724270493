//! `heddle validate`: exit code, messages as a compiler prints them, and documents for programs.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use super::{Folder, MESH, Ran};

#[test]
fn given_good_files_then_the_exit_code_is_0_and_one_line_says_what_was_looked_at() {
    let folder = Folder::with("a.yaml", MESH);
    folder.write("b.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n");
    let ran = folder.run(&["validate", "-f", "."]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.out, "3 objects in 2 files: no errors, no warnings\n");
}

#[test]
fn given_an_error_then_it_has_place_underline_and_help_and_the_exit_code_is_1() {
    let folder = Folder::with("mesh.yaml", MESH.replace("gateways: [edge]", "gatways: [edge]"));
    let ran = folder.run(&["validate", "-f", "mesh.yaml"]);
    let message = "\
error: VirtualService edge/shop spec.gatways: there is no such field
  --> mesh.yaml:13:3
   |
13 |   gatways: [edge]
   |   ^^^^^^^^^^^^^^^
   |
   = help: did you mean `gateways`?
";
    ran.says(1, &[message]);
    assert_eq!(ran.out, "3 objects in 1 file: 1 error, no warnings\n");
    assert!(!ran.err.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn given_a_reference_that_leads_nowhere_then_it_is_a_warning_and_the_exit_code_is_0() {
    let folder = Folder::with("mesh.yaml", MESH.replace("host: shop", "host: shoop"));
    let ran = folder.run(&["validate", "-f", "mesh.yaml"]);
    ran.says(
        0,
        &[
            "warning: VirtualService edge/shop spec.http[0].route[0].destination.host: \
             there is no service shoop.edge.svc.cluster.local",
            "mesh.yaml:15:",
            "= help: correct the host",
        ],
    );
    assert_eq!(ran.out, "3 objects in 1 file: no errors, 1 warning\n");
}

#[test]
fn given_standard_input_then_it_is_read_once_beside_files() {
    let folder = Folder::with("mesh.yaml", MESH);
    let rule = MESH.split("---\n").nth(1).expect("a rule").replace("name: shop", "name: other");
    let mut child = folder
        .command(&["validate", "-f", "-", "mesh.yaml", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(rule.replace("timeout", "x").replace("[edge]", "[edg]").as_bytes())
        .expect("ok");
    drop(stdin);
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    ran.says(0, &["there is no Gateway edge/edg", "--> <stdin>:6:14"]);
    assert!(ran.out.starts_with("4 objects in 2 files: no errors"), "{}", ran.out);
}

#[test]
fn given_a_format_then_standard_output_is_a_document_and_the_exit_code_the_same() {
    let folder = Folder::with("mesh.yaml", MESH.replace("number: 8080", "number: 80800"));
    let ran = folder.run(&["validate", "-f", ".", "-o", "json"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    let found: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(
        (&found["objects"], &found["files"], &found["errors"]),
        (&3.into(), &1.into(), &1.into())
    );
    let first = &found["problems"][0];
    assert_eq!(first["field"], "spec.servers[0].port.number");
    assert_eq!(
        (&first["kind"], &first["namespace"], &first["name"]),
        (&"Gateway".into(), &"edge".into(), &"edge".into())
    );
    assert_eq!((&first["severity"], &first["reason"]), (&"error".into(), &"OutOfRange".into()));
    assert!(first["file"].as_str().is_some_and(|f| f.ends_with("mesh.yaml")), "{first}");
    assert_eq!((&first["line"], first["help"].as_str().is_some()), (&6.into(), true));
    let yaml = folder.run(&["validate", "-f", ".", "-o", "yaml"]);
    assert!(yaml.code == Some(1) && yaml.out.starts_with("errors: 1\n"), "{}", yaml.out);
    let good = Folder::with("mesh.yaml", MESH).run(&["validate", "-f", ".", "-o", "json"]);
    let found: Value = serde_json::from_str(&good.out).expect("JSON");
    assert_eq!((good.code, &found["problems"]), (Some(0), &Value::Array(vec![])));
}

#[test]
fn given_what_cannot_be_read_then_it_is_an_error_and_the_rest_is_checked() {
    let folder = Folder::with("a.yaml", "kind: [\n");
    folder.write("b.yaml", MESH);
    let ran = folder.run(&["validate", "-f", "."]);
    ran.says(1, &["error: not a YAML document", "a.yaml:1:", "= help: correct the YAML"]);
    assert_eq!(ran.out, "3 objects in 2 files: 1 error, no warnings\n");
    folder.run(&["validate", "-f", "nowhere"]).says(1, &["nowhere", "No such file"]);
    folder.run(&["validate"]).says(2, &["--filename"]);
    Folder::new().run(&["validate", "-f", "."]).says(1, &["no file named .yaml"]);
    let settings = folder.write("settings", "connectTimeout: soon\n");
    let settings = settings.to_string_lossy();
    let ran = folder.run(&["validate", "-f", "b.yaml", "--mesh-config", &settings]);
    ran.says(1, &["spec.connectTimeout", "settings:1:1"]);
}
