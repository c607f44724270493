//! The discovery messages, reduced to the fields that are used.
//!
//! In: requests, whose node stays undecoded bytes: proxies repeat up to 60 KB of it in every
//! message, and only the first counts. Out: one response as a gRPC frame of shared bytes.
//!
//! **Invariant:** the bytes of a large resource are never copied.

use std::collections::HashMap;
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
    #[prost(map = "string, string", tag = "5")]
    initial_resource_versions: HashMap<String, String>,
    #[prost(string, tag = "6")]
    nonce: String,
    #[prost(message, optional, tag = "7")]
    error: Option<ErrorDetail>,
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
    fn frame(response: &Response, control_plane: &str) -> Vec<Bytes>;
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
        let request = DeltaRequest {
            subscribe: self.subscribe,
            unsubscribe: self.unsubscribe,
            initial_resource_versions: self.initial_resource_versions.into_iter().collect(),
            nonce: self.nonce,
            error: self.error.map(ErrorDetail::text),
        };
        if let Machine::Delta(session) = machine {
            session.on_request(now, resource_type, request);
        }
    }

    fn frame(response: &Response, control_plane: &str) -> Vec<Bytes> {
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

    fn frame(response: &Response, control_plane: &str) -> Vec<Bytes> {
        sotw_frame(response, control_plane)
    }
}

/// The id in an encoded node; `None` = empty or not a node.
pub(super) fn node_id(node: &Bytes) -> Option<String> {
    let node = NodeId::decode(node.clone()).ok()?;
    Some(node.id).filter(|id| !id.is_empty())
}

/// A `DeltaDiscoveryResponse` as the chunks of one gRPC frame.
fn delta_frame(response: &Response, control_plane: &str) -> Vec<Bytes> {
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

/// A `DiscoveryResponse` as the chunks of one gRPC frame.
fn sotw_frame(response: &Response, control_plane: &str) -> Vec<Bytes> {
    let mut head = Vec::new();
    put_field(&mut head, 1, response.version.as_bytes());
    put_field(&mut head, 4, response.resource_type.type_url().as_bytes());
    put_field(&mut head, 5, response.nonce.as_bytes());
    put_control_plane(&mut head, 6, control_plane);
    frame(head, response.resources.iter().map(|r| r.sotw_entry()))
}

/// The delta answer to names of a type that is not served.
pub(super) fn unknown_type_frame(
    type_url: &str,
    nonce: &str,
    names: &[String],
    control_plane: &str,
) -> Vec<Bytes> {
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

/// Prefix (not compressed, length), head, entries: small ones joined, large ones shared.
fn frame(head: Vec<u8>, entries: impl Iterator<Item = Bytes> + Clone) -> Vec<Bytes> {
    let length = head.len() + entries.clone().map(|entry| entry.len()).sum::<usize>();
    let mut joined = BytesMut::with_capacity(5 + head.len());
    joined.put_u8(0);
    joined.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    joined.put_slice(&head);
    let mut chunks = Vec::new();
    for entry in entries {
        if entry.len() <= JOIN {
            joined.put_slice(&entry);
            continue;
        }
        if !joined.is_empty() {
            chunks.push(joined.split().freeze());
        }
        chunks.push(entry);
    }
    if !joined.is_empty() {
        chunks.push(joined.freeze());
    }
    chunks
}
