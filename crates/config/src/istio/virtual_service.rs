//! VirtualService: which requests go where.
//!
//! In: the object. Out: one `RouteRules` row.
//!
//! **Invariant:** a condition that cannot be read drops its rule, never the condition alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    Destination, Forward, GatewayName, HeaderMatch, HttpAction, HttpMatch, HttpRule, PortRedirect,
    QueryMatch, Redirect, Rewrite, RouteRules, StringMatch, UriRewrite, WeightedDestination,
};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::retries::{RETRIES, Retries};
use super::{decode, nothing};
use crate::export_to::{EXPORT_TO, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::regex;
use crate::schema::{OnBad, Type, field, not_yet, parse_time};
use crate::text::{self, full_host};

/// The kind.
pub(crate) struct VirtualService;

/// None of the three means that the thing is there. One that is bad must not come to mean that.
const STRING_MATCH: Type = Type::OneOf(
    &[
        field("exact", Type::Checked(text::no_control)).or_parent(),
        field("prefix", Type::Checked(text::no_control)).or_parent(),
        field("regex", Type::Checked(regex::check)).or_parent(),
    ],
    true,
);

const PORT: Type = Type::Integer(1, 65_535);

/// Every condition is all-or-nothing: one that is bad or not supported takes its match along.
const MATCH: Type = Type::Strict(&[
    field("name", Type::Text),
    field("uri", STRING_MATCH).or_parent(),
    not_yet("scheme").or_parent(),
    field("method", STRING_MATCH).or_parent(),
    field("authority", STRING_MATCH).or_parent(),
    field("headers", Type::Map(text::header_name, &STRING_MATCH)).or_parent(),
    field("port", PORT).or_parent(),
    not_yet("sourceLabels").or_parent(),
    not_yet("gateways").or_parent(),
    field("queryParams", Type::Map(text::not_empty, &STRING_MATCH)).or_parent(),
    field("ignoreUriCase", Type::Bool).or_parent(),
    not_yet("withoutHeaders").or_parent(),
    not_yet("sourceNamespace").or_parent(),
    not_yet("statPrefix"),
]);

const DESTINATION: Type = Type::Strict(&[
    field("host", Type::Checked(text::dns_name)).required(),
    field("subset", Type::Text).or_parent(),
    field("port", Type::Strict(&[field("number", PORT).or_parent()])).or_parent(),
]);

const ROUTE: Type = Type::Strict(&[
    field("destination", DESTINATION).required(),
    field("weight", Type::Integer(0, i32::MAX as i64)).or_parent(),
    not_yet("headers"),
]);

const REDIRECT: Type = Type::Strict(&[
    field("uri", Type::Checked(text::no_control)).or_parent(),
    field("authority", Type::Checked(text::no_control)).or_parent(),
    field("port", PORT).or_parent(),
    field("derivePort", Type::Enum(&["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"])).or_parent(),
    field("scheme", Type::Enum(&["http", "https"])).or_parent(),
    field("redirectCode", Type::Integer(300, 308)).or_parent(),
    field("prefixRewrite", Type::Checked(text::no_control)).or_parent(),
]);

const REWRITE: Type = Type::Strict(&[
    field("uri", Type::Checked(text::no_control)).or_parent(),
    field("authority", Type::Checked(text::no_control)).or_parent(),
    field(
        "uriRegexRewrite",
        Type::Strict(&[
            field("match", Type::Checked(regex::check)).required(),
            field("rewrite", Type::Checked(text::no_control)).or_parent(),
        ]),
    )
    .or_parent(),
]);

const HTTP: Type = Type::Object(&[
    field("name", Type::Text),
    field("match", Type::List(&MATCH, OnBad::Parent)).or_parent(),
    field("route", Type::List(&ROUTE, OnBad::Parent)).or_parent(),
    field("redirect", REDIRECT).or_parent(),
    not_yet("directResponse").or_parent(),
    not_yet("delegate").or_parent(),
    field("rewrite", REWRITE).or_parent(),
    field("timeout", Type::Time(0)),
    field("retries", Type::Object(RETRIES)),
    not_yet("fault"),
    not_yet("mirror"),
    not_yet("mirrors"),
    not_yet("mirrorPercent"),
    not_yet("mirror_percent"),
    not_yet("mirrorPercentage"),
    not_yet("corsPolicy"),
    not_yet("headers"),
    // Of old versions of the API; upgrades have long been allowed without it.
    field("websocketUpgrade", Type::Any).inert(),
]);

const SPEC: Type = Type::Object(&[
    field("hosts", Type::List(&Type::Checked(text::host), OnBad::Field)).required(),
    field("gateways", Type::List(&Type::Checked(text::reference), OnBad::Parent)).or_parent(),
    field("http", Type::List(&HTTP, OnBad::Field)),
    not_yet("tls"),
    not_yet("tcp"),
    field("exportTo", EXPORT_TO).or_parent(),
]);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    hosts: Vec<Option<String>>,
    gateways: Vec<Option<String>>,
    http: Vec<Option<HttpRoute>>,
    export_to: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HttpRoute {
    name: Option<String>,
    r#match: Vec<Match>,
    route: Vec<RouteDestination>,
    redirect: Option<HttpRedirect>,
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
    headers: BTreeMap<String, Text>,
    query_params: BTreeMap<String, Text>,
    port: Option<u16>,
    ignore_uri_case: bool,
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
        let Spec { hosts, gateways, http, export_to } = spec;
        let owner = Arc::clone(&raw.owner);
        let namespace = &owner.namespace;
        let mut lowering = Lowering { owner: &owner, problems: &mut problems };
        let http = (0..).zip(http).filter_map(|(i, r)| lowering.rule(i, r?)).collect();
        let rules = RouteRules {
            namespace: Arc::clone(namespace),
            created: raw.created,
            hosts: lowering.hosts(hosts),
            gateways: lowering.gateways(gateways),
            export_to: visibility(export_to.iter().map(String::as_str)).map(|v| v.of(namespace)),
            http,
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
            let gateway = match name.split_once('/') {
                _ if name == "mesh" => GatewayName::Mesh,
                Some((namespace, name)) => {
                    GatewayName::Gateway { namespace: Arc::from(namespace), name: Arc::from(name) }
                }
                None => GatewayName::Gateway {
                    namespace: Arc::clone(&self.owner.namespace),
                    name: Arc::from(name),
                },
            };
            if !out.contains(&gateway) {
                out.push(gateway);
            }
        }
        out
    }

    fn rule(&mut self, index: usize, rule: HttpRoute) -> Option<HttpRule> {
        let HttpRoute { name, r#match, route, redirect, rewrite, timeout, retries } = rule;
        let path = format!("spec.http[{index}]");
        let matches =
            (0..).zip(r#match).map(|(i, m)| condition(format!("{path}.match[{i}]"), m)).collect();
        let action = match (route.is_empty(), redirect) {
            (false, Some(_)) => {
                let message = "has both `route` and `redirect`; remove one of them";
                self.error(&path, Reason::WrongType, message);
                return None;
            }
            (true, None) => {
                self.error(&path, Reason::Required, "needs a `route` or a `redirect`");
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
}

fn condition(field: String, m: Match) -> HttpMatch {
    let Match { name, uri, method, authority, headers, query_params, port, ignore_uri_case } = m;
    let header = |name: &str, value: Text| HeaderMatch {
        name: Arc::from(name.to_ascii_lowercase()),
        value: value.lower(),
    };
    let mut all: Vec<HeaderMatch> = Vec::new();
    all.extend(method.map(|t| header(":method", t)));
    all.extend(authority.map(|t| header(":authority", t)));
    all.extend(headers.into_iter().map(|(name, value)| header(&name, value)));
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
