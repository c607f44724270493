//! What stands around the `spec`, and documents that are no objects.

use model::Reason;

use super::{faults, istio, lower, object, read};

#[test]
fn given_any_version_of_the_api_then_the_rows_are_equal() {
    for (kind, spec) in [
        ("VirtualService", "{hosts: [a.com], http: [{route: [{destination: {host: a}}]}]}"),
        ("DestinationRule", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}"),
        (
            "Gateway",
            "{selector: {a: b}, servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*']}]}",
        ),
    ] {
        let text = istio(kind, spec);
        let (rows, problems) = lower(&text);
        assert_eq!((rows.len(), &problems[..]), (1, &[][..]));
        for version in ["v1beta1", "v1alpha3"] {
            let (other, problems) = lower(&text.replace("io/v1", &format!("io/{version}")));
            assert_eq!((&other, &problems[..]), (&rows, &[][..]), "{kind} {version}");
        }
        let found = read(&text.replace("io/v1", "io/v2"));
        assert!(found.objects.is_empty());
        assert_eq!(found.problems[0].problem.field, "apiVersion");
        assert!(found.problems[0].problem.message.contains("v1beta1"));
    }
}

#[test]
fn given_a_document_that_is_no_object_then_the_next_one_is_read() {
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    for (bad, field, reason) in [
        ("just a text", "", Reason::Syntax),
        ("[1, 2]", "", Reason::Syntax),
        ("apiVersion: v1\n", "kind", Reason::Required),
        ("kind: Service\n", "apiVersion", Reason::Required),
        ("kind: [Service]\napiVersion: v1\n", "kind", Reason::Required),
        ("kind: Service\napiVersion: v1\n", "metadata.name", Reason::Required),
        ("kind: Service\napiVersion: v1\nmetadata: x\n", "metadata.name", Reason::Required),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: 7}\n",
            "metadata.name",
            Reason::WrongType,
        ),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: a b}\n",
            "metadata.name",
            Reason::WrongType,
        ),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: b, namespace: 7}\n",
            "metadata.namespace",
            Reason::WrongType,
        ),
        ("kind: Servise\napiVersion: v1\nmetadata: {name: a}\n", "kind", Reason::UnknownKind),
        ("kind: Service\napiVersion: v7\nmetadata: {name: a}\n", "apiVersion", Reason::UnknownKind),
        ("kind: Gateway\napiVersion: v1\nmetadata: {name: a}\n", "apiVersion", Reason::UnknownKind),
        ("kind: List\napiVersion: v1\nitems: none\n", "items", Reason::WrongType),
    ] {
        let found = read(&format!("{bad}\n---\n{good}"));
        assert_eq!((found.objects.len(), found.problems.len()), (1, 1), "{bad}: {found:?}");
        let problem = &found.problems[0].problem;
        assert_eq!((problem.field.as_str(), problem.reason), (field, reason), "{bad}");
    }
}

#[test]
fn given_what_is_none_of_our_business_then_nothing_is_said() {
    for foreign in [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n",
        "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\n",
        "# a comment\n",
        "~\n",
        "",
        "apiVersion: v1\nkind: List\n",
        "apiVersion: v1\nkind: PodList\nitems: []\n",
    ] {
        let found = read(foreign);
        assert!(found.objects.is_empty() && found.syntax.is_empty(), "{foreign}");
        assert_eq!(found.problems, [], "{foreign}");
    }
}

#[test]
fn given_a_kind_that_would_have_an_effect_elsewhere_then_it_is_named() {
    for (group, kind) in [
        ("networking.istio.io", "WorkloadGroup"),
        ("security.istio.io", "AuthorizationPolicy"),
        ("gateway.networking.k8s.io", "HTTPRoute"),
    ] {
        let found = read(&format!("apiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert_eq!(found.problems[0].problem.reason, Reason::NotSupported, "{kind}");
        assert!(found.problems[0].problem.message.contains(kind));
    }
}

#[test]
fn given_lists_within_lists_then_every_item_is_an_object() {
    let item =
        |name: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}}}");
    let list = format!(
        "{{apiVersion: v1, kind: List, items: [{}, {{apiVersion: v1, kind: ServiceList, items: [{}]}}, \
         {}, 7]}}",
        item("a"),
        item("b"),
        item("a"),
    );
    let found = read(&list);
    assert_eq!(found.objects.len(), 2);
    let reasons: Vec<_> = found.problems.iter().map(|p| p.problem.reason).collect();
    assert_eq!(reasons, [Reason::DuplicateObject, Reason::Syntax]);
}

#[test]
fn given_a_field_that_is_written_twice_then_the_first_counts_and_it_is_said() {
    let (rows, problems) = lower(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: '1', x: '2'}}\nspec: {ports: \
         [{port: 80, port: 81}]}\nspec: {}\n",
    );
    assert_eq!(rows.len(), 1);
    assert_eq!(
        faults(&problems),
        [
            ("metadata.labels.x", Reason::Duplicate),
            ("spec.ports[0].port", Reason::Duplicate),
            ("spec", Reason::Duplicate),
        ]
    );
    let (_, problems) = lower(&istio("DestinationRule", "{host: a}\nspec: {host: b}"));
    assert_eq!(faults(&problems), [("spec", Reason::Duplicate)]);
}

#[test]
fn given_a_label_that_is_no_text_then_it_is_said_how_to_write_it() {
    let (rows, problems) =
        lower("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {version: 1, app: web}}\n");
    assert_eq!(rows.len(), 1);
    assert_eq!(faults(&problems), [("metadata.labels.version", Reason::WrongType)]);
    assert!(problems[0].message.contains("quotes"), "{problems:?}");
    let (_, problems) = lower("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: [x]}\n");
    assert_eq!(faults(&problems), [("metadata.labels", Reason::WrongType)]);
}

#[test]
fn given_a_mistyped_top_level_field_then_it_is_named() {
    let text = istio("DestinationRule", "{host: a}").replace("spec:", "sepc:");
    let (rows, problems) = lower(&text);
    assert!(rows.is_empty());
    assert_eq!(faults(&problems), [("sepc", Reason::UnknownField), ("spec", Reason::Required)]);
    assert!(problems[0].message.contains("`spec`"), "{problems:?}");
}

#[test]
fn given_a_merge_key_then_it_is_said_that_it_has_no_effect() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &l {app: a}}\nspec: {selector: \
                {<<: *l, b: c}, ports: []}\n";
    let problems = config::lower(object(text)).1;
    assert!(
        faults(&problems).contains(&("spec.selector.<<", Reason::NotSupported)),
        "{problems:?}"
    );
    let spec = "{host: a, trafficPolicy: {<<: {loadBalancer: {simple: RANDOM}}}}";
    let (_, problems) = lower(&istio("DestinationRule", spec));
    assert_eq!(faults(&problems), [("spec.trafficPolicy.<<", Reason::UnknownField)]);
}
