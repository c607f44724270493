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

use crate::schema::{OnBad, Rule, Type, field, not_yet};
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
        not_yet("failoverPriority").of(Type::List(&Type::Text, OnBad::Field)),
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

/// The decoded form of `LOCALITY`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Locality {
    distribute: Vec<Option<Distribute>>,
    failover: Vec<Option<Failover>>,
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
        let Self { distribute, failover, enabled } = self;
        let mut out = LocalityBalance {
            enabled: enabled.unwrap_or(true),
            distribute: Vec::new(),
            failover: failover.into_iter().flatten().map(|f| (f.from, f.to)).collect(),
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
