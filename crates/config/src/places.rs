//! Where the fields of an object stand, kept when its values are not.
//!
//! In: a tree. Out: the place of a path in it.
//!
//! **Invariant:** says the same as the tree.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::yaml::{Mark, Node, Step, Value, steps};

/// Places of the fields of an object, in 16 bytes each.
///
/// Paths are kept as hashes of 64 bits: should two ever be equal, a line that is shown is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    root: Mark,
    /// By hash of the path.
    fields: Box<[(u64, Mark)]>,
}

/// Hash of the path of the object itself.
const ROOT: u64 = 0;

// === impl Places ===

impl Places {
    /// Of a tree whose text begins after so many lines.
    pub(crate) fn of(node: &Node, line_offset: u32) -> Self {
        let mut fields = Vec::new();
        collect(node, ROOT, &mut fields);
        // Stable: of a key that stands twice, the first counts.
        fields.sort_by_key(|(path, _)| *path);
        fields.dedup_by_key(|(path, _)| *path);
        for (_, at) in &mut fields {
            *at = at.after(line_offset);
        }
        Self { root: node.at.after(line_offset), fields: fields.into() }
    }

    /// The place of a field path such as `spec.http[0].match`; of the deepest part that exists.
    pub fn locate(&self, path: &str) -> Mark {
        let mut deepest = (ROOT, self.root);
        for step in steps(path) {
            let path = below(deepest.0, step);
            let Ok(found) = self.fields.binary_search_by_key(&path, |(path, _)| *path) else {
                break;
            };
            deepest = self.fields[found];
        }
        deepest.1
    }
}

fn collect(node: &Node, path: u64, fields: &mut Vec<(u64, Mark)>) {
    match &node.value {
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = below(path, Step::Item(index));
                fields.push((path, item.at));
                collect(item, path, fields);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let path = below(path, Step::Key(&entry.key));
                fields.push((path, entry.at));
                collect(&entry.value, path, fields);
            }
        }
        _ => {}
    }
}

/// Hash of the path that goes one step further.
fn below(path: u64, step: Step<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, step).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    const TEXT: &str = "\
metadata:
  name: a
  labels: {app.kubernetes.io/name: x}
spec:
  http:
  - match: [{uri: {exact: /a}}, {uri: {exact: /b}}]
    route:
    - destination: {host: a}
  - route: []
  http: twice
";

    #[test]
    fn a_place_is_the_one_that_the_tree_says() {
        let node = yaml::parse(TEXT).expect("YAML");
        let places = Places::of(&node, 7);
        let paths = [
            "",
            "metadata.labels",
            "metadata.labels.app.kubernetes.io/name",
            "spec.http[0].match[1].uri.exact",
            "spec.http[0].route[0].destination.host",
            "spec.http[1].route[0].weight",
            "spec.http[2]",
            "spec.http[x]",
            "status",
            "[0]",
        ];
        for path in paths {
            assert_eq!(places.locate(path), node.locate(path).after(7), "{path}");
        }
        assert_eq!(places.locate("spec.http[1].route[0].weight").line, 9 + 7);
    }
}
