//! The discovery messages, reduced to the fields that are used.
//!
//! In: requests, whose node stays undecoded bytes: proxies repeat up to 60 KB of it in every
//! message, and only the first counts. Out: one response as a gRPC message of shared bytes.
//!
//! **Invariant:** decides nothing; what it does not know it ignores.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_api::ResourceType;
use envoy_api::envoy::config::core::v3::Node;
use envoy_api::resource::{put_field, put_header};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};

use crate::chunks::chunk;
use crate::session::{DeltaRequest, Response, Session, Settings, SotwRequest, SotwSession};
use crate::streams::{Machine, Protocol};

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

/// A node without its extensions: a stock Envoy lists a thousand, and nobody asks for them.
pub(super) fn decode_node(node: &Bytes) -> Result<Node, DecodeError> {
    const EXTENSIONS: u32 = 9;
    let mut kept = Vec::new();
    let mut rest = &node[..];
    while !rest.is_empty() {
        let field = rest;
        let (tag, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        if tag != EXTENSIONS {
            kept.extend_from_slice(&field[..field.len() - rest.len()]);
        }
    }
    Node::decode(&kept[..])
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
    frame(head, response.resources.delta_entries())
}

/// A `DiscoveryResponse` as one gRPC message.
fn sotw_frame(response: &Response, control_plane: &str) -> Outgoing {
    let mut head = Vec::new();
    put_field(&mut head, 1, response.version.as_bytes());
    put_field(&mut head, 4, response.resource_type.type_url().as_bytes());
    put_field(&mut head, 5, response.nonce.as_bytes());
    put_control_plane(&mut head, 6, control_plane);
    frame(head, response.resources.sotw_entries())
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
    frame(head, Vec::new())
}

/// `ControlPlane { identifier }`.
fn put_control_plane(head: &mut Vec<u8>, field: u32, identifier: &str) {
    let mut control_plane = Vec::new();
    put_field(&mut control_plane, 1, identifier.as_bytes());
    put_header(head, field, control_plane.len());
    head.extend_from_slice(&control_plane);
}

/// One message with prefix (not compressed, length) and head; its entries are shared.
fn frame(head: Vec<u8>, entries: Vec<Bytes>) -> Outgoing {
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

    fn next(&mut self) -> Option<Bytes> {
        let first = std::mem::take(&mut self.first);
        let (taken, bytes) = chunk(first, self.entries.as_slice())?;
        self.entries.by_ref().take(taken).for_each(drop);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use envoy_api::envoy::config::core::v3::{Extension, Locality};
    use proptest::prelude::*;

    use super::*;

    /// Number of the field of a node that is a map.
    const DYNAMIC_PARAMETERS: u8 = 12;

    fn node() -> Node {
        let named = |n: usize| Extension { name: format!("x{n}"), ..Extension::default() };
        Node {
            id: "a".to_owned(),
            cluster: "b".to_owned(),
            locality: Some(Locality { zone: "z".to_owned(), ..Locality::default() }),
            extensions: (0..40).map(named).collect(),
            client_features: vec!["f".to_owned()],
            ..Node::default()
        }
    }

    #[test]
    fn a_node_is_read_but_for_its_extensions() {
        let bytes = Bytes::from(node().encode_to_vec());
        let kept = Node { extensions: Vec::new(), ..node() };
        assert_eq!(decode_node(&bytes).unwrap(), kept);
        assert!(decode_node(&bytes.slice(..bytes.len() - 1)).is_err());
    }

    proptest! {
        #[test]
        fn whatever_a_node_is_made_of_it_is_read_as_prost_reads_it(
            cut in 0..400_usize,
            at in 0..400_usize,
            // prost takes the entry of a map for one whatever its wire type is.
            byte in any::<u8>().prop_filter("a map", |byte| byte >> 3 != DYNAMIC_PARAMETERS),
        ) {
            let mut bytes = node().encode_to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length - cut % 8);
            let whole = Node::decode(&bytes[..]);
            let read = decode_node(&bytes.into());
            // What is wrong within extensions alone is not looked at.
            if let Ok(whole) = whole {
                prop_assert_eq!(read.unwrap(), Node { extensions: Vec::new(), ..whole });
            }
        }
    }
}
