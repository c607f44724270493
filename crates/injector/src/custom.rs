//! A container of the user's with the name of an injected one: how that one is to differ.
//!
//! In: the container as it would be injected, and the user's. Out: both in one.
//!
//! **Invariant:** what the user says is in force; what he does not say stays.

use serde_json::{Map, Value};

use crate::names::{INIT, PROXY};
use crate::pod::{Container, Pod};

/// What those that use another mesh call the same.
const ALIASES: [(&str, &str); 2] = [(PROXY, "istio-proxy"), (INIT, "istio-init")];

/// Lists of objects, and the field that tells one from another.
const KEYED: [(&str, &str); 4] = [
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("ports", "containerPort"),
    ("volumeDevices", "devicePath"),
];

/// The user's containers of an injected one's name.
pub(crate) fn of<'a>(pod: Pod<'a>, name: &str) -> Vec<Container<'a>> {
    let alias = ALIASES.iter().find(|(ours, _)| *ours == name).map(|(_, alias)| *alias);
    pod.containers().filter(|c| c.name() == name || Some(c.name()) == alias).collect()
}

/// Put what the user says over what would be injected.
pub(crate) fn merge(ours: &mut Value, users: &Value) {
    let (Some(ours), Some(users)) = (ours.as_object_mut(), users.as_object()) else { return };
    for (key, value) in users {
        let chosen = match key.as_str() {
            "name" => continue,
            // What is written where a container must have an image and any will do.
            "image" if value == "auto" => continue,
            // Said by how the cluster runs sidecars.
            "restartPolicy" => continue,
            _ => value,
        };
        put(ours, key, chosen);
    }
}

fn put(ours: &mut Map<String, Value>, key: &str, users: &Value) {
    match (ours.get_mut(key), users) {
        (Some(Value::Object(inner)), Value::Object(users)) => {
            for (key, value) in users {
                put(inner, key, value);
            }
        }
        (Some(Value::Array(items)), Value::Array(users)) => {
            let Some((_, field)) = KEYED.iter().find(|(list, _)| *list == key) else {
                ours.insert(key.to_owned(), Value::Array(users.clone()));
                return;
            };
            for user in users {
                match items.iter_mut().find(|item| item[*field] == user[*field]) {
                    Some(item) => *item = user.clone(),
                    None => items.push(user.clone()),
                }
            }
        }
        _ => {
            ours.insert(key.to_owned(), users.clone());
        }
    }
}
