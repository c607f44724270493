//! JSON as a tree: what an API server sends, without places.
//!
//! In: any deserializer. Out: a `Node`.
//!
//! **Invariant:** every JSON value has a tree, so that one odd object cannot break a stream of
//! objects; bounded in depth by the deserializer.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::yaml::{Entry, Mark, Node, Value};

struct Tree;

fn node(value: Value) -> Node {
    Node { value, at: Mark::default() }
}

// === impl Node ===

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree).map(node)
    }
}

// === impl Tree ===

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    #[allow(clippy::cast_precision_loss, reason = "what is no i64 is a number of YAML as well")]
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::List(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        // An API server writes no key twice, and would have taken the last of two.
        while let Some((key, value)) = entries.next_entry()? {
            out.push(Entry { key, at: Mark::default(), duplicate: false, value });
        }
        Ok(Value::Map(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_as_the_same_text_does_as_yaml() {
        let text =
            r#"{"a": [1, -2, 1.5, true, null, "x\ny"], "b": {"c": {}}, "d": 18446744073709551615}"#;
        let from_json: Node = serde_json::from_str(text).expect("json");
        let from_yaml = crate::yaml::parse(text).expect("yaml");
        assert_eq!(from_json.to_json(), from_yaml.to_json());
    }
}
