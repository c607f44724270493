//! Where Envoy is told to fetch a resource from.
//!
//! In: nothing. Out: the `ConfigSource` that every resource of ours carries, and the one for the
//! secrets that the agent beside Envoy serves.
//!
//! **Invariant:** the encoded bytes never change by accident. Envoy keys subscriptions and secret
//! providers by a hash of the `ConfigSource`: with other bytes it makes a second provider next to
//! the first, starts it empty, and connections lose their TLS until it is filled. A release that
//! changes them does this to every connection of the mesh.

use crate::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::envoy::config::core::v3::{
    AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService,
    api_config_source, grpc_service,
};

/// Name of the cluster that leads to the agent.
pub const SDS_CLUSTER: &str = "sds-grpc";

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

/// From the agent beside Envoy, without a time limit: a listener that needs a certificate opens
/// when there is one.
pub fn agent() -> ConfigSource {
    let api = ApiConfigSource {
        api_type: api_config_source::ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![agent_service()],
        ..Default::default()
    };
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: Some(prost_types::Duration::default()),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api)),
        ..Default::default()
    }
}

/// The agent beside Envoy, for whatever it serves.
pub fn agent_service() -> GrpcService {
    let envoy_grpc =
        grpc_service::EnvoyGrpc { cluster_name: SDS_CLUSTER.to_owned(), ..Default::default() };
    GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(envoy_grpc)),
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

    #[test]
    fn the_bytes_for_secrets_are_what_every_running_envoy_has_hashed() {
        // Field 2 (api_config_source): gRPC to the cluster, version 3, the node once; field 4
        // (initial_fetch_timeout): zero; field 6: 2. As above: undo the change, not this line.
        let mut bytes = vec![0x12, 0x14, 0x08, 0x02, 0x22, 0x0c, 0x0a, 0x0a, 0x0a, 0x08];
        bytes.extend(SDS_CLUSTER.as_bytes());
        bytes.extend([0x38, 0x01, 0x40, 0x02, 0x22, 0x00, 0x30, 0x02]);
        assert_eq!(agent().encode_to_vec(), bytes);
    }
}
