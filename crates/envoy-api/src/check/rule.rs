//! Judges one value by one rule.
//!
//! In: a raw value and a rule. Out: a sentence when the rule is broken.
//!
//! **Invariant:** pure; knows no message and no path.

use std::fmt::Display;

use super::regex;
use super::table::{Bound, Kind, Rule};
use super::wire::Raw;

/// A decoded scalar.
pub(super) enum Scalar<'a> {
    Int(i128),
    Float(f64),
    /// Text or bytes.
    Text(&'a [u8]),
    /// In nanoseconds.
    Duration(i128),
}

// === impl Scalar ===

impl Scalar<'_> {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Int(value) => *value == 0,
            Self::Float(value) => *value == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::Duration(_) => false,
        }
    }
}

// === impl Kind ===

impl Kind {
    /// What an item of a packed list looks like; `None` when lists of this kind are not packed.
    pub(super) fn packed_as(&self) -> Option<Raw<'static>> {
        match self {
            Self::Signed | Self::Unsigned | Self::ZigZag => Some(Raw::Varint(0)),
            Self::Double | Self::Fixed64 | Self::SignedFixed64 => Some(Raw::Fixed64(0)),
            Self::Float | Self::Fixed32 | Self::SignedFixed32 => Some(Raw::Fixed32(0)),
            _ => None,
        }
    }

    /// Decode a scalar; an absent one is its default. `None`: another wire type.
    pub(super) fn scalar<'a>(&self, raw: Option<Raw<'a>>) -> Option<Scalar<'a>> {
        let raw = match raw {
            Some(raw) => raw,
            None => self.packed_as().unwrap_or(Raw::Bytes(&[])),
        };
        Some(match (self, raw) {
            (Self::Signed, Raw::Varint(v)) => Scalar::Int(v.cast_signed().into()),
            (Self::Unsigned, Raw::Varint(v)) => Scalar::Int(v.into()),
            (Self::ZigZag, Raw::Varint(v)) => {
                let half = i128::from(v >> 1);
                Scalar::Int(if v & 1 == 0 { half } else { -half - 1 })
            }
            (Self::Fixed32, Raw::Fixed32(v)) => Scalar::Int(v.into()),
            (Self::Fixed64, Raw::Fixed64(v)) => Scalar::Int(v.into()),
            (Self::SignedFixed32, Raw::Fixed32(v)) => Scalar::Int(v.cast_signed().into()),
            (Self::SignedFixed64, Raw::Fixed64(v)) => Scalar::Int(v.cast_signed().into()),
            (Self::Float, Raw::Fixed32(v)) => Scalar::Float(f32::from_bits(v).into()),
            (Self::Double, Raw::Fixed64(v)) => Scalar::Float(f64::from_bits(v)),
            (Self::String | Self::Bytes, Raw::Bytes(text)) => Scalar::Text(text),
            _ => return None,
        })
    }
}

// === impl Rule ===

impl Rule {
    /// What to say when the value breaks the rule. Rules of another kind of value say nothing.
    pub(super) fn broken_by(&self, scalar: &Scalar<'_>) -> Option<String> {
        match scalar {
            Scalar::Int(value) => self.broken_by_int(*value, &|number| number.to_string()),
            Scalar::Duration(value) => self.broken_by_int(*value, &seconds),
            Scalar::Float(value) => self.broken_by_float(*value),
            Scalar::Text(bytes) => self.broken_by_text(bytes),
        }
    }

    fn broken_by_int(&self, value: i128, show: &dyn Fn(i128) -> String) -> Option<String> {
        let list = |items: &[i128]| items.iter().map(|i| show(*i)).collect::<Vec<_>>().join(", ");
        match self {
            Self::Int(bound, limit) => bound.broken(&value, limit, &show(value), &show(*limit)),
            Self::IntIn(items) if !items.contains(&value) => {
                Some(format!("must be one of {}, is {}", list(items), show(value)))
            }
            Self::IntNotIn(items) if items.contains(&value) => {
                Some(format!("must not be {}", show(value)))
            }
            Self::DefinedOnly(items) if !items.contains(&value) => {
                Some(format!("must be a value that the enum defines, is {value}"))
            }
            _ => None,
        }
    }

    fn broken_by_float(&self, value: f64) -> Option<String> {
        match self {
            Self::Float(bound, limit) => bound.broken(&value, limit, &value, limit),
            Self::FloatIn(items) if !items.contains(&value) => {
                Some(format!("must be one of {items:?}, is {value}"))
            }
            Self::FloatNotIn(items) if items.contains(&value) => {
                Some(format!("must not be {value}"))
            }
            _ => None,
        }
    }

    fn broken_by_text(&self, bytes: &[u8]) -> Option<String> {
        let text = || String::from_utf8_lossy(bytes);
        let characters = || text().chars().count();
        let must = |ok: bool, what: String| (!ok).then(|| format!("must {what}, is {:?}", text()));
        match self {
            Self::MinLen(min) => count(characters(), *min, true, "character"),
            Self::MaxLen(max) => count(characters(), *max, false, "character"),
            Self::MinBytes(min) => count(bytes.len(), *min, true, "byte"),
            Self::MaxBytes(max) => count(bytes.len(), *max, false, "byte"),
            Self::Prefix(it) => must(text().starts_with(it), format!("start with {it:?}")),
            Self::Suffix(it) => must(text().ends_with(it), format!("end with {it:?}")),
            Self::Contains(it) => must(text().contains(it), format!("contain {it:?}")),
            Self::NotContains(it) => must(!text().contains(it), format!("not contain {it:?}")),
            Self::TextIn(items) => {
                must(items.contains(&&*text()), format!("be one of {}", items.join(", ")))
            }
            Self::TextNotIn(items) => {
                must(!items.contains(&&*text()), format!("be none of {}", items.join(", ")))
            }
            Self::HeaderName { strict } => {
                must(is_header_name(bytes, *strict), "be the name of a header".to_owned())
            }
            Self::HeaderValue { strict } => {
                let ok = bytes.iter().all(|byte| is_header_byte(*byte, *strict));
                must(ok, "hold no control character".to_owned())
            }
            Self::PathPrefix => must(
                is_path_prefix(&text()),
                "be a path of two or more characters without ? and # that does not end in /"
                    .to_owned(),
            ),
            Self::Regex => regex::fault(&text())
                .map(|fault| format!("must be a regular expression, is {:?}: {fault}", text())),
            Self::Alphanumeric(others) => {
                let ok = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
                let ok = !bytes.is_empty() && text().chars().all(ok);
                must(ok, format!("hold letters, digits and {others} only"))
            }
            _ => None,
        }
    }
}

// === impl Bound ===

impl Bound {
    fn broken<T: PartialOrd>(
        self,
        value: &T,
        limit: &T,
        shown: &dyn Display,
        shown_limit: &dyn Display,
    ) -> Option<String> {
        let (ok, what) = match self {
            Self::Above => (value > limit, "above"),
            Self::AtLeast => (value >= limit, "at least"),
            Self::Below => (value < limit, "below"),
            Self::AtMost => (value <= limit, "at most"),
        };
        (!ok).then(|| format!("must be {what} {shown_limit}, is {shown}"))
    }
}

fn count(len: usize, limit: usize, at_least: bool, unit: &str) -> Option<String> {
    let ok = if at_least { len >= limit } else { len <= limit };
    let word = if at_least { "at least" } else { "at most" };
    let plural = if limit == 1 { "" } else { "s" };
    (!ok).then(|| format!("must have {word} {limit} {unit}{plural}, has {len}"))
}

/// Nanoseconds as people write durations.
fn seconds(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let (whole, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let rest = if rest == 0 {
        String::new()
    } else {
        format!(".{}", format!("{rest:09}").trim_end_matches('0'))
    };
    format!("{sign}{whole}{rest}s")
}

fn is_header_name(bytes: &[u8], strict: bool) -> bool {
    if !strict {
        return bytes.iter().all(|byte| is_header_byte(*byte, false));
    }
    // Pseudo headers start with a colon.
    let name = bytes.strip_prefix(b":").unwrap_or(bytes);
    // The comma is no mistake: Envoy's own expression spells a range from `+` to `.`.
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(b);
    !name.is_empty() && name.iter().all(allowed)
}

fn is_header_byte(byte: u8, strict: bool) -> bool {
    match byte {
        0 | b'\n' | b'\r' => false,
        b'\t' => true,
        1..=0x1f | 0x7f => !strict,
        _ => true,
    }
}

fn is_path_prefix(text: &str) -> bool {
    text.chars().count() >= 2 && !text.contains(['?', '#']) && !text.ends_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(rule: &Rule, scalar: &Scalar<'_>) -> String {
        rule.broken_by(scalar).unwrap_or_default()
    }

    #[test]
    fn given_numbers_then_limits_and_lists_hold() {
        let float = |value| says(&Rule::Float(Bound::AtMost, 1.0), &Scalar::Float(value));
        assert_eq!(float(1.0), "");
        assert_eq!(float(1.5), "must be at most 1, is 1.5");
        assert_eq!(
            says(&Rule::IntIn(&[301, 302]), &Scalar::Int(200)),
            "must be one of 301, 302, is 200"
        );
        assert_eq!(says(&Rule::IntNotIn(&[0]), &Scalar::Int(0)), "must not be 0");
        assert_eq!(
            says(&Rule::Int(Bound::AtLeast, 1_000_000), &Scalar::Duration(-1_500_000_000)),
            "must be at least 0.001s, is -1.5s"
        );
    }

    #[test]
    fn given_texts_then_lengths_and_affixes_hold() {
        let text = |rule: Rule, text: &str| says(&rule, &Scalar::Text(text.as_bytes()));
        assert_eq!(text(Rule::MaxLen(2), "äö"), "", "characters, not bytes");
        assert_eq!(text(Rule::MaxBytes(2), "äö"), "must have at most 2 bytes, has 4");
        assert_eq!(text(Rule::Prefix("%"), "a"), "must start with \"%\", is \"a\"");
        assert_eq!(text(Rule::Suffix("%"), "a%"), "");
        assert_eq!(text(Rule::TextIn(&["a", "b"]), "c"), "must be one of a, b, is \"c\"");
        assert_eq!(text(Rule::TextNotIn(&["a"]), "b"), "");
        assert_eq!(text(Rule::Alphanumeric("-"), "a-1"), "");
        assert_ne!(text(Rule::Alphanumeric("-"), ""), "");
    }

    #[test]
    fn given_header_names_then_pseudo_headers_pass_and_spaces_only_when_lax() {
        let name = |strict, text: &str| {
            says(&Rule::HeaderName { strict }, &Scalar::Text(text.as_bytes())).is_empty()
        };
        assert!(name(true, ":path") && name(true, "x-a"));
        assert!(!name(true, "a b") && !name(true, ":") && !name(true, ""));
        assert!(name(false, "a b") && !name(false, "a\r"));
    }

    #[test]
    fn given_a_value_of_every_wire_type_then_it_is_decoded_or_refused() {
        let int = |kind: Kind, raw| match kind.scalar(Some(raw)) {
            Some(Scalar::Int(value)) => Some(value),
            _ => None,
        };
        assert_eq!(int(Kind::Signed, Raw::Varint(u64::MAX)), Some(-1));
        assert_eq!(int(Kind::Unsigned, Raw::Varint(u64::MAX)), Some(u64::MAX.into()));
        assert_eq!(int(Kind::ZigZag, Raw::Varint(3)), Some(-2));
        assert_eq!(int(Kind::SignedFixed32, Raw::Fixed32(u32::MAX)), Some(-1));
        assert_eq!(int(Kind::Signed, Raw::Bytes(b"x")), None);
    }
}
