//! The state-of-the-world variant (R22, R31–R42, R44).

use std::sync::Arc;
use std::time::Duration;

use xds::{EncodedResource, LayerEdit, ResourceType, Response, ScopeView, Settings, SotwRequest};

use super::dsl::*;

struct Client {
    session: xds::SotwSession,
    view: Arc<ScopeView>,
}

impl Client {
    fn offered(resources: impl IntoIterator<Item = EncodedResource>) -> Self {
        let mut session = xds::SotwSession::new(Settings::default());
        let view = view(resources);
        session.on_view(Duration::ZERO, &view);
        Self { session, view }
    }

    fn ask(&mut self, resource_type: ResourceType, names: &[&str]) {
        self.answer(resource_type, "", names, None);
    }

    fn ack(&mut self, response: &Response, names: &[&str]) {
        self.answer(response.resource_type, &response.nonce, names, None);
    }

    fn nack(&mut self, response: &Response, names: &[&str]) {
        self.answer(response.resource_type, &response.nonce, names, Some("no"));
    }

    fn answer(
        &mut self,
        resource_type: ResourceType,
        nonce: &str,
        names: &[&str],
        error: Option<&str>,
    ) {
        let request = SotwRequest {
            names: names.iter().map(|n| n.to_string()).collect(),
            nonce: nonce.to_owned(),
            error: error.map(str::to_owned),
        };
        self.session.on_request(Duration::ZERO, resource_type, request);
    }

    fn publish(&mut self, edit: impl FnOnce(LayerEdit) -> LayerEdit) {
        self.view = edited(&self.view, edit);
        self.session.on_view(Duration::ZERO, &self.view);
    }

    fn written(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    #[track_caller]
    fn gets(&mut self, resource_type: ResourceType, names: &[&str]) -> Response {
        let mut written = self.written();
        let names = names.iter().map(|n| n.to_string()).collect();
        assert_eq!(shape(&written), [(resource_type, names, vec![])]);
        written.remove(0)
    }

    #[track_caller]
    fn is_silent(&mut self) {
        assert_eq!(shape(&self.written()), []);
    }
}

fn clusters(names: &[&str]) -> Vec<EncodedResource> {
    names.iter().map(|n| resource(Cds, n, 1)).collect()
}

#[test]
fn r22_names_that_come_with_a_rejection_are_answered() {
    let mut client = Client::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    client.ask(Eds, &["a"]);
    let response = client.gets(Eds, &["a"]);
    client.ack(&response, &["a"]);
    client.publish(|v| v.set(resource(Eds, "a", 2)));
    let response = client.gets(Eds, &["a"]);
    client.nack(&response, &["b"]);
    client.gets(Eds, &["b"]);
    // `a` is no longer asked for, so its next version is nobody's business.
    client.publish(|v| v.set(resource(Eds, "a", 3)));
    client.is_silent();
}

#[test]
fn r31_a_first_request_without_names_means_everything() {
    let mut client = Client::offered(clusters(&["a", "b"]));
    client.ask(Cds, &[]);
    let response = client.gets(Cds, &["a", "b"]);
    client.ack(&response, &[]);
    client.is_silent();
}

#[test]
fn r32_after_names_were_given_an_empty_list_means_nothing() {
    let mut client = Client::offered(clusters(&["A", "b"]));
    client.ask(Cds, &[]);
    let response = client.gets(Cds, &["A", "b"]);
    client.ack(&response, &["*", "A"]);
    let response = client.gets(Cds, &["A", "b"]);
    client.ack(&response, &["A"]);
    client.is_silent();
    client.publish(|v| v.set(resource(Cds, "b", 2)));
    client.is_silent();
    client.ack(&response, &[]);
    client.publish(|v| v.set(resource(Cds, "A", 2)));
    client.is_silent();
}

#[test]
fn r33_an_empty_list_of_a_child_type_subscribes_to_nothing() {
    let mut client = Client::offered([resource(Eds, "a", 1)]);
    client.ask(Eds, &[]);
    client.is_silent();
    client.publish(|v| v.set(resource(Eds, "a", 2)));
    client.is_silent();
}

#[test]
fn r34_a_client_that_drops_its_last_listener_hears_nothing_more() {
    let mut client = Client::offered([resource(Lds, "A", 1)]);
    client.ask(Lds, &["A"]);
    let response = client.gets(Lds, &["A"]);
    client.ack(&response, &[]);
    client.publish(|v| v.set(resource(Lds, "A", 2)));
    client.is_silent();
}

#[test]
fn r35_a_newly_named_cluster_comes_with_those_named_before() {
    let mut client = Client::offered(clusters(&["a", "b"]));
    client.ask(Cds, &["a"]);
    let response = client.gets(Cds, &["a"]);
    client.ack(&response, &["a", "b"]);
    client.gets(Cds, &["a", "b"]);
}

#[test]
fn r36_a_newly_named_child_is_sent() {
    let mut client = Client::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    client.ask(Eds, &["a"]);
    let response = client.gets(Eds, &["a"]);
    client.ack(&response, &["a", "b"]);
    client.gets(Eds, &["b"]);
}

#[test]
fn r37_a_name_dropped_and_asked_for_again_is_sent_again() {
    let mut client = Client::offered([resource(Eds, "a", 1)]);
    client.ask(Eds, &["a"]);
    let response = client.gets(Eds, &["a"]);
    client.ack(&response, &["a"]);
    client.ack(&response, &[]);
    client.ack(&response, &["a"]);
    client.gets(Eds, &["a"]);
}

#[test]
fn r38_one_changed_cluster_brings_all() {
    let mut client = Client::offered(clusters(&["a", "b", "c"]));
    client.ask(Cds, &[]);
    let response = client.gets(Cds, &["a", "b", "c"]);
    client.ack(&response, &[]);
    client.publish(|v| v.set(resource(Cds, "b", 2)));
    client.gets(Cds, &["a", "b", "c"]);
}

#[test]
fn r39_a_removed_cluster_is_missing_in_the_next_full_set_down_to_the_empty_one() {
    let mut client = Client::offered(clusters(&["a", "b"]));
    client.ask(Cds, &[]);
    let response = client.gets(Cds, &["a", "b"]);
    client.ack(&response, &[]);
    client.publish(|v| v.remove(Cds, "a"));
    let response = client.gets(Cds, &["b"]);
    client.ack(&response, &[]);
    client.publish(|v| v.remove(Cds, "b"));
    let response = client.gets(Cds, &[]);
    client.ack(&response, &[]);
    client.is_silent();
}

#[test]
fn r40_a_removed_child_is_silent() {
    let mut client = Client::offered([resource(Rds, "r", 1)]);
    client.ask(Rds, &["r"]);
    let response = client.gets(Rds, &["r"]);
    client.ack(&response, &["r"]);
    client.publish(|v| v.remove(Rds, "r"));
    client.is_silent();
    client.publish(|v| v.set(resource(Rds, "r", 1)));
    client.gets(Rds, &["r"]);
}

#[test]
fn r41_a_missing_name_does_not_loop_and_is_sent_when_created() {
    let mut client = Client::offered([]);
    client.ask(Rds, &["r"]);
    client.is_silent();
    client.ask(Lds, &["l"]);
    let response = client.gets(Lds, &[]);
    client.ack(&response, &["l"]);
    client.is_silent();
    client.publish(|v| v.set(resource(Rds, "r", 1)).set(resource(Lds, "l", 1)));
    let mut written = shape(&client.written());
    written.sort();
    assert_eq!(written, [(Lds, vec!["l".to_owned()], vec![]), (Rds, vec!["r".to_owned()], vec![])]);
}

#[test]
fn r42_a_wildcard_without_resources_is_answered_at_once() {
    let mut client = Client::offered([]);
    client.ask(Lds, &[]);
    client.gets(Lds, &[]);
}

#[test]
fn r44_names_with_a_stale_nonce_are_honoured_with_the_next_push() {
    let mut client = Client::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    client.ask(Eds, &["a"]);
    client.gets(Eds, &["a"]);
    client.answer(Eds, "stale", &["a", "b"], None);
    client.is_silent();
    client.publish(|v| v.set(resource(Lds, "l", 1)));
    client.gets(Eds, &["b"]);
}

#[test]
fn r25_suspects_are_sent_one_after_the_other_with_the_good_set() {
    let mut client = Client::offered(clusters(&["a"]));
    client.ask(Cds, &[]);
    let response = client.gets(Cds, &["a"]);
    client.ack(&response, &[]);
    client.publish(|v| v.set(resource(Cds, "b", 1)).set(resource(Cds, "c", 1)));
    let response = client.gets(Cds, &["a", "b", "c"]);
    client.nack(&response, &[]);
    let response = client.gets(Cds, &["a", "b"]);
    client.ack(&response, &[]);
    let response = client.gets(Cds, &["a", "b", "c"]);
    client.nack(&response, &[]);
    let response = client.gets(Cds, &["a", "b", "c"]);
    assert_eq!(&response.resources[2].body()[..], b"\x0a\x01c");
    client.ack(&response, &[]);
    client.is_silent();
}

#[test]
fn r65_there_is_no_state_of_the_world_of_virtual_hosts() {
    let mut client = Client::offered([resource(Rds, "80", 1), host("80/a", 1, &["a"], &[])]);
    client.ask(Vhds, &["80/a"]);
    client.is_silent();
    client.publish(|v| v.set(host("80/a", 2, &["a"], &[])));
    client.is_silent();
}

#[test]
fn r69_one_change_of_all_types_goes_out_in_push_order() {
    let all = [(Cds, "c"), (Eds, "c"), (Lds, "l"), (Rds, "r")];
    let mut client = Client::offered(all.map(|(t, n)| resource(t, n, 1)));
    for (resource_type, name) in all {
        let names = [name];
        let names: &[&str] = if resource_type.is_wildcard_capable() { &[] } else { &names };
        client.ask(resource_type, names);
        for response in client.written() {
            client.ack(&response, names);
        }
    }
    client.publish(|v| all.into_iter().rev().fold(v, |v, (t, n)| v.set(resource(t, n, 2))));
    assert_eq!(types(&client.written()), [Cds, Eds, Lds, Rds]);
}
