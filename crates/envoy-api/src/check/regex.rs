//! Finds regular expressions that RE2, Envoy's engine, would not compile.
//!
//! In: an expression. Out: what is wrong with it.
//!
//! Why not an RE2: it is C++. The parser of Rust's `regex` differs in corners (`{` that starts no
//! repetition is text for RE2), so only faults that RE2 is known to share are reported.
//!
//! **Invariant:** reports nothing that RE2 accepts, but for octal escapes such as `\12`, which it
//! takes for back references.

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{Ast, ErrorKind, RepetitionKind, RepetitionRange, Visitor, visit};

/// RE2 repeats nothing more often.
const MAX_REPEAT: u32 = 1000;

/// What is wrong with an expression, if anything is.
pub(super) fn fault(expression: &str) -> Option<String> {
    match ParserBuilder::new().build().parse(expression) {
        Ok(ast) => visit(&ast, Repetitions).err().map(str::to_owned),
        Err(error) => {
            let is_shared = match error.kind() {
                // RE2 knows no class within a class: `[^[]` is whole.
                ErrorKind::ClassUnclosed => expression.matches('[').count() == 1,
                // A brace with nothing before it is text for RE2.
                ErrorKind::RepetitionMissing => {
                    !expression[error.span().start.offset..].starts_with('{')
                }
                kind => is_shared(kind),
            };
            is_shared.then(|| error.kind().to_string())
        }
    }
}

/// Faults for RE2 as well, whatever the expression.
fn is_shared(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ClassRangeInvalid
            | ErrorKind::EscapeUnexpectedEof
            | ErrorKind::GroupUnclosed
            | ErrorKind::GroupUnopened
            | ErrorKind::RepetitionCountInvalid
            | ErrorKind::UnsupportedBackreference
            | ErrorKind::UnsupportedLookAround
    )
}

/// Refuses repetitions that Rust takes and RE2 does not.
struct Repetitions;

impl Visitor for Repetitions {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        let Ast::Repetition(repetition) = ast else { return Ok(()) };
        if matches!(*repetition.ast, Ast::Repetition(_)) {
            return Err("repetition of a repetition without a group");
        }
        let most = match &repetition.op.kind {
            RepetitionKind::Range(RepetitionRange::Bounded(_, most)) => *most,
            RepetitionKind::Range(RepetitionRange::Exactly(n) | RepetitionRange::AtLeast(n)) => *n,
            _ => 0,
        };
        if most > MAX_REPEAT { Err("more than 1000 repetitions") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_what_re2_takes_then_nothing_is_said() {
        for text in [
            "/users/{id}",
            "{id}",
            "({a})|{b}",
            "^{a}",
            "[^[]+",
            "(?P<a>x)(?P<a>y)",
            "a{,3}",
            "[a-z]+",
            r"\Qa.b\E",
            "(?i)a|b",
            r"\/a\d+",
            "a*?",
            "",
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
    }

    #[test]
    fn given_what_re2_refuses_then_it_is_named() {
        for text in [
            "(a", "a)", "[a", "*a", "a**", "(*a)", "a|*", "[b-a]", "a{3,2}", "a{2}{3}", "a{1001}",
            "(?=a)", r"(a)\1", r"a\",
        ] {
            assert!(fault(text).is_some(), "{text}");
        }
    }
}
