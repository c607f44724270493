//! The discovery messages, reduced to the fields that are used.
//!
//! In: requests, whose node stays undecoded bytes: proxies repeat up to 60 KB of it in every
//! message, and only the first counts. Out: one response as a gRPC message of shared bytes.
//!
//! **Invariant:** the bytes of a large resource are never copied.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_api::ResourceType;
use envoy_api::resource::{put_field, put_header};
use prost::Message;

use crate::session::{DeltaRequest, Response, Session, Settings, SotwRequest, SotwSession};
use crate::streams::{Machine, Protocol};

/// Resources up to this size are joined into one chunk: many small chunks cost more than the
/// copy.
const JOIN: usize = 16 << 10;

/// Bytes that are joined at most: each stream that is behind holds so much for itself.
const CHUNK: usize = 64 << 10;

/// A message on its way out. Its chunks are made when the connection takes them, so that a slow
/// proxy costs a list of shared entries, not a copy of them.
pub(super) struct Outgoing {
    bytes: usize,
    /// Prefix and head, until they are sent.
    first: BytesMut,
    entries: std::vec::IntoIter<Bytes>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ErrorDetail {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WireDeltaRequest {
    #[prost(bytes = "bytes", optional, tag = "1")]
    node: Option<Bytes>,
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, repeated, tag = "3")]
    subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    unsubscribe: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    initial_resource_versions: Vec<NameAndVersion>,
    #[prost(string, tag = "6")]
    nonce: String,
    #[prost(message, optional, tag = "7")]
    error: Option<ErrorDetail>,
}

/// An entry of a map, as it is on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct NameAndVersion {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// `envoy.service.discovery.v3.DiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WireSotwRequest {
    #[prost(bytes = "bytes", optional, tag = "2")]
    node: Option<Bytes>,
    #[prost(string, repeated, tag = "3")]
    names: Vec<String>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(message, optional, tag = "6")]
    error: Option<ErrorDetail>,
}

/// The id of an `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, prost::Message)]
struct NodeId {
    #[prost(string, tag = "1")]
    id: String,
}

/// A request of either variant.
pub(super) trait WireRequest: Message + Default + Send + 'static {
    const PROTOCOL: Protocol;
    fn machine(settings: Settings) -> Machine;
    fn node(&self) -> Option<&Bytes>;
    fn type_url(&self) -> &str;
    /// Names that must be answered even when their type is not served.
    fn asked(&self) -> &[String];
    fn apply(self, now: Duration, resource_type: ResourceType, machine: &mut Machine);
    fn frame(response: &Response, control_plane: &str) -> Outgoing;
}

// === impl ErrorDetail ===

impl ErrorDetail {
    fn text(self) -> String {
        match self.message.is_empty() {
            true => format!("code {}", self.code),
            false => self.message,
        }
    }
}

// === impl WireDeltaRequest ===

impl WireRequest for WireDeltaRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn machine(settings: Settings) -> Machine {
        Machine::Delta(Box::new(Session::new(settings)))
    }

    fn node(&self) -> Option<&Bytes> {
        self.node.as_ref()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn asked(&self) -> &[String] {
        &self.subscribe
    }

    fn apply(self, now: Duration, resource_type: ResourceType, machine: &mut Machine) {
        let held = self.initial_resource_versions.into_iter();
        let request = DeltaRequest {
            subscribe: self.subscribe,
            unsubscribe: self.unsubscribe,
            initial_resource_versions: held.map(|held| (held.name, held.version)).collect(),
            nonce: self.nonce,
            error: self.error.map(ErrorDetail::text),
        };
        if let Machine::Delta(session) = machine {
            session.on_request(now, resource_type, request);
        }
    }

    fn frame(response: &Response, control_plane: &str) -> Outgoing {
        delta_frame(response, control_plane)
    }
}

// === impl WireSotwRequest ===

impl WireRequest for WireSotwRequest {
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn machine(settings: Settings) -> Machine {
        Machine::Sotw(Box::new(SotwSession::new(settings)))
    }

    fn node(&self) -> Option<&Bytes> {
        self.node.as_ref()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn asked(&self) -> &[String] {
        &[]
    }

    fn apply(self, now: Duration, resource_type: ResourceType, machine: &mut Machine) {
        let request = SotwRequest {
            names: self.names,
            nonce: self.nonce,
            error: self.error.map(ErrorDetail::text),
        };
        if let Machine::Sotw(session) = machine {
            session.on_request(now, resource_type, request);
        }
    }

    fn frame(response: &Response, control_plane: &str) -> Outgoing {
        sotw_frame(response, control_plane)
    }
}

/// The id in an encoded node; `None` = empty or not a node.
pub(super) fn node_id(node: &Bytes) -> Option<String> {
    let node = NodeId::decode(node.clone()).ok()?;
    Some(node.id).filter(|id| !id.is_empty())
}

/// A `DeltaDiscoveryResponse` as one gRPC message.
fn delta_frame(response: &Response, control_plane: &str) -> Outgoing {
    let mut head = Vec::new();
    put_field(&mut head, 1, response.version.as_bytes());
    put_field(&mut head, 4, response.resource_type.type_url().as_bytes());
    put_field(&mut head, 5, response.nonce.as_bytes());
    for name in &response.removed {
        put_field(&mut head, 6, name.as_bytes());
    }
    put_control_plane(&mut head, 7, control_plane);
    frame(head, response.resources.iter().map(|r| r.delta_entry()))
}

/// A `DiscoveryResponse` as one gRPC message.
fn sotw_frame(response: &Response, control_plane: &str) -> Outgoing {
    let mut head = Vec::new();
    put_field(&mut head, 1, response.version.as_bytes());
    put_field(&mut head, 4, response.resource_type.type_url().as_bytes());
    put_field(&mut head, 5, response.nonce.as_bytes());
    put_control_plane(&mut head, 6, control_plane);
    frame(head, response.resources.iter().map(|r| r.sotw_entry()))
}

/// Names, one after the other, in parts of so many bytes.
pub(super) fn parts(names: &[String], bytes: usize) -> impl Iterator<Item = &[String]> {
    let mut sum = names.first().map_or(0, String::len);
    names.chunk_by(move |_, next| {
        sum += next.len();
        let fits = sum <= bytes;
        if !fits {
            sum = next.len();
        }
        fits
    })
}

/// The delta answer to names of a type that is not served.
pub(super) fn unknown_type_frame(
    type_url: &str,
    nonce: &str,
    names: &[String],
    control_plane: &str,
) -> Outgoing {
    let mut head = Vec::new();
    put_field(&mut head, 4, type_url.as_bytes());
    put_field(&mut head, 5, nonce.as_bytes());
    for name in names {
        put_field(&mut head, 6, name.as_bytes());
    }
    put_control_plane(&mut head, 7, control_plane);
    frame(head, std::iter::empty())
}

/// `ControlPlane { identifier }`.
fn put_control_plane(head: &mut Vec<u8>, field: u32, identifier: &str) {
    let mut control_plane = Vec::new();
    put_field(&mut control_plane, 1, identifier.as_bytes());
    put_header(head, field, control_plane.len());
    head.extend_from_slice(&control_plane);
}

/// One message with prefix (not compressed, length) and head; its entries are shared.
fn frame(head: Vec<u8>, entries: impl Iterator<Item = Bytes>) -> Outgoing {
    let entries: Vec<Bytes> = entries.collect();
    let length = head.len() + entries.iter().map(Bytes::len).sum::<usize>();
    let mut first = BytesMut::with_capacity(5 + head.len());
    first.put_u8(0);
    first.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    first.put_slice(&head);
    Outgoing { bytes: first.len() - head.len() + length, first, entries: entries.into_iter() }
}

// === impl Outgoing ===

impl Outgoing {
    /// Bytes of the whole message.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Iterator for Outgoing {
    type Item = Bytes;

    /// The next chunk: a large entry as it is, else as many entries as go into one.
    fn next(&mut self) -> Option<Bytes> {
        let mut joined = std::mem::take(&mut self.first);
        let mut fits = joined.len();
        let rest = self.entries.as_slice();
        let small = rest.iter().take_while(|entry| {
            fits += entry.len();
            entry.len() <= JOIN && fits <= CHUNK
        });
        let count = small.count();
        if joined.is_empty() && count <= 1 {
            return self.entries.next();
        }
        joined.reserve(rest[..count].iter().map(Bytes::len).sum());
        for entry in self.entries.by_ref().take(count) {
            joined.put_slice(&entry);
        }
        Some(joined.freeze())
    }
}
