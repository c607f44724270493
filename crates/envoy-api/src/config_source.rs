//! Where Envoy is told to fetch a resource from.
//!
//! In: nothing. Out: the one `ConfigSource` that every resource of ours carries.
//!
//! **Invariant:** the encoded bytes never change by accident. Envoy keys subscriptions and secret
//! providers by a hash of the `ConfigSource`: with other bytes it makes a second provider next to
//! the first, starts it empty, and connections lose their TLS until it is filled. A release that
//! changes them does this to every connection of the mesh.

use crate::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::envoy::config::core::v3::{AggregatedConfigSource, ApiVersion, ConfigSource};

/// From the stream that the bootstrap opened, with API version 3.
///
/// The same for EDS, RDS, VHDS and SDS. `initial_fetch_timeout` stays unset, that is 15 s: a
/// listener that waits for its routes or virtual hosts opens then at the latest.
pub fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn the_bytes_are_what_every_running_envoy_has_hashed() {
        // Field 3 (ads): an empty message; field 6 (resource_api_version): 2. If this fails, the
        // change cuts TLS across every mesh that upgrades: undo it, do not edit this line.
        assert_eq!(ads().encode_to_vec(), [0x1a, 0x00, 0x30, 0x02]);
    }
}
