//! Envoy messages as JSON, spelled as Envoy's own admin pages spell them.
//!
//! In: an encoded message. Out: a JSON value with proto field names, without default fields, with
//! packed messages expanded; and back.
//!
//! Why not the serializer of `prost-reflect`: it gives up the whole message when one packed
//! message is of a type that it does not know.
//!
//! **Invariant:** printing never fails: what cannot be read is shown as base64. Objects are sorted.
//!
//! ```
//! use envoy_api::{envoy::config::cluster::v3::Cluster, json};
//!
//! let cluster = Cluster { name: "a".to_owned(), ..Default::default() };
//! assert_eq!(json::message_to_json(&cluster).to_string(), r#"{"name":"a"}"#);
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, Value as Field,
};
use serde_json::{Map, Value};

use crate::any::type_name;

/// The encoded `FileDescriptorSet` of every generated type, without comments and custom options.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    // Our own build wrote the bytes; with an empty pool everything would be shown as base64.
    DescriptorPool::decode(DESCRIPTORS).unwrap_or_default()
});

/// Why JSON is not the wanted message: names the field or the type at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(String);

/// A message of any type as JSON, with its `@type`.
/// A type that is not ours, or a malformed body, is shown as base64 under `value`.
pub fn to_json(type_url: &str, body: &[u8]) -> Value {
    let known = POOL
        .get_message_by_name(type_name(type_url))
        .and_then(|descriptor| DynamicMessage::decode(descriptor, body).ok());
    let mut out = match known.as_ref().map(|message| (message, message_value(message))) {
        Some((message, Value::Object(fields))) if !is_special(&message.descriptor()) => fields,
        Some((_, value)) => Map::from_iter([("value".to_owned(), value)]),
        None => Map::from_iter([("value".to_owned(), base64(body))]),
    };
    out.insert("@type".to_owned(), type_url.into());
    Value::Object(out)
}

/// A message as JSON, without `@type`.
pub fn message_to_json<M: Message + Name>(message: &M) -> Value {
    let mut value = to_json(&M::type_url(), &message.encode_to_vec());
    if let Value::Object(fields) = &mut value {
        fields.remove("@type");
    }
    value
}

/// Read a message from JSON as Envoy would.
/// Errors: an unknown field, a value of another type, a packed message of an unknown type.
pub fn from_json<M: Message + Name + Default>(value: &Value) -> Result<M, ParseError> {
    let name = M::full_name();
    let descriptor = POOL
        .get_message_by_name(&name)
        .ok_or_else(|| ParseError(format!("{name} is not a known type")))?;
    let message =
        DynamicMessage::deserialize(descriptor, value).map_err(|e| ParseError(e.to_string()))?;
    M::decode(message.encode_to_vec().as_slice()).map_err(|e| ParseError(e.to_string()))
}

/// A JSON object as `google.protobuf.Struct`.
pub fn to_struct(object: &Map<String, Value>) -> prost_types::Struct {
    let fields: BTreeMap<_, _> =
        object.iter().map(|(name, value)| (name.clone(), to_struct_value(value))).collect();
    prost_types::Struct { fields }
}

/// A JSON value as `google.protobuf.Value`.
pub fn to_struct_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(it) => Kind::BoolValue(*it),
        Value::Number(it) => Kind::NumberValue(it.as_f64().unwrap_or_default()),
        Value::String(it) => Kind::StringValue(it.clone()),
        Value::Array(items) => {
            let values = items.iter().map(to_struct_value).collect();
            Kind::ListValue(prost_types::ListValue { values })
        }
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

// === impl ParseError ===

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

/// Whether JSON spells this message as something else than its fields.
fn is_special(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf" && descriptor.name() != "Empty"
}

fn message_value(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    if is_special(&descriptor)
        && let Some(value) = special_value(descriptor.name(), message)
    {
        return value;
    }
    let fields = message
        .fields()
        .map(|(field, value)| (field.name().to_owned(), field_value(&field, value)));
    Value::Object(fields.collect())
}

fn field_value(field: &FieldDescriptor, value: &Field) -> Value {
    match value {
        Field::List(items) => items.iter().map(|item| one_value(&field.kind(), item)).collect(),
        Field::Map(entries) => {
            let Kind::Message(entry) = field.kind() else { return Value::Null };
            let kind = entry.map_entry_value_field().kind();
            let entries =
                entries.iter().map(|(key, value)| (key_text(key), one_value(&kind, value)));
            Value::Object(entries.collect())
        }
        value => one_value(&field.kind(), value),
    }
}

fn one_value(kind: &Kind, value: &Field) -> Value {
    match value {
        Field::Bool(it) => Value::Bool(*it),
        Field::I32(it) => Value::from(*it),
        Field::U32(it) => Value::from(*it),
        // JSON readers keep 53 bits of a number.
        Field::I64(it) => Value::String(it.to_string()),
        Field::U64(it) => Value::String(it.to_string()),
        Field::F32(it) => float(f64::from(*it), || it.to_string()),
        Field::F64(it) => float(*it, || it.to_string()),
        Field::String(it) => Value::String(it.clone()),
        Field::Bytes(it) => base64(it),
        Field::EnumNumber(number) => {
            if let Kind::Enum(values) = kind
                && let Some(value) = values.get_value(*number)
            {
                return match values.full_name() {
                    "google.protobuf.NullValue" => Value::Null,
                    _ => value.name().into(),
                };
            }
            Value::from(*number)
        }
        Field::Message(message) => message_value(message),
        Field::List(_) | Field::Map(_) => Value::Null,
    }
}

/// A float in its shortest form: 0.1 as `f32` stays 0.1.
fn float(value: f64, shortest: impl Fn() -> String) -> Value {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    shortest().parse::<f64>().map_or(Value::Null, Value::from)
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(it) => it.to_string(),
        MapKey::I32(it) => it.to_string(),
        MapKey::I64(it) => it.to_string(),
        MapKey::U32(it) => it.to_string(),
        MapKey::U64(it) => it.to_string(),
        MapKey::String(it) => it.clone(),
    }
}

/// The well-known types; `None` for those that are spelled as their fields after all.
fn special_value(name: &str, message: &DynamicMessage) -> Option<Value> {
    Some(match name {
        "Any" => {
            let any: crate::Any = message.transcode_to().ok()?;
            if any.type_url.is_empty() {
                return Some(Value::Object(Map::new()));
            }
            to_json(&any.type_url, &any.value)
        }
        "Duration" => message.transcode_to::<prost_types::Duration>().ok()?.to_string().into(),
        "Timestamp" => message.transcode_to::<prost_types::Timestamp>().ok()?.to_string().into(),
        "FieldMask" => {
            message.transcode_to::<prost_types::FieldMask>().ok()?.paths.join(",").into()
        }
        "Struct" => from_struct(&message.transcode_to().ok()?),
        "Value" => from_struct_value(&message.transcode_to().ok()?),
        "ListValue" => {
            let list: prost_types::ListValue = message.transcode_to().ok()?;
            list.values.iter().map(from_struct_value).collect()
        }
        _ if name.ends_with("Value") => {
            let field = message.descriptor().get_field_by_name("value")?;
            one_value(&field.kind(), &message.get_field(&field))
        }
        _ => return None,
    })
}

fn from_struct(object: &prost_types::Struct) -> Value {
    let fields = object.fields.iter().map(|(name, it)| (name.clone(), from_struct_value(it)));
    Value::Object(fields.collect())
}

fn from_struct_value(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(it)) => Value::Bool(*it),
        Some(Kind::NumberValue(it)) => number(*it),
        Some(Kind::StringValue(it)) => Value::String(it.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_struct_value).collect(),
        Some(Kind::StructValue(object)) => from_struct(object),
    }
}

/// A whole number without a fraction, as people wrote it.
#[allow(clippy::cast_possible_truncation)]
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return Value::from(value as i64);
    }
    Value::from(value)
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::Any;
    use crate::envoy::config::cluster::v3::{Cluster, cluster};
    use crate::envoy::config::core::v3::{
        DataSource, Metadata, TrafficDirection, TransportSocket, data_source, transport_socket,
    };
    use crate::envoy::config::endpoint::v3::LbEndpoint;
    use crate::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
    use crate::envoy::extensions::filters::http::router::v3::Router;
    use serde_json::json;

    fn packed(any: Any) -> TransportSocket {
        TransportSocket {
            name: "t".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any)),
        }
    }

    #[test]
    fn given_fields_of_every_kind_then_they_read_as_in_envoy() {
        let metadata = json!({ "a": [1, 2.5, null, true], "b": { "c": "d" } });
        let filter_metadata =
            [("n".to_owned(), to_struct(metadata.as_object().expect("an object")))].into();
        let cluster = Cluster {
            name: "a".to_owned(),
            connect_timeout: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            per_connection_buffer_limit_bytes: Some(0),
            lb_policy: cluster::LbPolicy::Maglev.into(),
            metadata: Some(Metadata { filter_metadata, ..Default::default() }),
            lb_config: Some(cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
                minimum_ring_size: Some(1024),
                ..Default::default()
            })),
            ..Default::default()
        };
        let json = json!({
            "name": "a",
            "connect_timeout": "1.500s",
            "per_connection_buffer_limit_bytes": 0,
            "lb_policy": "MAGLEV",
            "metadata": { "filter_metadata": { "n": metadata } },
            "ring_hash_lb_config": { "minimum_ring_size": "1024" },
        });
        assert_eq!(message_to_json(&cluster), json);
        assert_eq!(from_json::<Cluster>(&json), Ok(cluster));
    }

    #[test]
    fn given_an_unknown_packed_message_then_the_rest_is_still_shown() {
        let unknown = Any { type_url: "x/not.Ours".to_owned(), value: vec![1, 2].into() };
        let broken = Any { value: vec![0xff].into(), ..Any::pack(&Router::default()) };
        let router = Any::pack(&Router { suppress_envoy_headers: true, ..Default::default() });
        let filters = [router, unknown, broken].map(|any| Filter {
            name: "f".to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(any)),
        });
        let listener = Listener {
            filter_chains: vec![FilterChain { filters: filters.into(), ..Default::default() }],
            traffic_direction: TrafficDirection::Inbound.into(),
            ..Default::default()
        };
        let url = Router::type_url();
        assert_eq!(
            message_to_json(&listener),
            json!({
                "traffic_direction": "INBOUND",
                "filter_chains": [{ "filters": [
                    {
                        "name": "f",
                        "typed_config": { "@type": url, "suppress_envoy_headers": true },
                    },
                    { "name": "f", "typed_config": { "@type": "x/not.Ours", "value": "AQI=" } },
                    { "name": "f", "typed_config": { "@type": url, "value": "/w==" } },
                ]}],
            })
        );
    }

    #[test]
    fn given_a_packed_well_known_type_then_its_json_stands_under_value() {
        let duration = prost_types::Duration { seconds: 5, nanos: 0 };
        let any = Any {
            type_url: "type.googleapis.com/google.protobuf.Duration".to_owned(),
            value: duration.encode_to_vec().into(),
        };
        let json = message_to_json(&packed(any));
        assert_eq!(json["typed_config"]["value"], "5s");
    }

    #[test]
    fn given_bytes_and_unknown_enum_values_then_they_are_base64_and_numbers() {
        let source = DataSource {
            specifier: Some(data_source::Specifier::InlineBytes(b"hi".to_vec().into())),
            ..Default::default()
        };
        assert_eq!(message_to_json(&source), json!({ "inline_bytes": "aGk=" }));
        let endpoint = LbEndpoint { health_status: 99, ..Default::default() };
        assert_eq!(message_to_json(&endpoint), json!({ "health_status": 99 }));
    }

    #[test]
    fn given_an_unknown_field_then_parsing_names_it() {
        let error = from_json::<Cluster>(&json!({ "nmae": "a" })).expect_err("a typo");
        assert!(error.to_string().contains("nmae"), "{error}");
    }
}
