//! What a VirtualService may hold: every field of the API.
//!
//! **Invariant:** a condition that is bad, or not supported, takes its match along.

use super::super::later;
use super::super::retries::RETRIES;
use crate::export_to::EXPORT_TO;
use crate::regex;
use crate::schema::{OnBad, Rule, Type, field, not_yet};
use crate::text;

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
    field("scheme", STRING_MATCH).or_parent(),
    field("method", STRING_MATCH).or_parent(),
    field("authority", STRING_MATCH).or_parent(),
    field("headers", Type::Map(text::header_name, &STRING_MATCH)).or_parent(),
    field("port", PORT).or_parent(),
    field("sourceLabels", LABELS).or_parent(),
    field("gateways", GATEWAYS).or_parent(),
    field("queryParams", Type::Map(text::not_empty, &STRING_MATCH)).or_parent(),
    field("ignoreUriCase", Type::Bool).or_parent(),
    field("withoutHeaders", Type::Map(text::header_name, &STRING_MATCH)).or_parent(),
    field("sourceNamespace", Type::Checked(text::dns_name)).or_parent(),
    not_yet("statPrefix").of(Type::Text),
]);

const LABELS: Type = Type::Map(text::not_empty, &Type::Text);

const GATEWAYS: Type = Type::List(&Type::Checked(text::reference), OnBad::Parent);

const SUBNETS: Type = Type::List(&Type::Checked(text::block), OnBad::Parent);

/// As `MATCH`, of TLS connections.
const TLS_MATCH: Type = Type::Strict(&[
    field("sniHosts", Type::List(&Type::Checked(text::host), OnBad::Parent)).required(),
    field("destinationSubnets", SUBNETS).or_parent(),
    field("port", PORT).or_parent(),
    field("sourceLabels", LABELS).or_parent(),
    field("gateways", GATEWAYS).or_parent(),
    field("sourceNamespace", Type::Checked(text::dns_name)).or_parent(),
]);

const TLS: Type = Type::Object(&[
    field("match", Type::List(&TLS_MATCH, OnBad::Parent)).required(),
    field("route", Type::List(&ROUTE, OnBad::Parent)).required(),
]);

/// As `MATCH`, of other connections.
const TCP_MATCH: Type = Type::Strict(&[
    field("destinationSubnets", SUBNETS).or_parent(),
    field("port", PORT).or_parent(),
    field("sourceSubnet", Type::Checked(text::block)).or_parent(),
    field("sourceLabels", LABELS).or_parent(),
    field("gateways", GATEWAYS).or_parent(),
    field("sourceNamespace", Type::Checked(text::dns_name)).or_parent(),
]);

const TCP: Type = Type::Object(&[
    field("match", Type::List(&TCP_MATCH, OnBad::Parent)).or_parent(),
    field("route", Type::List(&ROUTE, OnBad::Parent)).required(),
]);

const DIRECT_RESPONSE: Type = Type::Strict(&[
    field("status", Type::Integer(200, 599)).required(),
    field(
        "body",
        Type::Strict(&[
            field("string", Type::Text).or_parent(),
            not_yet("bytes").of(Type::Text).or_parent(),
        ]),
    )
    .or_parent(),
]);

const DESTINATION: Type = Type::Strict(&[
    field("host", Type::Checked(text::dns_name)).required(),
    field("subset", Type::Text).or_parent(),
    field("port", Type::Strict(&[field("number", PORT).or_parent()])).or_parent(),
]);

const ROUTE: Type = Type::Strict(&[
    field("destination", DESTINATION).required(),
    field("weight", Type::Integer(0, i32::MAX as i64)).or_parent(),
    not_yet("headers").of(later::HEADERS),
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
    field("redirect", Type::Ruled(&REDIRECT, REDIRECT_RULES)).or_parent(),
    field("directResponse", DIRECT_RESPONSE).or_parent(),
    not_yet("delegate").of(later::DELEGATE).or_parent(),
    field("rewrite", Type::Ruled(&REWRITE, REWRITE_RULES)).or_parent(),
    field("timeout", Type::Time(0)),
    field("retries", Type::Object(RETRIES)),
    not_yet("fault").of(later::FAULT),
    not_yet("mirror").of(later::DESTINATION),
    not_yet("mirrors").of(later::MIRRORS),
    not_yet("mirrorPercent").of(later::MIRROR_PERCENT),
    not_yet("mirror_percent").of(later::MIRROR_PERCENT),
    not_yet("mirrorPercentage").of(later::MIRROR_PERCENTAGE),
    not_yet("corsPolicy").of(later::CORS),
    not_yet("headers").of(later::HEADERS),
    // Of old versions of the API; upgrades have long been allowed without it.
    field("websocketUpgrade", Type::Any).inert(),
]);

const REDIRECT_RULES: &[Rule] = &[Rule {
    holds: "!(has(self.port) && has(self.derivePort))",
    else_says: "must not hold both port and derivePort",
}];

const REWRITE_RULES: &[Rule] = &[Rule {
    holds: "!(has(self.uri) && has(self.uriRegexRewrite))",
    else_says: "must not hold both uri and uriRegexRewrite",
}];

const HTTP_RULES: &[Rule] = &[
    Rule {
        holds: "(has(self.route) ? 1 : 0) + (has(self.redirect) ? 1 : 0) \
                + (has(self.directResponse) ? 1 : 0) + (has(self.delegate) ? 1 : 0) == 1",
        else_says: "must hold exactly one of route, redirect, directResponse, delegate",
    },
    Rule {
        holds: "!(has(self.mirror) && has(self.mirrors))",
        else_says: "must not hold both mirror and mirrors",
    },
];

pub(super) const SPEC: Type = Type::Object(&[
    field("hosts", Type::List(&Type::Checked(text::host), OnBad::Field)).required(),
    field("gateways", GATEWAYS).or_parent(),
    field("http", Type::List(&Type::Ruled(&HTTP, HTTP_RULES), OnBad::Field)),
    field("tls", Type::List(&TLS, OnBad::Field)),
    field("tcp", Type::List(&TCP, OnBad::Field)),
    field("exportTo", EXPORT_TO).or_parent(),
]);
