//! `exportTo`: the namespaces that see an object.
//!
//! In: entries as they were written. Out: visibility of the model.
//!
//! **Invariant:** what cannot be read never widens who sees an object.

use std::collections::BTreeSet;

use model::rows::DefaultVisibility;

use crate::schema::{OnBad, Type};

/// Entries of `exportTo`; losing one would change who sees the object.
pub(crate) const EXPORT_TO: Type = Type::List(&Type::Checked(check), OnBad::Parent);

/// `*`, `.`, `~` or the name of a namespace.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_namespace = (1..=63).contains(&text.len())
        && text.chars().all(good)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_namespace || matches!(text, "*" | "." | "~") {
        return Ok(());
    }
    Err(format!("{text:?} is neither `*`, `.`, `~` nor the name of a namespace"))
}

/// What entries that were checked come to; none without any. `*` outweighs all others, then `~`.
pub(crate) fn visibility<'a>(
    entries: impl IntoIterator<Item = &'a str>,
) -> Option<DefaultVisibility> {
    let (mut any, mut everyone, mut nobody, mut own) = (false, false, false, false);
    let mut namespaces = BTreeSet::new();
    for entry in entries {
        any = true;
        match entry {
            "*" => everyone = true,
            "~" => nobody = true,
            "." => own = true,
            name => {
                namespaces.insert(name.into());
            }
        }
    }
    match (any, everyone, nobody) {
        (false, ..) => None,
        (_, true, _) => Some(DefaultVisibility::Everyone),
        (_, _, true) => Some(DefaultVisibility::Only { own: false, namespaces: [].into() }),
        _ => Some(DefaultVisibility::Only { own, namespaces }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_signs_and_namespaces() {
        for good in ["*", ".", "~", "a", "shop-2", "0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", " ", "**", "a.b", "-a", "a-", "A", "a b", "a,b", "*.shop", "!a"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn everyone_outweighs_nobody_and_nobody_outweighs_names() {
        let sees = |entries: &[&str], client: &str| {
            let found = visibility(entries.iter().copied()).expect("there are entries");
            found.of(&"own".into()).sees(client)
        };
        assert!(sees(&["~", "*", "a"], "b"));
        assert!(!sees(&["~", ".", "a"], "a") && !sees(&["~", "."], "own"));
        assert!(sees(&[".", "a"], "own") && sees(&[".", "a"], "a") && !sees(&[".", "a"], "b"));
        assert!(!sees(&["a"], "own"));
        assert_eq!(visibility([]), None);
    }
}
