//! The table that is printed, and the same as JSON.
//!
//! In: figures of each server. Out: lines with ratios, and which bars were met.
//!
//! **Invariant:** a figure that could not be taken misses its bar.

use serde_json::{Value, json};

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    Seconds,
    Bytes,
    Mebibytes,
    Cores,
    Ratio,
}

/// What Heddle's figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    None,
    AtMost(f64),
    /// So many times that of the floor.
    TimesFloor(f64),
}

/// One figure of all servers; none: not taken, because the scenario says nothing of that server,
/// or infinite, because changes were lost.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) heddle: Option<f64>,
    pub(crate) floor: Option<f64>,
    pub(crate) go: Option<f64>,
    pub(crate) bar: Bar,
}

// === impl Unit ===

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Microseconds => format!("{value:.1} µs"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{value:.0} B"),
            Self::Mebibytes => format!("{value:.0} MiB"),
            Self::Cores => format!("{value:.3} cores"),
            Self::Ratio => format!("{value:.2} x"),
        }
    }
}

// === impl Row ===

impl Row {
    /// Whether its bar is met; none without a bar.
    pub(crate) fn is_met(&self) -> Option<bool> {
        match self.bar {
            Bar::None => None,
            Bar::AtMost(most) => Some(self.heddle.is_some_and(|value| value <= most)),
            Bar::TimesFloor(most) => {
                Some(ratio(self.heddle, self.floor).is_some_and(|ratio| ratio <= most))
            }
        }
    }

    fn cells(&self) -> [String; 8] {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |v| self.unit.show(v));
        let times = |ratio: Option<f64>| ratio.map_or(String::new(), |r| format!("{r:.2}"));
        let bar = match self.bar {
            Bar::None => String::new(),
            Bar::AtMost(most) => format!("≤ {}", self.unit.show(most)),
            Bar::TimesFloor(most) => format!("≤ {most} x floor"),
        };
        let met = self.is_met().map_or("", |met| if met { "met" } else { "MISSED" });
        [
            self.what.clone(),
            show(self.heddle),
            show(self.floor),
            show(self.go),
            times(ratio(self.heddle, self.floor)),
            times(ratio(self.go, self.heddle)),
            bar,
            met.to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": format!("{:?}", self.unit), "heddle": self.heddle,
            "floor": self.floor, "go_control_plane": self.go, "bar": format!("{:?}", self.bar),
            "met": self.is_met(),
        })
    }
}

fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.zip(other).filter(|(_, other)| *other > 0.0).map(|(one, other)| one / other)
}

/// The rows as a table of Markdown.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let head = "| figure | Heddle | floor | go-control-plane | Heddle / floor | \
                go-control-plane / Heddle | bar | |\n|---|---|---|---|---|---|---|---|\n";
    let lines = rows.iter().map(|row| format!("| {} |\n", row.cells().join(" | ")));
    head.to_owned() + &lines.collect::<String>()
}

/// The rows as JSON.
pub(crate) fn json(rows: &[Row]) -> Value {
    Value::from(rows.iter().map(Row::json).collect::<Vec<_>>())
}
