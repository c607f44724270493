//! MeshConfig, bare and as an object: a setting that cannot be read keeps its default.

use std::sync::Arc;
use std::time::Duration;

use model::rows::{DefaultVisibility, Mesh};
use model::{Problem, Reason, Row};

use super::{assert_clear, faults, lower};

fn object(spec: &str) -> String {
    format!(
        "apiVersion: heddle.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n"
    )
}

fn bare(text: &str) -> (Mesh, Vec<Problem>) {
    let raw = config::read_mesh_config(&Arc::from("test"), text).expect(text);
    let (change, problems) = config::lower(raw);
    mesh(change.rows, problems)
}

fn mesh(rows: Vec<Row>, problems: Vec<Problem>) -> (Mesh, Vec<Problem>) {
    assert_clear(&problems);
    match rows.into_iter().next() {
        Some(Row::Mesh(mesh)) => (Arc::unwrap_or_clone(mesh), problems),
        other => panic!("{other:?} {problems:?}"),
    }
}

#[test]
fn given_settings_bare_or_as_an_object_then_they_mean_the_same() {
    let settings = "{rootNamespace: mesh-root, connectTimeout: 3s, accessLogFile: /dev/stdout, \
                    defaultHttpRetryPolicy: {attempts: 5}, proxyHttpPort: 0}";
    let (rows, problems) = lower(&object(settings));
    let (as_object, problems) = mesh(rows, problems);
    assert_eq!(problems, []);
    assert_eq!(bare(settings), (as_object.clone(), vec![]));
    assert_eq!(bare(&object(settings)), (as_object.clone(), vec![]));
    assert_eq!(as_object.connect_timeout, Duration::from_secs(3));
    assert_eq!((&*as_object.root_namespace, as_object.default_retry.attempts), ("mesh-root", 5));
}

#[test]
fn given_a_setting_that_cannot_be_read_then_it_keeps_its_default_and_the_others_count() {
    for (setting, field) in [
        ("rootNamespace: 7", "spec.rootNamespace"),
        ("rootNamespace: 'a b'", "spec.rootNamespace"),
        ("connectTimeout: 0s", "spec.connectTimeout"),
        ("connectTimeout: soon", "spec.connectTimeout"),
        ("defaultHttpRetryPolicy: {attempts: -2}", "spec.defaultHttpRetryPolicy.attempts"),
        ("defaultHttpRetryPolicy: 3", "spec.defaultHttpRetryPolicy"),
        ("connectTimeOut: 3s", "spec.connectTimeOut"),
        ("trustDomain: 'a b'", "spec.trustDomain"),
    ] {
        let (found, problems) = bare(&format!("{{{setting}, accessLogFile: /x}}"));
        let expected = Mesh { access_log_file: Some("/x".into()), ..Mesh::default() };
        assert_eq!(found, expected, "{setting}");
        assert_eq!((problems.len(), problems[0].field.as_str()), (1, field), "{problems:?}");
    }
}

#[test]
fn given_an_empty_file_then_every_setting_has_its_default() {
    for text in ["", "---\n", "# nothing\n", "{}"] {
        assert_eq!(bare(text), (Mesh::default(), vec![]), "{text:?}");
    }
}

#[test]
fn given_another_kind_then_it_is_refused_with_advice() {
    let text = "apiVersion: v1\nkind: ConfigMap\ndata: {mesh: ''}\n";
    let error = config::read_mesh_config(&Arc::from("test"), text).expect_err("a ConfigMap");
    assert_eq!(error.at.line, 2);
    assert!(error.message.contains("settings alone"), "{error}");
}

#[test]
fn given_settings_that_are_no_object_then_nothing_is_in_force() {
    for text in ["[1]", "seven"] {
        let raw = config::read_mesh_config(&Arc::from("test"), text).expect("YAML");
        let (change, problems) = config::lower(raw);
        assert!(change.rows.is_empty());
        assert_eq!(faults(&problems), [("spec", Reason::WrongType)]);
    }
}

#[test]
fn given_an_object_of_another_name_then_it_has_no_effect() {
    let (rows, problems) =
        lower(&object("{connectTimeout: 1s}").replace("name: mesh", "name: other"));
    assert!(rows.is_empty());
    assert_eq!(faults(&problems), [("metadata.name", Reason::WrongType)]);
}

#[test]
fn given_default_visibilities_then_each_is_that_of_its_kind() {
    let (mesh, problems) = bare(
        "{defaultVirtualServiceExportTo: [.], defaultDestinationRuleExportTo: [., edge], \
         defaultServiceExportTo: ['~']}",
    );
    assert_eq!(problems, []);
    let sees = |default: &DefaultVisibility| {
        let visibility = default.of(&"shop".into());
        ["shop", "edge", "a"].map(|client| visibility.sees(client))
    };
    assert_eq!(sees(&mesh.rules_export_to), [true, false, false]);
    assert_eq!(sees(&mesh.policies_export_to), [true, true, false]);
    assert_eq!(sees(&mesh.services_export_to), [false, false, false]);
    let (mesh, problems) =
        bare("{defaultServiceExportTo: [], defaultVirtualServiceExportTo: ['*']}");
    assert_eq!((mesh, problems), (Mesh::default(), vec![]));
}

#[test]
fn given_a_default_visibility_that_cannot_be_read_then_it_is_the_own_namespace() {
    for (entries, field) in [
        ("['*', 'a b']", "spec.defaultServiceExportTo[1]"),
        ("[~]", "spec.defaultServiceExportTo[0]"),
        ("edge", "spec.defaultServiceExportTo"),
    ] {
        let (found, problems) = bare(&format!("{{defaultServiceExportTo: {entries}}}"));
        let services_export_to = DefaultVisibility::own();
        assert_eq!(found, Mesh { services_export_to, ..Mesh::default() }, "{entries}");
        assert_eq!(faults(&problems), [(field, Reason::WrongType)]);
    }
}
