//! `localityLbSetting`: how much it matters where clients and endpoints run.
//!
//! In: the setting of a DestinationRule or of the mesh. Out: a `LocalityBalance` of the model.
//!
//! **Invariant:** shares of a place add up to 100, as the API has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::LocalityBalance;
use model::{ObjectRef, Problem, Reason};
use serde::Deserialize;

use crate::schema::{OnBad, Rule, Type, field};
use crate::text;

/// A `localityLbSetting`.
pub(super) const LOCALITY: Type = Type::Ruled(
    &Type::Object(&[
        field(
            "distribute",
            Type::List(
                &Type::Object(&[
                    field("from", Type::Checked(pattern)).required(),
                    field("to", Type::Map(pattern, &Type::Integer(0, 100))).required(),
                ]),
                OnBad::Field,
            ),
        ),
        field(
            "failover",
            Type::List(
                &Type::Object(&[
                    field("from", Type::Checked(text::not_empty)).required(),
                    field("to", Type::Checked(text::not_empty)).required(),
                ]),
                OnBad::Field,
            ),
        ),
        // Without one of them the others would mean something else.
        field("failoverPriority", Type::List(&Type::Checked(label), OnBad::Parent)),
        field("enabled", Type::Bool),
    ]),
    &[Rule {
        holds: "!(has(self.distribute) && has(self.failover))",
        else_says: "must not hold both distribute and failover",
    }],
);

/// `*`, or `region/zone/subzone` with `*` for what does not matter.
fn pattern(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.split('/').collect();
    if !text.is_empty() && parts.len() <= 3 && parts.iter().all(|part| !part.is_empty()) {
        return Ok(());
    }
    Err(format!("must be like region/zone/*, but is {text:?}"))
}

/// A label by its key, or a key and a value, as `version=v1`.
fn label(text: &str) -> Result<(), String> {
    let (key, value) = asked(text);
    let good = |part: &str| !part.is_empty() && !part.contains(char::is_whitespace);
    match good(&key) && value.as_deref().is_none_or(good) {
        true => Ok(()),
        false => Err(format!("must be the key of a label, or key=value, but is {text:?}")),
    }
}

/// What a text of `label` means.
fn asked(text: &str) -> (Arc<str>, Option<Arc<str>>) {
    match text.split_once('=') {
        Some((key, value)) => (Arc::from(key), Some(Arc::from(value))),
        None => (Arc::from(text), None),
    }
}

/// The decoded form of `LOCALITY`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Locality {
    distribute: Vec<Option<Distribute>>,
    failover: Vec<Option<Failover>>,
    #[serde(rename = "failoverPriority")]
    failover_priority: Vec<String>,
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct Distribute {
    from: Arc<str>,
    to: BTreeMap<Arc<str>, u32>,
}

#[derive(Deserialize)]
struct Failover {
    from: Arc<str>,
    to: Arc<str>,
}

// === impl Locality ===

impl Locality {
    /// The setting that stands at `path` of an object.
    pub(super) fn lower(
        self,
        owner: &Arc<ObjectRef>,
        path: &str,
        problems: &mut Vec<Problem>,
    ) -> LocalityBalance {
        let Self { distribute, failover, failover_priority, enabled } = self;
        let mut out = LocalityBalance {
            enabled: enabled.unwrap_or(true),
            distribute: Vec::new(),
            failover: failover.into_iter().flatten().map(|f| (f.from, f.to)).collect(),
            priority: failover_priority.iter().map(|text| asked(text)).collect(),
        };
        for (index, entry) in distribute.into_iter().enumerate() {
            let Some(Distribute { from, to }) = entry else { continue };
            let sum: u32 = to.values().sum();
            if sum != 100 {
                let field = format!("{path}.distribute[{index}].to");
                let message = format!("the shares add up to {sum}; make them add up to 100");
                problems.push(Problem::error(owner, field, Reason::OutOfRange, message));
                continue;
            }
            // Those that say more come first.
            let mut to: Vec<(Arc<str>, u32)> = to.into_iter().filter(|(_, s)| *s > 0).collect();
            to.sort_by_key(|(pattern, _)| pattern.matches('*').count());
            out.distribute.push((from, to));
        }
        out
    }
}
