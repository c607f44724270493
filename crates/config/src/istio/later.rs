//! Types of fields that this version does not read, so that an API server checks them all the same.
//!
//! **Invariant:** whatever the API allows fits; what is not known of a field takes any value.

use crate::schema::{Field, OnBad, Rule, Type, field};

const TEXTS: Type = Type::List(&Type::Text, OnBad::Field);
const TEXT_MAP: Type = Type::Map(any_key, &Type::Text);
const COUNT: Type = Type::Integer(0, u32::MAX as i64);
const PORT: Type = Type::Integer(1, 65_535);
const SHARE: Type = Type::Number(0.0, 100.0);
const PERCENTAGE: Type = Type::Object(&[field("value", SHARE)]);

fn any_key(_: &str) -> Result<(), String> {
    Ok(())
}

/// A host, as rules name it.
pub(super) const DESTINATION: Type = Type::Object(&[
    field("host", Type::Text).required(),
    field("subset", Type::Text),
    field("port", Type::Object(&[field("number", PORT)])),
]);

const STRING_MATCH: Type = Type::OneOf(
    &[field("exact", Type::Text), field("prefix", Type::Text), field("regex", Type::Text)],
    true,
);

const HEADER_OPERATIONS: Type =
    Type::Object(&[field("set", TEXT_MAP), field("add", TEXT_MAP), field("remove", TEXTS)]);

/// Changes of headers.
pub(super) const HEADERS: Type =
    Type::Object(&[field("request", HEADER_OPERATIONS), field("response", HEADER_OPERATIONS)]);

/// Another VirtualService.
pub(super) const DELEGATE: Type =
    Type::Object(&[field("name", Type::Text), field("namespace", Type::Text)]);

/// Faults on purpose.
pub(super) const FAULT: Type = Type::Object(&[
    field(
        "delay",
        Type::Ruled(
            &Type::Object(&[
                field("percent", Type::Integer(0, 100)),
                field("fixedDelay", Type::Time(1)),
                field("exponentialDelay", Type::Time(1)),
                field("percentage", PERCENTAGE),
            ]),
            &[Rule {
                holds: "!(has(self.fixedDelay) && has(self.exponentialDelay))",
                else_says: "must not hold both fixedDelay and exponentialDelay",
            }],
        ),
    ),
    field(
        "abort",
        Type::Ruled(
            &Type::Object(&[
                field("httpStatus", Type::Integer(200, 599)),
                field("grpcStatus", Type::Text),
                field("http2Error", Type::Text),
                field("percentage", PERCENTAGE),
            ]),
            &[Rule {
                holds: "has(self.httpStatus) ? !has(self.grpcStatus) && !has(self.http2Error) \
                        : !(has(self.grpcStatus) && has(self.http2Error))",
                else_says: "must hold at most one of httpStatus, grpcStatus, http2Error",
            }],
        ),
    ),
]);

/// Hosts that get copies of requests.
pub(super) const MIRRORS: Type = Type::List(
    &Type::Object(&[field("destination", DESTINATION).required(), field("percentage", PERCENTAGE)]),
    OnBad::Field,
);

/// A share of all.
pub(super) const MIRROR_PERCENTAGE: Type = PERCENTAGE;

/// A share of all, of old versions of the API.
pub(super) const MIRROR_PERCENT: Type = Type::Integer(0, 100);

/// What pages of other sites may do.
pub(super) const CORS: Type = Type::Object(&[
    field("allowOrigin", TEXTS),
    field("allowOrigins", Type::List(&STRING_MATCH, OnBad::Field)),
    field("allowMethods", TEXTS),
    field("allowHeaders", TEXTS),
    field("exposeHeaders", TEXTS),
    field("maxAge", Type::Time(0)),
    field("allowCredentials", Type::Bool),
    field("unmatchedPreflights", Type::Enum(&["UNSPECIFIED", "FORWARD", "IGNORE"])),
]);

/// Zones instead of localities.
pub(super) const ZONES: Type = Type::Object(&[
    field("enabled", Type::Bool),
    field("failover", Type::Any),
    field("failoverPriority", TEXTS),
    field("minClusterSize", COUNT),
]);

/// How the share of a new endpoint grows.
pub(super) const WARMUP: Type = Type::Object(&[
    field("duration", Type::Time(1)).required(),
    field("minimumPercent", SHARE),
    field("aggression", Type::Number(1.0, f64::INFINITY)),
]);

/// The same, of old versions of the API.
pub(super) const WARMUP_TIME: Type = Type::Time(1);

/// Through another proxy.
pub(super) const TUNNEL: Type = Type::Object(&[
    field("protocol", Type::Text),
    field("targetHost", Type::Text).required(),
    field("targetPort", PORT).required(),
]);

/// The PROXY protocol.
pub(super) const PROXY_PROTOCOL: Type =
    Type::Object(&[field("version", Type::Enum(&["V1", "V2"]))]);

/// How many retries there may be at once.
pub(super) const RETRY_BUDGET: Type = Type::Object(&[
    field("percent", SHARE),
    field("minRetryConcurrency", COUNT),
    field("budgetInterval", Type::Time(0)),
]);

/// Workloads.
pub(super) const SELECTOR: Type = Type::Object(&[field("matchLabels", TEXT_MAP)]);

const TLS_VERSIONS: &[&str] = &["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"];

const SERVER_TLS_FIELDS: &[Field] = &[
    field("httpsRedirect", Type::Bool),
    field(
        "mode",
        Type::Enum(&[
            "PASSTHROUGH",
            "SIMPLE",
            "MUTUAL",
            "AUTO_PASSTHROUGH",
            "ISTIO_MUTUAL",
            "OPTIONAL_MUTUAL",
        ]),
    ),
    field("serverCertificate", Type::Text),
    field("privateKey", Type::Text),
    field("caCertificates", Type::Text),
    field("caCrl", Type::Text),
    field("credentialName", Type::Text),
    field("credentialNames", TEXTS),
    field("caCertCredentialName", Type::Text),
    field(
        "tlsCertificates",
        Type::List(
            &Type::Object(&[
                field("serverCertificate", Type::Text),
                field("privateKey", Type::Text),
                field("caCertificates", Type::Text),
            ]),
            OnBad::Field,
        ),
    ),
    field("subjectAltNames", TEXTS),
    field("verifyCertificateSpki", TEXTS),
    field("verifyCertificateHash", TEXTS),
    field("minProtocolVersion", Type::Enum(TLS_VERSIONS)),
    field("maxProtocolVersion", Type::Enum(TLS_VERSIONS)),
    field("cipherSuites", TEXTS),
    field("insecureSkipVerify", Type::Bool),
];

/// TLS of a server.
pub(super) const SERVER_TLS: Type = Type::Ruled(
    &Type::Object(SERVER_TLS_FIELDS),
    &[Rule {
        holds: "!has(self.mode) || !(self.mode in ['SIMPLE', 'MUTUAL', 'OPTIONAL_MUTUAL']) \
                || has(self.credentialName) || has(self.credentialNames) \
                || has(self.tlsCertificates) \
                || (has(self.serverCertificate) && has(self.privateKey))",
        else_says: "this mode needs a credentialName, or a serverCertificate and its privateKey",
    }],
);
