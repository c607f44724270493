//! Who connects to the workload, by mutual TLS and without it: what Envoy tells of connections.
//!
//! In: Envoy's access log over the agent's socket, a stream from each of its threads. Out: counters
//! by the client's address. A connection by mutual TLS counts when it ends; one in plain text at
//! once: Envoy tells when bytes are passed on, and of each request, by the ports of the connection.
//!
//! **Invariant:** what strangers do takes no more memory than the limits below.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use envoy_api::envoy::config::core::v3::{Address, address, socket_address::PortSpecifier};
use envoy_api::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, tls_properties::CertificateProperties,
};
use envoy_api::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_api::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse, stream_access_logs_message::LogEntries,
};
use prometheus::{IntCounterVec, Opts};
use tonic::{Request, Response, Status, Streaming};

/// Clients that are told apart; connections of others are counted together.
const SOURCES: usize = 1000;
/// How those others are called.
const OTHERS: &str = "others";
/// Connections in plain text that are known to be open. More are counted once some have ended.
const OPEN: usize = 10_000;

/// How a client came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    MutualTls,
    None,
    /// Without mutual TLS, where nothing else is taken.
    Refused,
}

/// What Envoy tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Something came in plain text.
    Heard,
    /// A connection has ended.
    Ended(Security),
}

/// What is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    seen: Arc<Mutex<Seen>>,
    /// By source and security.
    pub(crate) counter: IntCounterVec,
}

#[derive(Debug, Default)]
struct Seen {
    sources: HashSet<IpAddr>,
    /// Connections in plain text that have been counted.
    open: HashSet<SocketAddr>,
}

// === impl Connections ===

impl Connections {
    pub(crate) fn new() -> Result<Self> {
        let options = Opts::new(
            "heddle_inbound_connections_total",
            "Connections to the workload, by address of the client and by mutual TLS or not",
        );
        let counter = IntCounterVec::new(options, &["source", "security"])?;
        Ok(Self { seen: Arc::default(), counter })
    }

    fn take(&self, client: SocketAddr, event: Event) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let security = match event {
            Event::Heard if seen.open.len() < OPEN && seen.open.insert(client) => Security::None,
            Event::Heard => return,
            // It was counted when it was heard, or has said nothing, or is TLS of the workload's own.
            Event::Ended(Security::None) => {
                seen.open.remove(&client);
                return;
            }
            Event::Ended(security) => security,
        };
        let source = client.ip();
        let known = seen.sources.contains(&source)
            || seen.sources.len() < SOURCES && seen.sources.insert(source);
        let source = if known { source.to_string() } else { OTHERS.to_owned() };
        self.counter.with_label_values(&[source.as_str(), security.label()]).inc();
    }
}

#[tonic::async_trait]
impl AccessLogService for Connections {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            let Some(LogEntries::TcpLogs(entries)) = message.log_entries else { continue };
            for entry in entries.log_entry {
                let common = entry.common_properties.unwrap_or_default();
                if let Some(client) = client(&common) {
                    self.take(client, event(&common));
                }
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

/// The other end of the connection; not whom a header claims.
fn client(common: &AccessLogCommon) -> Option<SocketAddr> {
    let Address { address: Some(address::Address::SocketAddress(socket)) } =
        common.downstream_direct_remote_address.as_ref()?
    else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    let address: IpAddr = socket.address.parse().ok()?;
    Some((address.to_canonical(), u16::try_from(port).ok()?).into())
}

fn event(common: &AccessLogCommon) -> Event {
    match common.access_log_type() {
        AccessLogType::DownstreamStart | AccessLogType::TcpUpstreamConnected => Event::Heard,
        _ => Event::Ended(security(common)),
    }
}

fn security(common: &AccessLogCommon) -> Security {
    let Some(tls) = &common.tls_properties else {
        // Nothing fits what came: `NR`, as a response flag.
        let refused = common.response_flags.as_ref().is_some_and(|flags| flags.no_route_found);
        return if refused { Security::Refused } else { Security::None };
    };
    let proved = |peer: &CertificateProperties| !peer.subject_alt_name.is_empty();
    match tls.peer_certificate_properties.as_ref().is_some_and(proved) {
        true => Security::MutualTls,
        false => Security::Refused,
    }
}

// === impl Security ===

impl Security {
    fn label(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn a_connection_counts_once_whatever_is_said_on_it() {
        let connections = Connections::new().expect("a counter");
        let count = |security: Security| {
            connections.counter.with_label_values(&["10.0.0.1", security.label()]).get()
        };
        for _ in 0..3 {
            connections.take(at(1), Event::Heard);
            connections.take(at(2), Event::Heard);
        }
        assert_eq!(count(Security::None), 2);
        for port in [1, 2, 3] {
            connections.take(at(port), Event::Ended(Security::None));
        }
        assert_eq!(count(Security::None), 2);
        // The next connection may have the port of an earlier one.
        connections.take(at(1), Event::Heard);
        connections.take(at(4), Event::Ended(Security::MutualTls));
        connections.take(at(5), Event::Ended(Security::Refused));
        let all = [Security::None, Security::MutualTls, Security::Refused].map(count);
        assert_eq!(all, [3, 1, 1]);
    }

    #[test]
    fn many_strangers_are_counted_together() {
        let connections = Connections::new().expect("a counter");
        for n in 0..u32::try_from(OPEN + 7).expect("a number") {
            let address = IpAddr::V4((0x0a00_0000 + n).into());
            connections.take((address, 1).into(), Event::Heard);
        }
        let others = connections.counter.with_label_values(&[OTHERS, "none"]).get();
        assert_eq!(others, u64::try_from(OPEN - SOURCES).expect("a number"));
    }
}
