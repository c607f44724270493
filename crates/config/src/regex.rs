//! Regular expressions as RE2 takes them, which is what Envoy compiles them with.
//!
//! In: a pattern. Out: nothing, or why RE2 would refuse it.
//!
//! The parser used here takes more than RE2 does. Every such form was tried on a real Envoy: it
//! answers with a rejection of the whole virtual host, so what is not surely good is refused here.
//!
//! **Invariant:** what passes compiles in RE2, within the size that our bootstrap allows; it may
//! refuse a rare form that RE2 would take.

use regex_syntax::ast::{
    Ast, ClassSet, ClassSetItem, ClassUnicode, ClassUnicodeKind, Flag, Flags, FlagsItemKind,
    GroupKind, HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionRange,
};

/// Characters that a pattern may have.
const LONGEST: usize = 1024;
/// RE2's own bound on `{n}`, nested ones multiplied.
const MOST_REPEATS: u64 = 1000;
/// Below the 32,768 instructions that our bootstrap lets Envoy compile.
const LARGEST_PROGRAM: u64 = 32_000;
/// Scripts that `\p{…}` may name, besides categories of one or two letters.
const SCRIPTS: &[&str] = &[
    "Arabic",
    "Armenian",
    "Bengali",
    "Cyrillic",
    "Devanagari",
    "Georgian",
    "Greek",
    "Han",
    "Hangul",
    "Hebrew",
    "Hiragana",
    "Katakana",
    "Latin",
    "Tamil",
    "Thai",
];

/// Whether RE2 takes a pattern; why not, if not.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() {
        return Err("must not be empty; `.*` matches everything".to_owned());
    }
    if pattern.len() > LONGEST {
        return Err(format!("a regular expression may have {LONGEST} characters at most"));
    }
    let refused = |why: &str| format!("{pattern:?} is no regular expression of RE2: {why}");
    // Its translation is checked as well: that finds classes that do not exist.
    if let Err(error) = regex_syntax::ParserBuilder::new().nest_limit(64).build().parse(pattern) {
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default();
        return Err(refused(why.strip_prefix("error: ").unwrap_or(why)));
    }
    let ast = regex_syntax::ast::parse::ParserBuilder::new().nest_limit(64).build().parse(pattern);
    let size = match ast {
        Ok(ast) => expression(&ast, 1).map_err(|why| refused(&why))?,
        Err(error) => return Err(refused(&error.kind().to_string())),
    };
    if size > LARGEST_PROGRAM {
        return Err(refused("it is too large once its repetitions are written out"));
    }
    Ok(())
}

/// Check an expression that is repeated this often. Returns roughly its instructions, once.
fn expression(ast: &Ast, repeats: u64) -> Result<u64, String> {
    Ok(match ast {
        Ast::Empty(_) | Ast::Assertion(_) => 1,
        Ast::Flags(set) => flags(&set.flags).map(|()| 1)?,
        Ast::Literal(literal) => self::literal(literal)?,
        Ast::Dot(_) | Ast::ClassPerl(_) => 2,
        Ast::ClassUnicode(class) => unicode(class).map(|()| 8)?,
        Ast::ClassBracketed(class) => set(&class.kind).map(|()| 8)?,
        Ast::Repetition(repetition) => {
            let inner = &*repetition.ast;
            if matches!(inner, Ast::Repetition(_) | Ast::Flags(_) | Ast::Empty(_)) {
                return Err("a repetition must follow what it repeats; use a group".to_owned());
            }
            let times = times(&repetition.op.kind);
            let repeats = repeats.saturating_mul(times);
            if repeats > MOST_REPEATS {
                return Err(format!("nothing may be repeated more than {MOST_REPEATS} times"));
            }
            expression(inner, repeats)?.saturating_mul(times).saturating_add(2)
        }
        Ast::Group(group) => {
            if let GroupKind::NonCapturing(set) = &group.kind {
                flags(set)?;
            }
            expression(&group.ast, repeats)?.saturating_add(2)
        }
        Ast::Alternation(all) => sum(&all.asts, repeats)?,
        Ast::Concat(all) => sum(&all.asts, repeats)?,
    })
}

fn sum(asts: &[Ast], repeats: u64) -> Result<u64, String> {
    asts.iter().try_fold(0_u64, |sum, ast| Ok(sum.saturating_add(1 + expression(ast, repeats)?)))
}

/// How often a repetition is written out.
fn times(kind: &RepetitionKind) -> u64 {
    match kind {
        RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
        RepetitionKind::Range(
            RepetitionRange::Exactly(n)
            | RepetitionRange::AtLeast(n)
            | RepetitionRange::Bounded(_, n),
        ) => u64::from(*n).max(1),
    }
}

fn flags(flags: &Flags) -> Result<(), String> {
    let unknown = |kind: &FlagsItemKind| {
        matches!(kind, FlagsItemKind::Flag(Flag::Unicode | Flag::CRLF | Flag::IgnoreWhitespace))
    };
    if flags.items.iter().any(|item| unknown(&item.kind)) {
        return Err("only the flags i, m, s and U exist".to_owned());
    }
    Ok(())
}

fn literal(literal: &Literal) -> Result<u64, String> {
    use HexLiteralKind::{UnicodeLong, UnicodeShort};
    match literal.kind {
        LiteralKind::HexFixed(UnicodeShort | UnicodeLong)
        | LiteralKind::HexBrace(UnicodeShort | UnicodeLong) => {
            Err("\\u and \\U do not exist; use \\x{…}".to_owned())
        }
        _ => Ok(literal.c.len_utf8() as u64),
    }
}

fn unicode(class: &ClassUnicode) -> Result<(), String> {
    match &class.kind {
        ClassUnicodeKind::OneLetter(_) => Ok(()),
        ClassUnicodeKind::Named(name)
            if name.trim_start_matches('^').len() <= 2 || SCRIPTS.contains(&name.as_str()) =>
        {
            Ok(())
        }
        _ => Err("\\p takes a category of one or two letters, or a script".to_owned()),
    }
}

fn set(class: &ClassSet) -> Result<(), String> {
    match class {
        ClassSet::BinaryOp(_) => Err("a class cannot be made of `&&`, `--` or `~~`".to_owned()),
        ClassSet::Item(item) => set_item(item),
    }
}

fn set_item(item: &ClassSetItem) -> Result<(), String> {
    match item {
        ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) | ClassSetItem::Perl(_) => Ok(()),
        ClassSetItem::Literal(literal) => self::literal(literal).map(drop),
        ClassSetItem::Range(range) => {
            literal(&range.start)?;
            literal(&range.end).map(drop)
        }
        ClassSetItem::Unicode(class) => unicode(class),
        ClassSetItem::Bracketed(_) => {
            Err("a class within a class does not exist; write `\\[` for a bracket".to_owned())
        }
        ClassSetItem::Union(union) => union.items.iter().try_for_each(set_item),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_routes_need_is_taken() {
        let good = [
            ".*",
            "^/a/[0-9]+$",
            "(?i)abc",
            r"\d{3}",
            r"(?i-s:a)|(?P<x>b)",
            r"[^/]{1,1000}",
            r"(?:a*)*",
            r"\p{Greek}\pL\p{Lu}",
            r"[[:alpha:]\w\-.]+",
            r"\x{41}\x42",
            r"a\.b\/c",
            "(a{10}){100}",
        ];
        for pattern in good {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_a_real_envoy_rejects_is_refused() {
        let bad = [
            "",
            "(",
            "(?=a)",
            r"\1",
            "a{2,1}",
            "(?<!x)y",
            "a**",
            "a{1001}",
            "(a{100}){100}",
            r"\p{Letter}",
            "(?x)a b",
            "(?u)a",
            "[a--b]",
            r"\u0041",
            "x{2}{3}",
            "a*+",
            "a+?+",
            r"\p{Alphabetic}",
            r"\p{sc=Greek}",
            "(?R)a",
            "(?i)*",
        ];
        for pattern in bad {
            assert!(check(pattern).is_err(), "{pattern}");
        }
        for large in [".{1000}".repeat(32), r"\p{L}{1000}".repeat(8), "(a{10}){100}".repeat(50)] {
            let why = check(&large).expect_err(&large);
            assert!(why.contains("too large"), "{why}");
        }
    }

    #[test]
    fn an_endless_pattern_is_refused_and_not_quoted() {
        let why = check(&"a".repeat(100_000)).expect_err("too long");
        assert!(why.len() < 200, "{why}");
    }
}
