//! A message of any type, kept as its bytes.
//!
//! In: a message. Out: its type URL and its bytes, and back.
//!
//! **Invariant:** never decodes unless asked; cloning shares the bytes.
//!
//! ```
//! use envoy_api::{Any, envoy::extensions::filters::http::router::v3::Router};
//!
//! let any = Any::pack(&Router::default());
//! assert_eq!(any.unpack::<Router>(), Ok(Router::default()));
//! ```

use bytes::Bytes;
use prost::{DecodeError, Message, Name};

/// Stands for `google.protobuf.Any` in every generated message.
///
/// prost's own type holds a `Vec`, so each clone of a listener would copy its filters.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    /// Domain and full name of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Why an `Any` could not be read as the wanted type.
#[derive(Clone, Debug, PartialEq)]
pub enum UnpackError {
    /// It holds another type, whose URL this is.
    OtherType(String),
    /// Its bytes are no such message.
    Malformed(DecodeError),
}

// === impl Any ===

impl Any {
    /// Encode a message.
    pub fn pack<M: Message + Name>(message: &M) -> Self {
        Self { type_url: M::type_url(), value: message.encode_to_vec().into() }
    }

    /// Decode as `M`. Errors: another type, or bytes that are no `M`.
    pub fn unpack<M: Message + Name + Default>(&self) -> Result<M, UnpackError> {
        if self.type_name() != M::full_name() {
            return Err(UnpackError::OtherType(self.type_url.clone()));
        }
        M::decode(self.value.clone()).map_err(UnpackError::Malformed)
    }

    /// Full name of the message, without the domain.
    pub fn type_name(&self) -> &str {
        type_name(&self.type_url)
    }
}

impl Name for Any {
    const NAME: &'static str = "Any";
    const PACKAGE: &'static str = "google.protobuf";

    fn type_url() -> String {
        "type.googleapis.com/google.protobuf.Any".to_owned()
    }
}

// === impl UnpackError ===

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherType(url) => write!(f, "the message is a {url}"),
            Self::Malformed(error) => write!(f, "malformed message: {error}"),
        }
    }
}

impl std::error::Error for UnpackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::OtherType(_) => None,
            Self::Malformed(error) => Some(error),
        }
    }
}

/// What follows the last slash of a type URL.
pub(crate) fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;
    use crate::envoy::config::endpoint::v3::ClusterLoadAssignment;

    #[test]
    fn a_message_survives_and_another_type_is_refused() {
        let cluster = Cluster { name: "a".to_owned(), ..Default::default() };
        let any = Any::pack(&cluster);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!(any.unpack::<Cluster>(), Ok(cluster));
        assert_eq!(
            any.unpack::<ClusterLoadAssignment>(),
            Err(UnpackError::OtherType(any.type_url.clone()))
        );
    }
}
