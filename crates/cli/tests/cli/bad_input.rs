//! `heddle render` with files that are bad: each message names object, field, place and remedy,
//! and what is good is printed all the same.

use super::{Folder, MESH, NODE};

#[test]
fn given_a_path_that_does_not_exist_then_it_is_named() {
    let ran = Folder::new().run(&["render", "-f", "nowhere", "--node", NODE]);
    ran.says(1, &["error", "nowhere", "No such file"]);
    assert_eq!(ran.out, "");
}

#[test]
fn given_arguments_that_are_missing_or_wrong_then_usage_is_shown() {
    let folder = Folder::with("mesh.yaml", MESH);
    folder.run(&["render", "--node", NODE]).says(2, &["--filename"]);
    folder.run(&["render", "-f", "."]).says(2, &["--node"]);
    for (node, why) in [
        ("gateway", "four parts"),
        ("proxy~10.0.0.1~a.b~b.svc.cluster.local", "sidecar or router"),
        ("router~10.0.0.1~a~", "no namespace"),
        ("router~10.0.0.1~.b~b.svc.cluster.local", "must not be empty"),
        ("", "four parts"),
    ] {
        folder.run(&["render", "-f", ".", "--node", node]).says(1, &["--node", why]);
    }
    for labels in ["app", "=gw", "a=b,c"] {
        let ran = folder.run(&["render", "-f", ".", "--node", NODE, "--labels", labels]);
        ran.says(1, &["--labels takes KEY=VALUE"]);
    }
}

#[test]
fn given_an_error_then_it_has_file_line_and_caret_and_the_rest_is_printed() {
    let folder = Folder::with("mesh.yaml", MESH.replace("gateways: [edge]", "gatways: [edge]"));
    let ran = folder.render(&[]);
    ran.says(
        1,
        &[
            "error: VirtualService edge/shop spec.gatways: there is no such field",
            "did you mean `gateways`?",
            "mesh.yaml:13:3",
            "13 |   gatways: [edge]",
            "^^^^^^^",
        ],
    );
    ran.dump();
    assert_eq!(ran.err.matches("spec.gatways").count(), 1, "{}", ran.err);
}

#[test]
fn given_warnings_only_then_the_exit_code_is_0() {
    let folder =
        Folder::with("mesh.yaml", MESH.replace("  - route:", "  - mirrors: []\n    route:"));
    let ran = folder.render(&[]);
    ran.says(0, &["warning: VirtualService edge/shop spec.http[0].mirrors", "has no effect"]);
    ran.dump();
}

#[test]
fn given_several_problems_then_they_are_printed_once_in_order_of_file_and_line() {
    let folder = Folder::with("b.yaml", MESH.replace("host: shop", "host: nobody"));
    folder.write("a.yaml", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec:\n  host: x\n  trafficPolicy:\n    outlierDetection: {interval: 5}\n  subsets: [{name: a}, {name: a}]\n---\nkind: [\n");
    let ran = folder.render(&[]);
    let places: Vec<&str> = ran.err.lines().filter_map(|l| l.trim().strip_prefix("--> ")).collect();
    let mut sorted = places.clone();
    sorted.sort_by_key(|place| {
        let mut parts = place.split(':');
        let file = parts.next().map(str::to_owned);
        (file, parts.next().and_then(|line| line.parse::<u32>().ok()))
    });
    assert!(places.len() >= 4, "{}", ran.err);
    assert_eq!(places, sorted);
    let titles: Vec<&str> =
        ran.err.lines().filter(|l| l.starts_with("error") || l.starts_with("warning")).collect();
    let mut once = titles.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), titles.len(), "{}", ran.err);
}

#[test]
fn given_what_is_no_yaml_then_the_other_documents_and_files_count() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    for (bad, place, why) in [
        (b"kind: [\n".to_vec(), "bad.yaml:1:", "not a YAML document"),
        (b"a: b\n\xff\xfe\n".to_vec(), "bad.yaml:2:1", "not UTF-8 from here on"),
        (bomb.into_bytes(), "bad.yaml:", "aliases repeat more than"),
        (b"[".repeat(100_000), "bad.yaml:1:", "not a YAML document"),
        (b"a: &a [*a]\n".to_vec(), "bad.yaml:1:", "alias"),
        (b"a: 'x\n\n\n".to_vec(), "bad.yaml:", "not a YAML document"),
        (b"\0\0\0\0".to_vec(), "bad.yaml:1:", "not a YAML document"),
        (b"just a text\n".to_vec(), "bad.yaml:1:1", "no object"),
    ] {
        let folder = Folder::with("mesh.yaml", MESH);
        folder.write("bad.yaml", bad);
        let ran = folder.render(&[]);
        ran.says(1, &[place, why]);
        assert!(ran.dump().to_string().contains("shop.example.com"));
        assert!(ran.err.len() < 4000, "{} bytes of messages", ran.err.len());
    }
}

#[test]
fn given_bad_input_of_every_sort_then_each_message_names_object_and_field() {
    let rule = |spec: &str| {
        format!(
            "{MESH}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: bad, namespace: edge}}\nspec: {spec}\n"
        )
    };
    let to = |more: &str| {
        rule(&format!("{{hosts: [bad.example.com], gateways: [edge], http: [{more}]}}"))
    };
    for (text, says) in [
        (
            to(
                "{route: [{destination: {host: shop}, weight: -1}, {destination: {host: shop}, weight: 1}]}",
            ),
            "spec.http[0].route[0].weight: must be between 0",
        ),
        (
            to(
                "{route: [{destination: {host: shop}, weight: 0}, {destination: {host: shop}, weight: 0}]}",
            ),
            "spec.http[0].route: the weights add up to 0",
        ),
        (to("{route: [{destination: {host: nobody}}]}"), "spec.http[0].route[0].destination.host"),
        (to("{route: [{destination: {host: shop, subset: v9}}]}"), "v9"),
        (to("{route: [{destination: {host: shop, port: {number: 99}}}]}"), "99"),
        (
            rule(
                "{hosts: [bad.example.com], gateways: [nowhere], http: [{route: [{destination: {host: shop}}]}]}",
            ),
            "nowhere",
        ),
        (rule("{hosts: bad.example.com}"), "spec.hosts: must be a list"),
        (rule("seven"), "spec: must be an object"),
    ] {
        let folder = Folder::with("mesh.yaml", text);
        let ran = folder.render(&[]);
        assert!(
            ran.err.contains("VirtualService edge/bad") && ran.err.contains(says),
            "{says}:\n{}",
            ran.err
        );
        assert!(ran.err.contains("mesh.yaml:"), "{}", ran.err);
        assert!(ran.dump().to_string().contains("shop.example.com"), "the rest is in force");
    }
}

#[test]
fn given_a_document_of_an_unknown_kind_then_advice_is_given() {
    let folder = Folder::with(
        "a.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n",
    );
    folder.render(&[]).says(
        1,
        &["kind: there is no kind VirtualServise", "did you mean VirtualService?", "a.yaml:2:1"],
    );
}

#[test]
fn given_one_endless_line_then_the_message_stays_short() {
    let filler = "x".repeat(2_000_000);
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "a", "labels": {{"filler": "{filler}", "version": 1}}}}}}"#
    );
    let ran = Folder::with("a.json", text).render(&[]);
    ran.says(1, &["Service default/a metadata.labels.version", "quotes", "a.json:1:"]);
    assert!(ran.err.len() < 2000, "{} bytes", ran.err.len());
}

#[test]
fn given_a_large_file_full_of_problems_then_it_is_reported_in_reasonable_time() {
    let started = std::time::Instant::now();
    let one = |i: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec:\n  ports: [{{port: 0}}]\n---\n"
        )
    };
    let text: String = (0..5_000).map(one).collect();
    let ran = Folder::with("a.yaml", text).render(&[]);
    ran.says(1, &["s4999"]);
    println!("5000 problems printed in {:?}", started.elapsed());
}

#[cfg(unix)]
#[test]
fn given_a_circle_of_links_then_it_is_said() {
    let folder = Folder::with("below/mesh.yaml", MESH);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("below/up")).expect("a link");
    folder.render(&[]).says(1, &["circle of links"]);
}
