//! A proxy that a script plays, against a session without a wire and without a clock.

use std::sync::Arc;
use std::time::Duration;

use xds::{
    DeltaRequest, EncodedResource, Layer, LayerEdit, Notice, Publication, ResourceRef,
    ResourceType, Response, ScopeId, ScopeView, Session, Settings, TypeStatus,
};

pub(crate) use ResourceType::{
    Cluster as Cds, Endpoints as Eds, Listener as Lds, RouteConfiguration as Rds, Secret as Sds,
    VirtualHost as Vhds,
};

/// A resource in its n-th version.
pub(crate) fn resource(resource_type: ResourceType, name: &str, n: u32) -> EncodedResource {
    refers(resource_type, name, n, &[])
}

/// A resource that refers to others.
pub(crate) fn refers(
    resource_type: ResourceType,
    name: &str,
    n: u32,
    to: &[(ResourceType, &str)],
) -> EncodedResource {
    let refs = to.iter().map(|(t, name)| ResourceRef::new(*t, *name));
    let body = format!("{name} {n} {to:?}");
    EncodedResource::new(resource_type, name, body.as_bytes(), refs.collect())
}

/// A virtual host with domains, routing to clusters.
pub(crate) fn host(name: &str, n: u32, domains: &[&str], clusters: &[&str]) -> EncodedResource {
    let refs = clusters.iter().map(|c| ResourceRef::new(Cds, *c)).collect();
    let body = format!("{name} {n} {domains:?} {clusters:?}");
    EncodedResource::new(Vhds, name, body.as_bytes(), refs)
        .with_claims(domains.iter().map(|d| Arc::from(*d)).collect())
}

pub(crate) fn view(resources: impl IntoIterator<Item = EncodedResource>) -> Arc<ScopeView> {
    Arc::new(ScopeView::new(resources.into_iter().map(Arc::new)))
}

/// A view with its one layer edited.
pub(crate) fn edited(
    view: &ScopeView,
    edit: impl FnOnce(LayerEdit) -> LayerEdit,
) -> Arc<ScopeView> {
    let layer = view.layers().first().map_or_else(|| Layer::default().edit(), |l| l.edit());
    Arc::new(ScopeView::of(vec![Arc::new(edit(layer).build())]))
}

pub(crate) fn publication(revision: u64, view: Arc<ScopeView>) -> Publication {
    Publication { revision, scopes: Arc::new([(ScopeId(0), view)].into()) }
}

/// The version text of a resource, as a reconnecting proxy reports it.
pub(crate) fn held(resources: &[EncodedResource]) -> Vec<(String, String)> {
    let held = resources.iter();
    held.map(|r| (r.name().to_string(), r.version().to_string())).collect()
}

/// The scripted proxy.
pub(crate) struct Proxy {
    pub(crate) session: Session,
    pub(crate) now: Duration,
    view: Arc<ScopeView>,
}

impl Proxy {
    /// A new stream in a scope that offers these resources.
    pub(crate) fn offered(resources: impl IntoIterator<Item = EncodedResource>) -> Self {
        Self::with(Settings::default(), resources)
    }

    pub(crate) fn with(
        settings: Settings,
        resources: impl IntoIterator<Item = EncodedResource>,
    ) -> Self {
        let mut session = Session::new(settings);
        let view = view(resources);
        session.on_view(Duration::ZERO, &view);
        Self { session, now: Duration::from_secs(60), view }
    }

    /// A new stream to which the scope's resources are already known: asked and acknowledged.
    pub(crate) fn settled(resources: impl IntoIterator<Item = EncodedResource>) -> Self {
        let mut proxy = Self::offered(resources);
        for resource_type in ResourceType::ALL {
            let offered = proxy.view.resources(resource_type).map(|(name, _)| name);
            let names: Vec<_> = offered.map(|n| n.to_string()).collect();
            if resource_type.is_wildcard_capable() {
                proxy.ask(resource_type, &[]);
            } else if !names.is_empty() {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                proxy.ask(resource_type, &names);
            }
            proxy.ack_all();
        }
        proxy
    }

    pub(crate) fn request(&mut self, resource_type: ResourceType, request: DeltaRequest) {
        self.session.on_request(self.now, resource_type, request);
    }

    /// Subscribe.
    pub(crate) fn ask(&mut self, resource_type: ResourceType, names: &[&str]) {
        let subscribe = names.iter().map(|n| n.to_string()).collect();
        let request = DeltaRequest { subscribe, ..DeltaRequest::default() };
        self.request(resource_type, request);
    }

    /// Unsubscribe.
    pub(crate) fn drop_names(&mut self, resource_type: ResourceType, names: &[&str]) {
        let unsubscribe = names.iter().map(|n| n.to_string()).collect();
        let request = DeltaRequest { unsubscribe, ..DeltaRequest::default() };
        self.request(resource_type, request);
    }

    /// The first request after a reconnect.
    pub(crate) fn reconnect(
        &mut self,
        resource_type: ResourceType,
        names: &[&str],
        holding: &[EncodedResource],
    ) {
        let request = DeltaRequest {
            subscribe: names.iter().map(|n| n.to_string()).collect(),
            initial_resource_versions: held(holding),
            ..DeltaRequest::default()
        };
        self.request(resource_type, request);
    }

    pub(crate) fn ack(&mut self, response: &Response) {
        self.answer(response, None);
    }

    pub(crate) fn nack(&mut self, response: &Response, error: &str) {
        self.answer(response, Some(error.to_owned()));
    }

    fn answer(&mut self, response: &Response, error: Option<String>) {
        let request =
            DeltaRequest { nonce: response.nonce.clone(), error, ..DeltaRequest::default() };
        self.request(response.resource_type, request);
    }

    /// Change what the scope offers.
    pub(crate) fn publish(&mut self, edit: impl FnOnce(LayerEdit) -> LayerEdit) {
        self.view = edited(&self.view, edit);
        self.session.on_view(self.now, &self.view);
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.session.on_timer(self.now);
    }

    /// Everything that is written now.
    pub(crate) fn written(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    /// Accept everything until nothing more comes; the responses in order.
    pub(crate) fn ack_all(&mut self) -> Vec<Response> {
        let mut all = Vec::new();
        loop {
            let responses = self.written();
            if responses.is_empty() {
                return all;
            }
            responses.iter().for_each(|r| self.ack(r));
            all.extend(responses);
        }
    }

    /// Exactly one response is written now, with these added and removed names.
    #[track_caller]
    pub(crate) fn gets(
        &mut self,
        resource_type: ResourceType,
        added: &[&str],
        removed: &[&str],
    ) -> Response {
        let mut written = self.written();
        assert_eq!(
            shape(&written),
            [(resource_type, names(added), names(removed))],
            "what is written"
        );
        written.remove(0)
    }

    #[track_caller]
    pub(crate) fn is_silent(&mut self) {
        assert_eq!(shape(&self.written()), [], "nothing is written");
    }

    pub(crate) fn holds(&self, resource_type: ResourceType) -> Vec<String> {
        let held = self.session.held(resource_type);
        held.keys().map(|name| name.to_string()).collect()
    }

    pub(crate) fn status(&self, resource_type: ResourceType) -> TypeStatus {
        let status = self.session.status(self.now);
        let of_type = |s: &TypeStatus| s.resource_type == resource_type;
        status.into_iter().find(of_type).expect("asked for")
    }

    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        self.session.take_notices()
    }
}

/// Type, added and removed names of each response.
pub(crate) fn shape(responses: &[Response]) -> Vec<(ResourceType, Vec<String>, Vec<String>)> {
    let shape = |r: &Response| {
        let added = r.resources.iter().map(|r| r.name().to_string()).collect();
        let removed = r.removed.iter().map(|n| n.to_string()).collect();
        (r.resource_type, added, removed)
    };
    responses.iter().map(shape).collect()
}

pub(crate) fn types(responses: &[Response]) -> Vec<ResourceType> {
    responses.iter().map(|r| r.resource_type).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}
