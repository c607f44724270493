//! Objects that are bad: reported with file, line, field and advice, and nothing else stops.

use serde_json::Value;

use super::{Controller, Folder, MESH, service, until};

/// The problems of an object, waited for.
fn problems(controller: &Controller, name: &str) -> Vec<Value> {
    until(&format!("a problem of {name}"), || {
        let found = controller.configz();
        let objects = found["objects"].as_array()?;
        let of = objects.iter().filter(|o| o["name"] == name);
        let all: Vec<Value> =
            of.flat_map(|o| o["problems"].as_array().cloned().unwrap_or_default()).collect();
        (!all.is_empty()).then_some(all)
    })
}

#[test]
fn given_objects_that_are_bad_then_each_is_reported_and_the_others_are_in_force() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    for (field, spec) in [
        (
            "spec.http[0].route[0].weight",
            "{hosts: [bad.com], gateways: [edge], http: [{route: [{destination: {host: shop}, weight: -1}, {destination: {host: shop}, weight: 2}]}]}",
        ),
        (
            "spec.http[0].route[0].destination.host",
            "{hosts: [bad.com], gateways: [edge], http: [{route: [{destination: {host: nobody}}]}]}",
        ),
        (
            "spec.http[0].route[0].destination.subset",
            "{hosts: [bad.com], gateways: [edge], http: [{route: [{destination: {host: shop, subset: v9}}]}]}",
        ),
        (
            "spec.gateways[0]",
            "{hosts: [bad.com], gateways: [nowhere], http: [{route: [{destination: {host: shop}}]}]}",
        ),
        ("spec.hosts", "{hosts: bad.com}"),
    ] {
        let name = format!("bad-{}", field.len());
        folder.write("bad.yaml", format!("# a comment\n---\napiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: edge}}\nspec: {spec}\n"));
        let found = problems(&controller, &name);
        let fits = found.iter().find(|p| p["field"] == field);
        let problem = fits.unwrap_or_else(|| panic!("{field}: {found:?}"));
        assert_eq!(problem["line"], 6, "{problem}");
        assert!(problem["message"].as_str().is_some_and(|m| m.len() > 10), "{problem}");
        controller.is_content();
    }
    let metrics = controller.public("/metrics").1;
    let errors = metrics.lines().find(|l| l.starts_with("heddle_problems{severity=\"error\"}"));
    assert!(errors.is_some_and(|l| !l.ends_with(" 0")), "{errors:?}");
}

#[test]
fn given_documents_that_are_no_objects_of_ours_then_file_line_and_field_are_named() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    for (text, says) in [
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n",
            "kind: there is no kind VirtualServise",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "metadata.name: is required"),
        ("just a text\n", "no object"),
        ("apiVersion: v1\nkind: List\nitems: 7\n", "items: must be a list"),
    ] {
        folder.write("bad.yaml", format!("---\n{text}"));
        controller.complains(&["bad.yaml:", says]);
        assert_eq!(controller.names().len(), 4, "the others are in force");
    }
    folder.write("bad.yaml", "");
    controller.is_content();
}

#[test]
fn given_one_object_in_two_files_then_both_are_named_and_the_first_by_path_is_in_force() {
    let folder = Folder::with("b.yaml", service("x"));
    let controller = Controller::on(folder.path());
    folder.write("a.yaml", service("x"));
    controller.complains(&["b.yaml:1", "Service default/x stands in", "a.yaml", "remove one"]);
    let found = controller.configz();
    assert!(found["objects"][0]["file"].as_str().is_some_and(|f| f.ends_with("a.yaml")), "{found}");
    std::fs::remove_file(folder.path().join("a.yaml")).expect("deleted");
    controller.is_content();
    controller.has(&["x"]);
    folder.write("b.yaml", format!("{}---\n{}", service("x"), service("x")));
    controller.complains(&["b.yaml:6", "twice"]);
}
