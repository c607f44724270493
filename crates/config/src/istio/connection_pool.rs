//! Limits of connections, as DestinationRules and Sidecars have them.
//!
//! In: a `connectionPool`. Out: a `ConnectionPool` of the model.
//!
//! **Invariant:** a limit of 0 is none, as the API has it.

use model::rows::{ConnectionPool, Http2KeepAlive, HttpPool, TcpKeepAlive, TcpPool, UpgradePolicy};
use serde::Deserialize;

use super::time;
use crate::schema::{Type, field};

const COUNT: Type = Type::Integer(0, u32::MAX as i64);
const INT32: Type = Type::Integer(0, i32::MAX as i64);

/// A `connectionPool`.
pub(super) const CONNECTION_POOL: Type = Type::Object(&[
    field(
        "tcp",
        Type::Object(&[
            field("maxConnections", INT32),
            field("connectTimeout", Type::Time(1)),
            field(
                "tcpKeepalive",
                Type::Object(&[
                    field("probes", COUNT),
                    field("time", Type::Time(1000)),
                    field("interval", Type::Time(1000)),
                ]),
            ),
            field("maxConnectionDuration", Type::Time(1)),
            field("idleTimeout", Type::Time(0)),
        ]),
    ),
    field(
        "http",
        Type::Object(&[
            field("http1MaxPendingRequests", INT32),
            field("http2MaxRequests", INT32),
            field("maxRequestsPerConnection", INT32),
            field("maxRetries", INT32),
            field("idleTimeout", Type::Time(0)),
            field("h2UpgradePolicy", Type::Enum(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"])),
            field("useClientProtocol", Type::Bool),
            field("maxConcurrentStreams", Type::Integer(0, i32::MAX as i64)),
            field(
                "http2KeepAlive",
                Type::Object(&[field("interval", Type::Time(1)), field("timeout", Type::Time(1))]),
            ),
        ]),
    ),
]);

/// The decoded form of `CONNECTION_POOL`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Pool {
    tcp: Option<Tcp>,
    http: Option<Http>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Tcp {
    max_connections: Option<u32>,
    connect_timeout: Option<String>,
    tcp_keepalive: Option<KeepAlive>,
    max_connection_duration: Option<String>,
    idle_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeepAlive {
    probes: Option<u32>,
    time: Option<String>,
    interval: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    http1_max_pending_requests: Option<u32>,
    http2_max_requests: Option<u32>,
    max_requests_per_connection: Option<u32>,
    max_retries: Option<u32>,
    idle_timeout: Option<String>,
    h2_upgrade_policy: Option<String>,
    use_client_protocol: bool,
    max_concurrent_streams: Option<u32>,
    http2_keep_alive: Option<Ping>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ping {
    interval: Option<String>,
    timeout: Option<String>,
}

// === impl Pool ===

impl Pool {
    pub(super) fn lower(self) -> ConnectionPool {
        let Self { tcp, http } = self;
        ConnectionPool {
            tcp: tcp.unwrap_or_default().lower(),
            http: http.unwrap_or_default().lower(),
        }
    }
}

/// What 0 means in the API: not set.
fn positive(count: Option<u32>) -> Option<u32> {
    count.filter(|n| *n > 0)
}

impl Tcp {
    fn lower(self) -> TcpPool {
        let Self {
            max_connections,
            connect_timeout,
            tcp_keepalive,
            max_connection_duration,
            idle_timeout,
        } = self;
        TcpPool {
            max_connections: positive(max_connections),
            connect_timeout: time(connect_timeout),
            keep_alive: tcp_keepalive.map(|KeepAlive { probes, time: first, interval }| {
                TcpKeepAlive { probes, time: time(first), interval: time(interval) }
            }),
            max_connection_duration: time(max_connection_duration),
            idle_timeout: time(idle_timeout),
        }
    }
}

impl Http {
    fn lower(self) -> HttpPool {
        let Self {
            http1_max_pending_requests,
            http2_max_requests,
            max_requests_per_connection,
            max_retries,
            idle_timeout,
            h2_upgrade_policy,
            use_client_protocol,
            max_concurrent_streams,
            http2_keep_alive,
        } = self;
        HttpPool {
            max_pending_requests: positive(http1_max_pending_requests),
            max_requests: positive(http2_max_requests),
            max_requests_per_connection: positive(max_requests_per_connection),
            max_retries: positive(max_retries),
            idle_timeout: time(idle_timeout),
            upgrade: match h2_upgrade_policy.as_deref() {
                Some("UPGRADE") => Some(UpgradePolicy::Upgrade),
                Some("DO_NOT_UPGRADE") => Some(UpgradePolicy::DoNotUpgrade),
                _ => None,
            },
            use_client_protocol,
            max_concurrent_streams: positive(max_concurrent_streams),
            http2_keep_alive: http2_keep_alive.and_then(|Ping { interval, timeout }| {
                let interval = time(interval)?;
                Some(Http2KeepAlive { interval, timeout: time(timeout).unwrap_or(interval) })
            }),
        }
    }
}
