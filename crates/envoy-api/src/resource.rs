//! What travels over xDS: a resource encoded once, addressed by its content.
//!
//! In: the bytes of one Envoy message and the names it refers to. Out: the very bytes that delta
//! and SotW responses carry, shared by every stream.
//!
//! **Invariant:** knows no mesh and no proxy; equal input gives equal bytes and an equal version
//! on every replica and after every restart.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use xxhash_rust::xxh3::xxh3_64;

/// A type of resource, in the order in which changes are pushed.
///
/// The order matters: a cluster before its endpoints before the listeners and routes that name
/// it. Code that sorts by this type gets make-before-break for free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster`, by CDS.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`, by EDS.
    Endpoints,
    /// `envoy.config.listener.v3.Listener`, by LDS.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`, by RDS.
    RouteConfiguration,
    /// `envoy.config.route.v3.VirtualHost`, by VHDS.
    VirtualHost,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`, by SDS.
    Secret,
}

/// The version of a resource: a hash of its content.
/// Shape: 16 lower-case hexadecimal digits on the wire. Source: xxh3, 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u64);

/// Something a resource names and cannot work without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    /// Type of what is named.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: Arc<str>,
}

/// One resource, encoded once; cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedResource {
    resource_type: ResourceType,
    name: Arc<str>,
    version: ContentHash,
    /// One `resources` entry of a `DeltaDiscoveryResponse`; contains the SotW entry and the body.
    entry: Bytes,
    any_at: u32,
    body_at: u32,
    refs: Arc<[ResourceRef]>,
    claims: Arc<[Arc<str>]>,
    row: u64,
}

// === impl ResourceType ===

impl ResourceType {
    /// Every type, in push order.
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::RouteConfiguration,
        Self::VirtualHost,
        Self::Secret,
    ];

    /// The type URL that Envoy uses.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => {
                "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
            }
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The type with this URL, if we serve it.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// The three or four letters that operators know, such as `CDS`.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::RouteConfiguration => "RDS",
            Self::VirtualHost => "VHDS",
            Self::Secret => "SDS",
        }
    }

    /// Whether a first request without names asks for everything (CDS, LDS; VHDS means all hosts
    /// of the RouteConfigurations sent on the stream).
    pub fn is_wildcard_capable(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::VirtualHost)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

// === impl ContentHash ===

impl ContentHash {
    /// Hash of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }

    /// Read back what `Display` wrote; `None` when it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl ResourceRef ===

impl ResourceRef {
    /// A reference to the resource of this type and name.
    pub fn new(resource_type: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { resource_type, name: name.into() }
    }
}

// === impl EncodedResource ===

/// Field 2 of DeltaDiscoveryResponse, of DiscoveryResponse and, by luck, of Resource.
const RESOURCES: u32 = 2;

impl EncodedResource {
    /// Wrap the encoded message `body`.
    ///
    /// The version is the hash of `body`. `refs` are what must be held before this resource is
    /// sent and may not be removed while this is held; they are sorted and deduplicated here.
    pub fn new(
        resource_type: ResourceType,
        name: impl Into<Arc<str>>,
        body: &[u8],
        refs: Vec<ResourceRef>,
    ) -> Self {
        Self::with_version(resource_type, name, ContentHash::of(body), body, refs)
    }

    /// As `new`, with a version that the caller derived from the content in a cheaper way.
    pub fn with_version(
        resource_type: ResourceType,
        name: impl Into<Arc<str>>,
        version: ContentHash,
        body: &[u8],
        mut refs: Vec<ResourceRef>,
    ) -> Self {
        let name = name.into();
        refs.sort();
        refs.dedup();
        let url = resource_type.type_url();
        let version_text = version.to_string();
        let any_len = field_len(1, url.len()) + field_len(2, body.len());
        // Envoy accepts any field order; ours puts the Any last, so that it is one slice that
        // serves SotW as it is.
        let resource_len = field_len(1, version_text.len())
            + field_len(3, name.len())
            + field_len(RESOURCES, any_len);
        let mut out = Vec::with_capacity(field_len(RESOURCES, resource_len));
        put_header(&mut out, RESOURCES, resource_len);
        put_field(&mut out, 1, version_text.as_bytes());
        put_field(&mut out, 3, name.as_bytes());
        let any_at = out.len();
        put_header(&mut out, RESOURCES, any_len);
        put_field(&mut out, 1, url.as_bytes());
        put_header(&mut out, 2, body.len());
        let body_at = out.len();
        out.extend_from_slice(body);
        Self {
            resource_type,
            name,
            version,
            entry: out.into(),
            any_at: u32::try_from(any_at).unwrap_or(u32::MAX),
            body_at: u32::try_from(body_at).unwrap_or(u32::MAX),
            refs: refs.into(),
            claims: Arc::from([]),
            row: 0,
        }
    }

    /// Say which names only this resource may hold within its parent (the domains of a virtual
    /// host): two holders at once would be a NACK.
    #[must_use]
    pub fn with_claims(mut self, mut claims: Vec<Arc<str>>) -> Self {
        claims.sort();
        claims.dedup();
        self.claims = claims.into();
        self
    }

    /// Say what it was made of, as a number that its maker understands.
    #[must_use]
    pub fn with_row(self, row: u64) -> Self {
        Self { row, ..self }
    }

    /// What it was made of; 0 where that was not said.
    pub fn row(&self) -> u64 {
        self.row
    }

    /// Type of the resource.
    pub fn resource_type(&self) -> ResourceType {
        self.resource_type
    }

    /// Name of the resource, unique within its type on one stream.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Version: equal content, equal version.
    pub fn version(&self) -> ContentHash {
        self.version
    }

    /// What must be held before this.
    pub fn refs(&self) -> &[ResourceRef] {
        &self.refs
    }

    /// Names that only one resource of the same parent may hold, sorted.
    pub fn claims(&self) -> &[Arc<str>] {
        &self.claims
    }

    /// One `resources` entry of a `DeltaDiscoveryResponse`: key, length, `Resource`.
    pub fn delta_entry(&self) -> Bytes {
        self.entry.clone()
    }

    /// One `resources` entry of a `DiscoveryResponse`: key, length, `Any`.
    pub fn sotw_entry(&self) -> Bytes {
        self.entry.slice(self.any_at as usize..)
    }

    /// The encoded message itself.
    pub fn body(&self) -> Bytes {
        self.entry.slice(self.body_at as usize..)
    }
}

impl fmt::Debug for EncodedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}@{}", self.resource_type, self.name, self.version)
    }
}

/// Length of a length-delimited field with `len` bytes of content.
pub fn field_len(field: u32, len: usize) -> usize {
    encoded_len_varint(u64::from(field << 3)) + encoded_len_varint(len as u64) + len
}

/// Append key and length of a length-delimited field; the content follows.
pub fn put_header(out: &mut Vec<u8>, field: u32, len: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// Append a length-delimited field.
pub fn put_field(out: &mut Vec<u8>, field: u32, content: &[u8]) {
    put_header(out, field, content.len());
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_an_equal_version_and_slices_nest() {
        let refs = vec![
            ResourceRef::new(ResourceType::Cluster, "b"),
            ResourceRef::new(ResourceType::Cluster, "a"),
            ResourceRef::new(ResourceType::Cluster, "a"),
        ];
        let one = EncodedResource::new(ResourceType::Cluster, "c", b"body", refs);
        let two = EncodedResource::new(ResourceType::Cluster, "c", b"body", vec![]);
        assert_eq!(one.version(), two.version());
        assert_eq!(one.refs().len(), 2);
        assert_eq!(&one.body()[..], b"body");
        assert!(one.delta_entry().ends_with(&one.sotw_entry()));
        assert_eq!(ContentHash::parse(&one.version().to_string()), Some(one.version()));
    }
}
