//! VirtualService: which requests go where.
//!
//! In: the object. Out: one `RouteRules` row.
//!
//! **Invariant:** a condition that cannot be read drops its rule, never the condition alone.

mod schema;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    Destination, Forward, GatewayName, HeaderMatch, HttpAction, HttpMatch, HttpRule, PortRedirect,
    QueryMatch, Redirect, Rewrite, RouteRules, Source, StringMatch, TcpMatch, TcpRule, TlsMatch,
    TlsRule, UriRewrite, WeightedDestination,
};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::retries::Retries;
use super::{decode, nothing};
use crate::export_to::visibility;
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Type, parse_time};
use crate::text::{full_host, parse_block};
use schema::SPEC;

/// The kind.
pub(crate) struct VirtualService;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    hosts: Vec<Option<String>>,
    gateways: Vec<Option<String>>,
    http: Vec<Option<HttpRoute>>,
    tls: Vec<Option<TlsRoute>>,
    tcp: Vec<Option<TcpRoute>>,
    export_to: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HttpRoute {
    name: Option<String>,
    r#match: Vec<Match>,
    route: Vec<RouteDestination>,
    redirect: Option<HttpRedirect>,
    direct_response: Option<DirectResponse>,
    rewrite: Option<HttpRewrite>,
    timeout: Option<String>,
    retries: Option<Retries>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Match {
    name: Option<String>,
    uri: Option<Text>,
    method: Option<Text>,
    authority: Option<Text>,
    scheme: Option<Text>,
    headers: BTreeMap<String, Text>,
    without_headers: BTreeMap<String, Text>,
    query_params: BTreeMap<String, Text>,
    port: Option<u16>,
    ignore_uri_case: bool,
    #[serde(flatten)]
    source: Asker,
}

/// Who asks.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Asker {
    gateways: Vec<String>,
    source_namespace: Option<Arc<str>>,
    source_labels: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TlsRoute {
    r#match: Vec<ServerNameMatch>,
    route: Vec<RouteDestination>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ServerNameMatch {
    sni_hosts: Vec<String>,
    #[serde(flatten)]
    connection: ConnectionMatch,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TcpRoute {
    r#match: Vec<ConnectionMatch>,
    route: Vec<RouteDestination>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConnectionMatch {
    port: Option<u16>,
    destination_subnets: Vec<String>,
    source_subnet: Option<String>,
    #[serde(flatten)]
    source: Asker,
}

#[derive(Deserialize)]
struct DirectResponse {
    status: u16,
    body: Option<Body>,
}

#[derive(Deserialize)]
struct Body {
    string: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RouteDestination {
    destination: To,
    weight: Option<u32>,
}

#[derive(Deserialize)]
struct To {
    host: String,
    subset: Option<String>,
    port: Option<PortNumber>,
}

#[derive(Deserialize)]
struct PortNumber {
    number: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpRedirect {
    uri: Option<String>,
    authority: Option<String>,
    port: Option<u16>,
    derive_port: Option<String>,
    scheme: Option<String>,
    redirect_code: Option<u16>,
    prefix_rewrite: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpRewrite {
    uri: Option<String>,
    authority: Option<String>,
    uri_regex_rewrite: Option<RegexRewrite>,
}

#[derive(Deserialize)]
struct RegexRewrite {
    r#match: String,
    #[serde(default)]
    rewrite: String,
}

// === impl VirtualService ===

impl Kind for VirtualService {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec { hosts, gateways, http, tls, tcp, export_to } = spec;
        let owner = Arc::clone(&raw.owner);
        let namespace = &owner.namespace;
        let mut lowering = Lowering { owner: &owner, problems: &mut problems };
        let http = (0..).zip(http).filter_map(|(i, r)| lowering.rule(i, r?)).collect();
        let tls = (0..).zip(tls).filter_map(|(i, r)| lowering.tls_rule(i, r?)).collect();
        let tcp = (0..).zip(tcp).filter_map(|(i, r)| lowering.tcp_rule(i, r?)).collect();
        let rules = RouteRules {
            namespace: Arc::clone(namespace),
            created: raw.created,
            hosts: lowering.hosts(hosts),
            gateways: lowering.gateways(gateways),
            export_to: visibility(export_to.iter().map(String::as_str)).map(|v| v.of(namespace)),
            http,
            tls,
            tcp,
        };
        // Without a host that can be used there is nothing to apply rules to.
        let rows =
            if rules.hosts.is_empty() { vec![] } else { vec![Row::RouteRules(rules.into())] };
        (Change { owner: raw.owner, rows }, problems)
    }
}

struct Lowering<'a> {
    owner: &'a Arc<ObjectRef>,
    problems: &'a mut Vec<Problem>,
}

// === impl Lowering ===

impl Lowering<'_> {
    fn error(&mut self, field: &str, reason: Reason, message: impl Into<String>) {
        self.problems.push(Problem::error(self.owner, field, reason, message));
    }

    fn warning(&mut self, field: &str, message: &str) {
        self.problems.push(Problem::warning(self.owner, field, Reason::WrongType, message));
    }

    fn hosts(&mut self, hosts: Vec<Option<String>>) -> Vec<Arc<str>> {
        let mut out: Vec<Arc<str>> = Vec::new();
        if hosts.is_empty() {
            self.error("spec.hosts", Reason::Required, "must name at least one host");
        }
        for (index, host) in hosts.into_iter().enumerate() {
            let Some(host) = host else { continue };
            let full = full_host(&host, &self.owner.namespace);
            if out.contains(&full) {
                let field = format!("spec.hosts[{index}]");
                let message = format!("host {full} stands in the list twice; remove one");
                let problem = Problem::warning(self.owner, field, Reason::Duplicate, message);
                self.problems.push(problem);
                continue;
            }
            out.push(full);
        }
        out
    }

    fn gateways(&mut self, names: Vec<Option<String>>) -> Vec<GatewayName> {
        if names.is_empty() {
            return vec![GatewayName::Mesh];
        }
        let mut out = Vec::new();
        for name in names.into_iter().flatten() {
            let gateway = self.gateway(&name);
            if !out.contains(&gateway) {
                out.push(gateway);
            }
        }
        out
    }

    fn gateway(&self, name: &str) -> GatewayName {
        match name.split_once('/') {
            _ if name == "mesh" => GatewayName::Mesh,
            Some((namespace, name)) => {
                GatewayName::Gateway { namespace: Arc::from(namespace), name: Arc::from(name) }
            }
            None => GatewayName::Gateway {
                namespace: Arc::clone(&self.owner.namespace),
                name: Arc::from(name),
            },
        }
    }

    fn source(&self, asker: Asker) -> Source {
        let Asker { gateways, source_namespace, source_labels } = asker;
        Source {
            gateways: gateways.iter().map(|name| self.gateway(name)).collect(),
            namespace: source_namespace,
            labels: source_labels,
        }
    }

    fn connection(&self, condition: ConnectionMatch) -> TcpMatch {
        let ConnectionMatch { port, destination_subnets, source_subnet, source } = condition;
        let mut destinations: Vec<_> =
            destination_subnets.iter().filter_map(|text| parse_block(text)).collect();
        destinations.sort();
        destinations.dedup();
        let client = source_subnet.as_deref().and_then(parse_block);
        TcpMatch { port, destinations, client, source: self.source(source) }
    }

    fn tls_rule(&mut self, index: usize, rule: TlsRoute) -> Option<TlsRule> {
        let TlsRoute { r#match, route } = rule;
        let path = format!("spec.tls[{index}]");
        let mut matches = Vec::new();
        for (i, ServerNameMatch { sni_hosts, connection }) in r#match.into_iter().enumerate() {
            if sni_hosts.is_empty() {
                let field = format!("{path}.match[{i}].sniHosts");
                self.error(&field, Reason::Required, "must name at least one host");
                return None;
            }
            let mut server_names: Vec<Arc<str>> = Vec::new();
            for name in sni_hosts {
                let name = Arc::from(name.to_ascii_lowercase());
                if !server_names.contains(&name) {
                    server_names.push(name);
                }
            }
            matches.push(TlsMatch { server_names, connection: self.connection(connection) });
        }
        if matches.is_empty() || route.is_empty() {
            self.error(&path, Reason::Required, "needs a `match` with `sniHosts`, and a `route`");
            return None;
        }
        let destinations = self.split(&path, route)?;
        Some(TlsRule { field: Arc::from(path), matches, destinations })
    }

    fn tcp_rule(&mut self, index: usize, rule: TcpRoute) -> Option<TcpRule> {
        let TcpRoute { r#match, route } = rule;
        let path = format!("spec.tcp[{index}]");
        let matches = r#match.into_iter().map(|m| self.connection(m)).collect();
        if route.is_empty() {
            self.error(&path, Reason::Required, "needs a `route`");
            return None;
        }
        let destinations = self.split(&path, route)?;
        Some(TcpRule { field: Arc::from(path), matches, destinations })
    }

    fn rule(&mut self, index: usize, rule: HttpRoute) -> Option<HttpRule> {
        let HttpRoute {
            name,
            r#match,
            route,
            redirect,
            direct_response,
            rewrite,
            timeout,
            retries,
        } = rule;
        let path = format!("spec.http[{index}]");
        let field = |i: usize| format!("{path}.match[{i}]");
        let matches = (0..).zip(r#match).map(|(i, m)| self.condition(field(i), m)).collect();
        if let Some(DirectResponse { status, body }) = direct_response {
            if !route.is_empty() || redirect.is_some() {
                let message = "has `directResponse` beside `route` or `redirect`; keep one of them";
                self.error(&path, Reason::WrongType, message);
                return None;
            }
            let body = body.and_then(|b| b.string).map(Arc::from);
            let action = HttpAction::Respond { status, body };
            let name = name.map(Arc::from);
            return Some(HttpRule { field: Arc::from(path), name, matches, action });
        }
        let action = match (route.is_empty(), redirect) {
            (false, Some(_)) => {
                let message = "has both `route` and `redirect`; remove one of them";
                self.error(&path, Reason::WrongType, message);
                return None;
            }
            (true, None) => {
                self.error(
                    &path,
                    Reason::Required,
                    "needs a `route`, a `redirect` or a `directResponse`",
                );
                return None;
            }
            (true, Some(to)) => {
                let beside = [
                    ("rewrite", rewrite.is_some()),
                    ("timeout", timeout.is_some()),
                    ("retries", retries.is_some()),
                ];
                for (name, _) in beside.into_iter().filter(|(_, set)| *set) {
                    let message = "has no effect beside `redirect`; remove it";
                    self.warning(&format!("{path}.{name}"), message);
                }
                HttpAction::Redirect(self.redirect(&path, to)?)
            }
            (false, None) => HttpAction::Forward(Forward {
                destinations: self.split(&path, route)?,
                rewrite: self.rewrite(&path, rewrite)?,
                timeout: timeout.as_deref().and_then(parse_time).filter(|t| !t.is_zero()),
                retries: retries.map(Retries::lower),
            }),
        };
        Some(HttpRule { field: Arc::from(path), name: name.map(Arc::from), matches, action })
    }

    fn split(
        &mut self,
        path: &str,
        route: Vec<RouteDestination>,
    ) -> Option<Vec<WeightedDestination>> {
        let single = route.len() == 1;
        let sum: u64 = route.iter().map(|r| u64::from(r.weight.unwrap_or(0))).sum();
        if !single && sum == 0 {
            let message = "the weights add up to 0; give at least one destination a weight";
            self.error(&format!("{path}.route"), Reason::OutOfRange, message);
            return None;
        }
        if sum > u64::from(u32::MAX) {
            let message = format!("the weights add up to {sum}; {} is the most", u32::MAX);
            self.error(&format!("{path}.route"), Reason::OutOfRange, message);
            return None;
        }
        let destination = |(index, r): (usize, RouteDestination)| {
            let RouteDestination { destination: To { host, subset, port }, weight } = r;
            WeightedDestination {
                field: Arc::from(format!("{path}.route[{index}]")),
                destination: Destination {
                    host: full_host(&host, &self.owner.namespace),
                    subset: subset.filter(|s| !s.is_empty()).map(Arc::from),
                    port: port.and_then(|p| p.number),
                },
                // The only destination gets everything, whatever its weight says.
                weight: if single { 100 } else { weight.unwrap_or(0) },
            }
        };
        Some((0..).zip(route).map(destination).collect())
    }

    fn rewrite(&mut self, path: &str, rewrite: Option<HttpRewrite>) -> Option<Rewrite> {
        let Some(HttpRewrite { uri, authority, uri_regex_rewrite }) = rewrite else {
            return Some(Rewrite::default());
        };
        let uri = match (uri.filter(|u| !u.is_empty()), uri_regex_rewrite) {
            (Some(_), Some(_)) => {
                let message = "has both `uri` and `uriRegexRewrite`; remove one of them";
                self.error(&format!("{path}.rewrite"), Reason::WrongType, message);
                return None;
            }
            (Some(uri), None) => Some(UriRewrite::Matched(Arc::from(uri))),
            (None, Some(RegexRewrite { r#match, rewrite })) => Some(UriRewrite::Regex {
                pattern: Arc::from(r#match),
                substitution: Arc::from(rewrite),
            }),
            (None, None) => None,
        };
        Some(Rewrite { uri, authority: authority.filter(|a| !a.is_empty()).map(Arc::from) })
    }

    fn redirect(&mut self, path: &str, redirect: HttpRedirect) -> Option<Redirect> {
        let HttpRedirect {
            uri,
            authority,
            port,
            derive_port,
            scheme,
            redirect_code,
            prefix_rewrite,
        } = redirect;
        let code = redirect_code.unwrap_or(301);
        if ![301, 302, 303, 307, 308].contains(&code) {
            let field = format!("{path}.redirect.redirectCode");
            let message = format!("must be 301, 302, 303, 307 or 308, but is {code}");
            self.error(&field, Reason::OutOfRange, message);
            return None;
        }
        let given = |t: Option<String>| t.filter(|t| !t.is_empty()).map(Arc::from);
        let path = format!("{path}.redirect");
        let nothing = uri.is_none() && prefix_rewrite.is_none() && authority.is_none();
        if nothing && port.is_none() && derive_port.is_none() && scheme.is_none() {
            let message = "changes nothing, so clients would come back for ever; name a uri, an \
                           authority, a port or a scheme";
            self.error(&path, Reason::Required, message);
            return None;
        }
        if port.is_some() && derive_port.is_some() {
            let message = "has no effect beside `port`; remove one of the two";
            self.warning(&format!("{path}.derivePort"), message);
        }
        if uri.is_some() && prefix_rewrite.is_some() {
            let message = "has no effect beside `uri`; remove one of the two";
            self.warning(&format!("{path}.prefixRewrite"), message);
        }
        let port = match (port, derive_port.as_deref()) {
            (Some(number), _) => Some(PortRedirect::Number(number)),
            (None, Some("FROM_PROTOCOL_DEFAULT")) => Some(PortRedirect::ProtocolDefault),
            (None, Some(_)) => Some(PortRedirect::Request),
            (None, None) => None,
        };
        Some(Redirect {
            uri: given(uri),
            prefix_rewrite: given(prefix_rewrite),
            authority: given(authority),
            port,
            scheme: given(scheme),
            code,
        })
    }

    fn condition(&self, field: String, m: Match) -> HttpMatch {
        let Match {
            name,
            uri,
            method,
            authority,
            scheme,
            headers,
            without_headers,
            query_params,
            port,
            ignore_uri_case,
            source,
        } = m;
        let header = |name: &str, value: Text, invert| HeaderMatch {
            name: Arc::from(name.to_ascii_lowercase()),
            value: value.lower(),
            invert,
        };
        let mut all: Vec<HeaderMatch> = Vec::new();
        all.extend(method.map(|t| header(":method", t, false)));
        all.extend(authority.map(|t| header(":authority", t, false)));
        all.extend(scheme.map(|t| header(":scheme", t, false)));
        all.extend(headers.into_iter().map(|(name, value)| header(&name, value, false)));
        all.extend(without_headers.into_iter().map(|(name, value)| header(&name, value, true)));
        all.sort();
        HttpMatch {
            field: Arc::from(field),
            name: name.filter(|n| !n.is_empty()).map(Arc::from),
            path: uri.map(Text::lower),
            ignore_path_case: ignore_uri_case,
            headers: all,
            query: query_params
                .into_iter()
                .map(|(name, value)| QueryMatch { name: Arc::from(name), value: value.lower() })
                .collect(),
            port,
            source: self.source(source),
        }
    }
}

// === impl Text ===

impl Text {
    fn lower(self) -> StringMatch {
        match self {
            Self { exact: Some(text), .. } => StringMatch::Exact(Arc::from(text)),
            Self { prefix: Some(text), .. } if !text.is_empty() => {
                StringMatch::Prefix(Arc::from(text))
            }
            Self { regex: Some(text), .. } => StringMatch::Regex(Arc::from(text)),
            _ => StringMatch::Present,
        }
    }
}
